# One run for each learning rate. For the real model write llama2_7b here.
MODEL=tiny_llama

fmstune -m model=$MODEL peft=lora data=complaints training.learning_rate=3e-4,3e-3,3e-2 output_dir=sweep "$@"
fmstune report sweep
