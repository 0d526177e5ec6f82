"""What became of each flag of the early tool: the one table that `from-fms` reads and docs/migration.md shows.

The flags are those of fms-hf-tuning at its first README (March 2024; later names where jobs use them), of
`transformers.TrainingArguments` 4.38, which it extends, of `accelerate launch` and `torchrun`, of its inference script
and of lm-evaluation-harness. A flag that is not here and that `trl.SFTConfig` has is a field of `training`.
"""

import dataclasses
from collections.abc import Mapping
from enum import Enum

from fmstune.config import upstream_fields
from fmstune.config.renamed_fields import OWNED, TRANSLATED
from fmstune.errors import Problem, did_you_mean


class Fate(Enum):
    """What became of a flag."""

    moved = "moved"
    """It has a field."""
    dropped = "dropped"
    """It has none and the run means the same without it, or nearly; `why` says it."""
    refused = "refused"
    """It has none, and the run would mean something else without it."""


class Kind(Enum):
    """How the words after a flag are read."""

    text = "text"
    plain = "a number or a word"
    switch = "true or false"
    words = "several words"


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag of the early tool."""

    field: str = ""
    """The field or group of today, by its dotted name; a flag for the flags of generate and evaluate."""
    kind: Kind = Kind.plain
    values: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Today's word for each early one, where words changed; "" sets nothing."""
    early: str | tuple[str, ...] | None = None
    """The early default, where it is not fmstune's own, so that it has to be written out."""
    why: str = ""
    """What a user has to know: the reason of a fate, or what is different about the field."""
    fate: Fate = Fate.moved


def _dropped(why: str, kind: Kind = Kind.plain) -> Flag:
    return Flag(why=why, fate=Fate.dropped, kind=kind)


def _refused(why: str, kind: Kind = Kind.plain) -> Flag:
    return Flag(why=why, fate=Fate.refused, kind=kind)


_GONE = "transformers has it no more"
_UPLOAD = "upload RUN/model with `hf upload` after the run"
_SCRIPT = "the early script did not read it"
_DEFAULT_TEXT = "Classify if the tweet is a complaint or not:"
_QUANTISED = "set model.quantization, such as 'model.quantization={load_in_4bit: true}'"

