r"""The commands of the early tool's README and of its linked example, as they stand there; its container's job, too.

They are facts of a public interface, and kept to the letter: also `\ ` with a space behind, which a shell refuses.
"""

SINGLE_GPU = r"""
# if you want to use one GPU on multi-gpu machine
export CUDA_VISIBLE_DEVICES=0

# MODEL_PATH=meta-llama/Llama-2-7b-hf # Huggingface model id or path to a checkpoint
# TRAIN_DATA_PATH=twitter_complaints.json # Path to the dataset
# OUTPUT_PATH=out # Path to the output folder where the checkpoints are saved

python tuning/sft_trainer.py  \
--model_name_or_path $MODEL_PATH  \
--training_data_path $TRAIN_DATA_PATH  \
--output_dir $OUTPUT_PATH  \
--num_train_epochs 5  \
--per_device_train_batch_size 4  \
--per_device_eval_batch_size 4  \
--gradient_accumulation_steps 4  \
--evaluation_strategy "no"  \
--save_strategy "epoch"  \
--learning_rate 1e-5  \
--weight_decay 0.  \
--warmup_ratio 0.03  \
--lr_scheduler_type "cosine"  \
--logging_steps 1  \
--include_tokens_per_second  \
--packing False  \
--response_template "\n### Response:"  \
--dataset_text_field "output" 

"""

FSDP = r"""
accelerate launch \
--main_process_port $MASTER_PORT \
--config_file fixtures/accelerate_fsdp_defaults.yaml \
--num_processes=8 \ 
--main_process_port=$MASTER_PORT \
tuning/sft_trainer.py \
--model_name_or_path $MODEL_PATH \
--training_data_path $TRAIN_DATA_PATH \
--torch_dtype bfloat16 \
--output_dir $OUTPUT_PATH \
--num_train_epochs 5 \
--per_device_train_batch_size 4 \
--per_device_eval_batch_size 4 \
--gradient_accumulation_steps 4 \
--evaluation_strategy "no" \
--save_strategy "epoch" \
--learning_rate 1e-5 \
--weight_decay 0. \
--warmup_ratio 0.03 \
--lr_scheduler_type "cosine" \
--logging_steps 1 \
--include_tokens_per_second \
--packing False \
--response_template "\n### Response:" \
--dataset_text_field "output"
"""

LORA = r"""
python tuning/sft_trainer.py \
--model_name_or_path $MODEL_PATH \
--training_data_path $TRAIN_DATA_PATH \
--output_dir $OUTPUT_PATH \
--num_train_epochs 40 \
--per_device_train_batch_size 4 \
--per_device_eval_batch_size 4 \
--gradient_accumulation_steps 4 \
--save_strategy "epoch" \
--learning_rate 1e-4 \
--weight_decay 0. \
--warmup_ratio 0.03 \
--lr_scheduler_type "cosine" \
--logging_steps 1 \
--include_tokens_per_second \
--packing False \
--response_template "\n### Label:" \
--dataset_text_field "output" \
--use_flash_attn False \
--tokenizer_name_or_path $MODEL_PATH \
--torch_dtype float32 \
--peft_method "lora" \
--logging_strategy "epoch" \
--r 8 \
--lora_dropout 0.05 \
--lora_alpha 16
"""

PROMPT_TUNING = r"""
# replace these with your values
MODEL_PATH=llama-7b-hf
DATA_PATH=twitter_complaints.json
OUTPUT_PATH=out

# MASTER_PORT should be set to an unused port
MASTER_PORT=1234 # The port at which the process with rank 0 listens to

accelerate launch \
--main_process_port $MASTER_PORT \
--config_file fixtures/accelerate_fsdp_defaults.yaml \
tuning/sft_trainer.py  \
--model_name_or_path $MODEL_PATH  \
--training_data_path $DATA_PATH  \
--output_dir $OUTPUT_PATH  \
--peft_method pt \
--torch_dtype bfloat16 \
--tokenizer_name_or_path $MODEL_PATH  \
--num_train_epochs 5  \
--per_device_train_batch_size 1  \
--per_device_eval_batch_size 1  \
--gradient_accumulation_steps 1  \
--evaluation_strategy "no"  \
--save_strategy "epoch"  \
--learning_rate 1e-5  \
--weight_decay 0.  \
--warmup_ratio 0.03  \
--lr_scheduler_type "cosine"  \
--logging_steps 1  \
--include_tokens_per_second  \
--packing False  \
--response_template "\n### Label:"  \
--dataset_text_field "output" 
"""

