# Full tuning of GPTBigCode on code. For the real model write gpt_bigcode (StarCoder) or santacoder here.
MODEL=tiny_gpt_bigcode

fmstune model=$MODEL peft=full data=text data.train=code.jsonl data.eval_fraction=0.2 output_dir=out "$@"