TUNING: Mapping[str, Flag] = {
    "model_name_or_path": Flag("model.path", Kind.text, early="facebook/opt-125m"),
    "tokenizer_name_or_path": Flag(
        "model.tokenizer", Kind.text, why="the first version read it for prompt tuning only"
    ),
    "torch_dtype": Flag("model.dtype", early="bfloat16"),
    "use_flash_attn": Flag(
        "model.attention",
        Kind.switch,
        {"true": "flash_attention_2", "false": "sdpa"},
        why="auto, when left out: FlashAttention-2 where it can run, else sdpa",
    ),
    "training_data_path": Flag("data.train", Kind.text),
    "data_path": Flag("data.train", Kind.text),
    "validation_data_path": Flag("data.eval", Kind.text, why="base and tuned model are compared on it, too"),
    "dataset_text_field": Flag("data.text_field", Kind.text),
    "response_template": Flag("data.response_template", Kind.text, why="looked for as text, and not as tokens"),
    "max_seq_length": Flag("data.max_length", why="a row longer than the model's positions is refused, and not cut"),
    "packing": Flag("training.packing", Kind.switch),
    "output_dir": Flag("output_dir", Kind.text, why="the model is in its folder `model`; a run is never overwritten"),
    "seed": Flag("seed"),
    "run_name": Flag("name", Kind.text),
    "peft_method": Flag("peft", values={"lora": "lora", "pt": "prompt_tuning", "none": "full"}, early="none"),
    "r": Flag("peft.r"),
    "lora_alpha": Flag("peft.lora_alpha", early="32"),
    "lora_dropout": Flag("peft.lora_dropout"),
    "target_modules": Flag("peft.target_modules", Kind.words, early=("q_proj", "v_proj")),
    "bias": Flag("peft.bias"),
    "num_virtual_tokens": Flag("peft.num_virtual_tokens"),
    "prompt_tuning_init": Flag("peft.prompt_tuning_init", early="TEXT"),
    "prompt_tuning_init_text": Flag("peft.prompt_tuning_init_text", Kind.text, early=_DEFAULT_TEXT),
    # defaults of transformers.TrainingArguments 4.38 that conf/training does not have
    "num_train_epochs": Flag("training.num_train_epochs", early="3"),
    "per_device_train_batch_size": Flag("training.per_device_train_batch_size", early="8"),
    "per_device_eval_batch_size": Flag("training.per_device_eval_batch_size", early="8"),
    "per_gpu_train_batch_size": Flag("training.per_device_train_batch_size"),
    "per_gpu_eval_batch_size": Flag("training.per_device_eval_batch_size"),
    "gradient_accumulation_steps": Flag("training.gradient_accumulation_steps", early="1"),
    "learning_rate": Flag("training.learning_rate", early="5e-5"),
    "lr_scheduler_type": Flag("training.lr_scheduler_type", early="linear"),
    "warmup_ratio": Flag("training.warmup_steps", early="0"),
    "warmup_steps": Flag("training.warmup_steps"),
    "logging_steps": Flag("training.logging_steps", early="500"),
    "save_strategy": Flag("training.save_strategy", early="steps"),
    "evaluation_strategy": Flag("training.eval_strategy"),
    "bf16": Flag("training.bf16", Kind.switch),
    "fp16": Flag("training.fp16", Kind.switch),
    "gradient_checkpointing": Flag("training.activation_checkpointing", Kind.switch),
    "gradient_checkpointing_kwargs": _refused("set training.activation_checkpointing_kwargs"),
    "include_tokens_per_second": Flag(
        "training.include_num_input_tokens_seen",
        Kind.switch,
        {"true": "all", "false": "no"},
        why="tokens/s are shown and in summary.json in any case",
    ),
    "include_num_input_tokens_seen": Flag(
        "training.include_num_input_tokens_seen", Kind.switch, {"true": "all", "false": "no"}
    ),
    "group_by_length": Flag(
        "training.train_sampling_strategy", Kind.switch, {"true": "group_by_length", "false": "random"}
    ),
    "adafactor": Flag("training.optim", Kind.switch, {"true": "adafactor", "false": ""}),
    "no_cuda": Flag("launcher.device", Kind.switch, {"true": "cpu", "false": ""}),
    "use_cpu": Flag("launcher.device", Kind.switch, {"true": "cpu", "false": ""}),
    "use_mps_device": Flag("launcher.device", Kind.switch, {"true": "mps", "false": ""}),
    "resume_from_checkpoint": Flag(
        "training.resume",
        Kind.text,
        {"true": "", "false": ""},
        why="the same command goes on with an unfinished run by itself",
    ),
    "report_to": Flag(
        "tracking",
        Kind.words,
        {"none": "", "aim": "aim", "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"},
        why="every tracker that was installed when left out; metrics.jsonl is written in any case",
    ),
    "tracker": Flag("tracking", Kind.words, {"none": "", "file_logger": "", "aim": "aim", "mlflow": "mlflow"}),
    "trackers": Flag("tracking", Kind.words, {"none": "", "file_logger": "", "aim": "aim", "mlflow": "mlflow"}),
    "aim_repo": Flag("tracking.aim.repo", Kind.text),
    "aim_remote_server_ip": Flag("tracking.aim.repo", Kind.text, why="with the port, as aim://HOST:PORT"),
    "aim_remote_server_port": Flag("tracking.aim.repo", why="with the address, as aim://HOST:PORT"),
    "experiment": Flag("tracking.aim.experiment", Kind.text),
    "fsdp": Flag("launcher", Kind.words, {"full_shard": "fsdp1", "shard_grad_op": "fsdp1", "hybrid_shard": "fsdp1"}),
    "fsdp_config": Flag("launcher", Kind.text, why="its values are fields of the launcher"),
    "fsdp_transformer_layer_cls_to_wrap": Flag("launcher.transformer_layer_cls_to_wrap", Kind.text),
    "cache_dir": _dropped("the environment variables HF_HOME and FMSTUNE_CACHE set it", Kind.text),
    "overwrite_output_dir": _dropped("a run folder is never overwritten; choose another output_dir", Kind.switch),
    "save_safetensors": _dropped("models are saved as safetensors only", Kind.switch),
    "logging_dir": _dropped("choose tracking=tensorboard and set tracking.tensorboard.log_dir", Kind.text),
    "training_logs_filename": _dropped("the values of every step are in metrics.jsonl in the run folder", Kind.text),
    "save_model_dir": _dropped("the model is in the folder `model` of output_dir", Kind.text),
    "exp_metadata": _dropped("job.yaml and lock.json in the run folder say what was run", Kind.text),
    "do_train": _dropped(_SCRIPT, Kind.switch),
    "do_eval": _dropped(_SCRIPT, Kind.switch),
    "do_predict": _dropped(_SCRIPT, Kind.switch),
    "disable_tqdm": _dropped(OWNED["disable_tqdm"], Kind.switch),
    "remove_unused_columns": _dropped(OWNED["remove_unused_columns"], Kind.switch),
    "label_names": _dropped(OWNED["label_names"], Kind.words),
    "local_rank": _dropped("the launcher numbers its processes"),
    "ddp_backend": _dropped("NCCL on GPUs and gloo on CPUs"),
    "fp16_opt_level": _dropped(_GONE),
    "fp16_backend": _dropped(_GONE),
    "half_precision_backend": _dropped(_GONE),
    "past_index": _dropped(_GONE),
    "use_legacy_prediction_loop": _dropped(_GONE, Kind.switch),
    "include_inputs_for_metrics": _dropped("no metric of fmstune takes the inputs", Kind.switch),
    "ray_scope": _dropped("sweeps are made with -m"),
    "dispatch_batches": _dropped("the launcher says which process reads what"),
    "split_batches": _dropped("the launcher says which process reads what"),
    "push_to_hub": _dropped(_UPLOAD, Kind.switch),
    "push_to_hub_model_id": _dropped(_UPLOAD),
    "push_to_hub_organization": _dropped(_UPLOAD),
    "push_to_hub_token": _dropped("secrets stay out of a command; set the environment variable HF_TOKEN"),
    "hub_token": _dropped("secrets stay out of a command; set the environment variable HF_TOKEN"),
    "hub_model_id": _dropped(_UPLOAD),
    "hub_strategy": _dropped(_UPLOAD),
    "hub_private_repo": _dropped(_UPLOAD, Kind.switch),
    "hub_always_push": _dropped(_UPLOAD, Kind.switch),
    "post_process_vllm": _dropped("`fmstune merge --export vllm_lora` does it after the run", Kind.switch),
    "lora_post_process_for_vllm": _dropped("`fmstune merge --export vllm_lora` does it after the run", Kind.switch),
    "merge_model": _dropped("`fmstune merge --model RUN --out DIR` does it after the run", Kind.switch),
    "jit_mode_eval": _refused(_GONE, Kind.switch),
    "use_ipex": _refused(_GONE, Kind.switch),
    "torchdynamo": _refused("set training.torch_compile"),
    "tpu_num_cores": _refused("fmstune does not train on TPUs"),
    "tpu_metrics_debug": _refused("fmstune does not train on TPUs", Kind.switch),
    "mp_parameters": _refused("it belongs to SageMaker"),
    "fsdp_min_num_params": _refused("the model's blocks are wrapped, whatever their size"),
    "deepspeed": _refused("FSDP is what shards here: launcher=fsdp", Kind.text),
    "accelerator_config": _refused(OWNED["accelerator_config"], Kind.text),
    "embedding_size_multiple_of": _refused("the embedding grows by the added tokens only"),
    "data_formatter_template": _refused("write it into a Jinja file: data=template data.format.template_file=FILE"),
    "dataset_conversation_field": _refused("choose data=chat and set data.format.messages_field", Kind.text),
    "chat_template": _refused("write it into a Jinja file and set model.chat_template=FILE", Kind.text),
    "instruction_template": _refused("choose data=chat, which trains what the assistant says", Kind.text),
    "add_special_tokens": _refused("set model.special_tokens.extra_special_tokens", Kind.words),
    "data_config_path": _refused("name several sources in data.train, each with its format and weight", Kind.text),
    "trainer_controller_config_file": _refused(
        "choose callbacks=early_stopping, or write a condition in callbacks.stop_when", Kind.text
    ),
    "auto_gptq": _refused(_QUANTISED, Kind.words),
    "bnb_qlora": _refused(_QUANTISED, Kind.words),
    "fused_lora": _refused("training.use_liger_kernel=true sets fused kernels", Kind.words),
    "fast_kernels": _refused("training.use_liger_kernel=true sets fused kernels", Kind.words),
    "padding_free": _refused("set training.packing=true, which pads nothing and keeps rows apart", Kind.words),
    "multipack": _refused("set training.packing=true, which pads nothing and keeps rows apart", Kind.words),
}
"""Flags of `tuning/sft_trainer.py`."""