TORCHRUN = r"""
torchrun \
--nnodes=1 \
--nproc_per_node=8 \ 
--master_port=1234 \
tuning/sft_trainer.py \
--model_name_or_path $MODEL_PATH \
--data_path $DATA_PATH \
--bf16 True \
--output_dir $OUTPUT_PATH \
--num_train_epochs 5 \
--per_device_train_batch_size 4 \
--per_device_eval_batch_size 4 \
--gradient_accumulation_steps 4 \
--evaluation_strategy "no" \
--save_strategy "epoch" \
--learning_rate 1e-5 \
--weight_decay 0. \
--warmup_ratio 0.03 \
--lr_scheduler_type "cosine" \
--logging_steps 1 \
--fsdp "full_shard auto_wrap" \ 
--fsdp_config tuning/config/fsdp_config.json \
--include_tokens_per_second \
--packing False \
--response_template "\n### Response:" \
--dataset_text_field "output"
"""
"""Of the tool's first README, before it used accelerate's launcher."""

ONE_TEXT = r"""
python scripts/run_inference.py \
--model my_checkpoint \
--text "This is a text the model will run inference on" \
--max_new_tokens 50 \
--out_file result.json
"""

TEXT_FILE = r"""
python scripts/run_inference.py \
--model my_checkpoint \
--text_file source_texts.txt \
--max_new_tokens 50 \
--out_file result.json
"""

SOURCE_TEXTS = "This is the first text to be processed.\nAnd this is the second text to be processed.\n"

HARNESS = r"""
pip install -U transformers
pip install -U datasets
git clone https://github.com/EleutherAI/lm-evaluation-harness
cd lm-evaluation-harness
pip install -e .
python main.py \ 
--model hf-causal \
--model_args pretrained=$MODEL_PATH \ 
--output_path $OUTPUT_PATH/results.json \ 
--tasks boolq,piqa,hellaswag,winogrande,arc_easy,arc_challenge,hendrycksTest-*
"""

CONTAINER = {
    "multiGPU": {
        "num_machines": 1,
        "main_process_port": 1234,
        "num_processes": 2,
        "use_fsdp": True,
        "fsdp_backward_prefetch_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_sharding_strategy": 1,
        "fsdp_state_dict_type": "FULL_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_sync_module_states": True,
    },
    "model_name_or_path": "/llama/7B",
    "training_data_path": "/data/twitter_complaints.json",
    "output_dir": "/output/llama-7b-pt-multigpu",
    "num_train_epochs": 5.0,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "save_strategy": "epoch",
    "learning_rate": 0.03,
    "weight_decay": 0.0,
    "lr_scheduler_type": "cosine",
    "logging_steps": 1.0,
    "packing": False,
    "include_tokens_per_second": True,
    "response_template": "\n### Label:",
    "dataset_text_field": "output",
    "use_flash_attn": False,
    "torch_dtype": "bfloat16",
    "tokenizer_name_or_path": "/llama/7B",
}
"""The job file of the early container's README."""

FSDP_CONFIG = """{
  "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
  "fsdp_backward_prefetch_policy": "BACKWARD_PRE",
  "fsdp_forward_prefetch": "True",
  "fsdp_offload_params": "False",
  "fsdp_state_dict_type": "SHARDED_STATE_DICT",
  "fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer"
}"""
"""The settings of the first version's `tuning/config/fsdp_config.json` that matter."""

TRAINING_ARGUMENTS = tuple(
    word
    for line in """
accelerator_config adafactor adam_beta1 adam_beta2 adam_epsilon auto_find_batch_size bf16 bf16_full_eval data_seed
dataloader_drop_last dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory ddp_backend
ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_timeout debug deepspeed disable_tqdm
dispatch_batches do_eval do_predict do_train eval_accumulation_steps eval_delay eval_steps evaluation_strategy fp16
fp16_backend fp16_full_eval fp16_opt_level fsdp fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap
full_determinism gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs greater_is_better
group_by_length half_precision_backend hub_always_push hub_model_id hub_private_repo hub_strategy hub_token
ignore_data_skip include_inputs_for_metrics include_num_input_tokens_seen include_tokens_per_second jit_mode_eval
label_names label_smoothing_factor learning_rate length_column_name load_best_model_at_end local_rank log_level
log_level_replica log_on_each_node logging_dir logging_first_step logging_nan_inf_filter logging_steps
logging_strategy lr_scheduler_kwargs lr_scheduler_type max_grad_norm max_steps metric_for_best_model mp_parameters
neftune_noise_alpha no_cuda num_train_epochs optim optim_args output_dir overwrite_output_dir past_index
per_device_eval_batch_size per_device_train_batch_size per_gpu_eval_batch_size per_gpu_train_batch_size
prediction_loss_only push_to_hub push_to_hub_model_id push_to_hub_organization push_to_hub_token ray_scope
remove_unused_columns report_to resume_from_checkpoint run_name save_on_each_node save_only_model save_safetensors
save_steps save_strategy save_total_limit seed skip_memory_metrics split_batches tf32 torch_compile
torch_compile_backend torch_compile_mode torchdynamo tpu_metrics_debug tpu_num_cores use_cpu use_ipex
use_legacy_prediction_loop use_mps_device warmup_ratio warmup_steps weight_decay
""".splitlines()
    for word in line.split()
)
"""The arguments of `transformers.TrainingArguments` 4.38, all of them flags of the early tool."""
