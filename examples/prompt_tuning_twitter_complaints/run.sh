# Prompt tuning on tweets that are complaints or not. For the real model write llama2_7b here, and your train.csv.
MODEL=tiny_llama
DATA=sample.csv

python convert.py $DATA twitter_complaints.json

fmstune model=$MODEL peft=prompt_tuning data=text data.train=twitter_complaints.json data.eval_fraction=0.2 \
  'data.response_template="\n### Label:"' \
  peft.prompt_tuning_init=TEXT \
  'peft.prompt_tuning_init_text="Classify if the tweet is a complaint or not:"' \
  output_dir=out "$@"