OF_METHOD: Mapping[str, tuple[str, ...]] = {
    "lora": ("r", "lora_alpha", "lora_dropout", "target_modules", "bias"),
    "pt": ("num_virtual_tokens", "prompt_tuning_init", "prompt_tuning_init_text"),
    "none": (),
}
"""The flags that each `peft_method` read; the early tool passed over the others."""

_IGNORED_BY_LAUNCHER = "fmstune's own processes need it not"
_ACCELERATE_ONLY = "set the field of training with this meaning"

LAUNCH: Mapping[str, Flag] = {
    "config_file": Flag("launcher.config_file", Kind.text, why="the early tool's own is launcher=fsdp1"),
    "num_processes": Flag("launcher.num_processes"),
    "num_machines": Flag("launcher.num_machines"),
    "machine_rank": Flag("launcher.machine_rank"),
    "main_process_ip": Flag("launcher.main_process_ip", Kind.text),
    "main_process_port": Flag("launcher.main_process_port", why="a free one is found on one machine when left out"),
    "num_cpu_threads_per_process": Flag("launcher.threads"),
    "cpu": Flag("launcher.device", Kind.switch, {"true": "cpu", "false": ""}),
    "use_cpu": Flag("launcher.device", Kind.switch, {"true": "cpu", "false": ""}),
    "multi_gpu": Flag("launcher", Kind.switch, {"true": "ddp", "false": ""}),
    "use_fsdp": Flag("launcher", Kind.switch, {"true": "fsdp1", "false": ""}),
    "fsdp_version": Flag("launcher", values={"1": "fsdp1", "2": "fsdp"}, why="1 when left out, as in accelerate"),
    "mixed_precision": Flag(
        "training", values={"no": "", "bf16": "bf16=true", "fp16": "fp16=true"}, why="training.bf16, training.fp16"
    ),
    "fsdp_sharding_strategy": Flag("launcher.sharding_strategy"),
    "fsdp_reshard_after_forward": Flag("launcher.sharding_strategy"),
    "fsdp_offload_params": Flag("launcher.cpu_offload"),
    "fsdp_cpu_ram_efficient_loading": Flag("launcher.cpu_ram_efficient_loading"),
    "fsdp_transformer_layer_cls_to_wrap": Flag("launcher.transformer_layer_cls_to_wrap", Kind.text),
    "fsdp_backward_prefetch": Flag("launcher.backward_prefetch"),
    "fsdp_backward_prefetch_policy": Flag("launcher.backward_prefetch"),
    "fsdp_forward_prefetch": Flag("launcher.forward_prefetch"),
    "fsdp_use_orig_params": Flag("launcher.use_orig_params"),
    "fsdp_activation_checkpointing": Flag("training.activation_checkpointing", values={"true": "true", "false": ""}),
    "fsdp_auto_wrap_policy": _dropped("the model's blocks are wrapped"),
    "fsdp_state_dict_type": _dropped("checkpoints and models are ordinary files"),
    "fsdp_sync_module_states": _dropped("all processes start from the same weights"),
    "fsdp_min_num_params": _refused("the model's blocks are wrapped, whatever their size"),
    "gpu_ids": _refused("set the environment variable CUDA_VISIBLE_DEVICES before the command"),
    "dynamo_backend": _refused("set training.torch_compile"),
    "use_deepspeed": _refused("FSDP is what shards here: launcher=fsdp", Kind.switch),
    "deepspeed_config_file": _refused("FSDP is what shards here: launcher=fsdp", Kind.text),
    "zero_stage": _refused("FSDP is what shards here: launcher=fsdp"),
    "use_megatron_lm": _refused("FSDP is what shards here: launcher=fsdp", Kind.switch),
    "tpu": _refused("fmstune does not train on TPUs", Kind.switch),
    "gradient_accumulation_steps": _dropped("accelerate gave it to DeepSpeed only"),
    "gradient_clipping": _dropped("accelerate gave it to DeepSpeed only"),
    "same_network": _dropped(_IGNORED_BY_LAUNCHER, Kind.switch),
    "quiet": _dropped(_IGNORED_BY_LAUNCHER, Kind.switch),
    "debug": _dropped(_IGNORED_BY_LAUNCHER, Kind.switch),
    "downcast_bf16": _dropped("it is for TPUs"),
    "enable_cpu_affinity": _dropped(_IGNORED_BY_LAUNCHER, Kind.switch),
    "rdzv_backend": _dropped("c10d always"),
    "rdzv_conf": _dropped("launcher.rdzv_timeout is the seconds to wait for other machines"),
    "max_restarts": _dropped("the same command goes on with an unfinished run"),
    "monitor_interval": _dropped(_IGNORED_BY_LAUNCHER),
    "tee": _dropped("the main process speaks"),
    "log_dir": _dropped("the main process speaks"),
    "role": _dropped(_IGNORED_BY_LAUNCHER),
    "main_training_function": _dropped("it is for TPUs"),
}
"""Flags of `accelerate launch`, and keys of a job file's `accelerate_launch_args` or `multiGPU`."""

