# FSDP in two processes. On GPUs write cuda here, and llama2_7b for the real model.
DEVICE=cpu
MODEL=tiny_llama

fmstune launcher=fsdp launcher.device=$DEVICE launcher.num_processes=2 model=$MODEL peft=full data=complaints \
  output_dir=out "$@"
