# LoRA on instructions in Alpaca's form. For the real model write llama2_7b here.
MODEL=tiny_llama

fmstune model=$MODEL peft=lora data=alpaca data.train=alpaca.json data.eval_fraction=0.2 output_dir=out "$@"

fmstune generate --model out --format alpaca --text "Name a bird that swims." --only_new_text --stream