TORCHRUN: Mapping[str, Flag] = {
    "nproc_per_node": Flag("launcher.num_processes", why="times the machines; `gpu` and `auto` are one for each GPU"),
    "nnodes": Flag("launcher.num_machines"),
    "node_rank": Flag("launcher.machine_rank"),
    "master_addr": Flag("launcher.main_process_ip", Kind.text),
    "master_port": Flag("launcher.main_process_port", why="a free one is found on one machine when left out"),
    "rdzv_endpoint": Flag("launcher.main_process_ip", Kind.text, why="HOST:PORT, with main_process_port"),
    "standalone": _dropped("one machine needs no meeting point", Kind.switch),
    "use_env": _dropped(_IGNORED_BY_LAUNCHER, Kind.switch),
    "no_python": _refused("the script must be the early tool's", Kind.switch),
    "rdzv_backend": _dropped("c10d always"),
    "rdzv_id": _dropped("c10d always"),
    "rdzv_conf": _dropped("launcher.rdzv_timeout is the seconds to wait for other machines"),
    "max_restarts": _dropped("the same command goes on with an unfinished run"),
    "monitor_interval": _dropped(_IGNORED_BY_LAUNCHER),
    "start_method": _dropped(_IGNORED_BY_LAUNCHER),
    "role": _dropped(_IGNORED_BY_LAUNCHER),
    "log_dir": _dropped("the main process speaks"),
    "redirects": _dropped("the main process speaks"),
    "tee": _dropped("the main process speaks"),
}
"""Flags of `torchrun` and of `python -m torch.distributed.launch`."""

INFERENCE: Mapping[str, Flag] = {
    "model": Flag("--model", Kind.text),
    "text": Flag("--text", Kind.text),
    "text_file": Flag("--text_file", Kind.text),
    "out_file": Flag("--out_file", Kind.text),
    "base_model_name_or_path": Flag("--base_model_name_or_path", Kind.text, why="adapter_config.json is not touched"),
    "max_new_tokens": Flag("--max_new_tokens"),
    "use_flash_attn": Flag("--attention", Kind.switch, {"true": "flash_attention_2", "false": ""}),
    "use_alora": _refused("fmstune knows no activated LoRA", Kind.switch),
}
"""Flags of `scripts/run_inference.py`, which are those of `fmstune generate`."""

HARNESS: Mapping[str, Flag] = {
    "model": Flag("--model", Kind.text, why="hf and hf-causal only; the folder comes from model_args"),
    "model_args": Flag("--model", Kind.text, why="pretrained, or the adapter of peft; dtype is --dtype"),
    "tasks": Flag("--tasks", Kind.text, why="hendrycksTest-* is mmlu today"),
    "num_fewshot": Flag("--num_fewshot"),
    "batch_size": Flag("--batch_size", why="8 when left out; auto is not known"),
    "limit": Flag("--limit"),
    "include_path": Flag("--include_path", Kind.text),
    "output_path": Flag("--out_file", Kind.text, why="of a folder, harness.json in it"),
    "device": Flag("--device", why="the first GPU that is in sight, else the CPU, when left out"),
    "no_cache": _dropped("nothing is cached", Kind.switch),
    "write_out": _dropped("prompts are not written out", Kind.switch),
    "log_samples": _dropped("samples are not written out", Kind.switch),
    "trust_remote_code": _refused("fmstune runs no code from a model's repository", Kind.switch),
}
"""Flags of lm-evaluation-harness: `main.py` of 2023, and `lm_eval` of today."""


def of_tuning(name: str) -> Flag | None:
    """What became of a flag of the tuning script, those of transformers' training arguments included."""
    if name in TUNING:
        return TUNING[name]
    field = upstream_fields.fields_of(upstream_fields.SFT_CONFIG).get(name)
    if name in OWNED:
        return _refused(OWNED[name])
    if name in TRANSLATED or field is None:
        return None
    return Flag(f"training.{name}", Kind.switch if bool in field.primitives else Kind.plain)


def unknown(name: str, flags: Mapping[str, Flag]) -> Problem:
    """The message for a flag that the early tool had not either."""
    known = [f"--{flag}" for flag in flags]
    if flags is TUNING:
        known += [f"--{flag}" for flag in upstream_fields.fields_of(upstream_fields.SFT_CONFIG) if flag not in OWNED]
    hint = did_you_mean(f"--{name}", known) or " (docs/migration.md has all)"
    return Problem(f"--{name}", f"is not a flag of the early tool{hint}")
