"""What became of each flag of the early tool: the table that `from-fms` reads and docs/migration.md shows.

The flags are those of fms-hf-tuning at its first README (March 2024; later names where jobs use them), of
`transformers.TrainingArguments` 4.38, which it extends, of `accelerate launch` and `torchrun`, of its inference script
and of lm-evaluation-harness. Any other flag that `trl.SFTConfig` has is a field of `training`.
"""

import dataclasses
from collections.abc import Mapping
from enum import Enum
from functools import partial

from fmstune.config import upstream_fields
from fmstune.config.renamed_fields import OWNED, SHARE, TRANSLATED
from fmstune.errors import Problem, did_you_mean
from fmstune.launch import accelerate_file


class Fate(Enum):
    """What became of a flag."""

    moved = "moved"
    """A field replaces it."""
    dropped = "dropped"
    """The run means the same, or nearly the same, without it; `why` gives the reason."""
    refused = "refused"
    """The run would mean something else without it; `why` gives the replacement or the reason."""


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
    """The field or group of today by its dotted name, or the flag of `fmstune generate` and `evaluate`."""
    kind: Kind = Kind.plain
    values: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Today's word for each early one, if words changed; "" sets nothing."""
    early: str | tuple[str, ...] | None = None
    """The early default, if it differs from fmstune's and must be written out."""
    why: str = ""
    """The reason of a fate, or what is different about the field."""
    fate: Fate = Fate.moved


_text = partial(Flag, kind=Kind.text)


def _switch(field: str, *words: str, why: str = "") -> Flag:
    """A switch, with today's words for true and false."""
    return Flag(field, Kind.switch, dict(zip(("true", "false"), words, strict=False)), why=why)


def _dropped(why: str, *names: str) -> dict[str, Flag]:
    return dict.fromkeys(names, Flag(why=why, fate=Fate.dropped, kind=Kind.words))


def _refused(why: str, *names: str) -> dict[str, Flag]:
    return dict.fromkeys(names, Flag(why=why, fate=Fate.refused, kind=Kind.words))


_DEFAULT_TEXT = "Classify if the tweet is a complaint or not:"
_TRACKERS = {"none": "", "file_logger": "", "aim": "aim", "mlflow": "mlflow"}
_REPORTS = {"none": "", "aim": "aim", "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
_REMOVED = "removed from transformers"
_SECRET = "a command must not hold secrets; set the environment variable HF_TOKEN"
_VLLM = "run `fmstune merge --export vllm_lora` after the run"
_USE_FSDP = "use FSDP instead: launcher=fsdp"
_TPU = "fmstune does not train on TPUs"
_WRAPPED = "every block of the model is wrapped, whatever its size"
_FREE_PORT = "default: a free port, on one machine"

TUNING: Mapping[str, Flag] = {
    "model_name_or_path": _text("model.path", early="facebook/opt-125m"),
    "tokenizer_name_or_path": _text("model.tokenizer", why="the first version read it for prompt tuning only"),
    "torch_dtype": Flag("model.dtype", early="bfloat16"),
    "use_flash_attn": _switch(
        "model.attention", "flash_attention_2", "sdpa", why="default: auto, FlashAttention-2 if it can run, else sdpa"
    ),
    "training_data_path": _text("data.train"),
    "data_path": _text("data.train"),
    "validation_data_path": _text("data.eval", why="fmstune also compares base and tuned model on it"),
    "dataset_text_field": _text("data.text_field"),
    "response_template": _text("data.response_template", why="matched as text, not as tokens"),
    "max_seq_length": Flag("data.max_length", why="a row longer than the model's positions is an error and is not cut"),
    "packing": _switch("training.packing"),
    "output_dir": _text("output_dir", why="the model is in its folder `model`; a run is never overwritten"),
    "seed": Flag("seed"),
    "run_name": _text("name"),
    "peft_method": Flag("peft", values={"lora": "lora", "pt": "prompt_tuning", "none": "full"}, early="none"),
    "r": Flag("peft.r"),
    "lora_alpha": Flag("peft.lora_alpha", early="32"),
    "lora_dropout": Flag("peft.lora_dropout"),
    "target_modules": Flag("peft.target_modules", Kind.words, early=("q_proj", "v_proj")),
    "bias": Flag("peft.bias"),
    "num_virtual_tokens": Flag("peft.num_virtual_tokens"),
    "prompt_tuning_init": Flag("peft.prompt_tuning_init", early="TEXT"),
    "prompt_tuning_init_text": _text("peft.prompt_tuning_init_text", early=_DEFAULT_TEXT),
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
    "bf16": _switch("training.bf16"),
    "fp16": _switch("training.fp16"),
    "gradient_checkpointing": _switch("training.activation_checkpointing"),
    "include_tokens_per_second": _switch(
        "training.include_num_input_tokens_seen", "all", "no", why="tokens/s are always printed and in summary.json"
    ),
    "include_num_input_tokens_seen": _switch("training.include_num_input_tokens_seen", "all", "no"),
    "group_by_length": _switch("training.train_sampling_strategy", "group_by_length", "random"),
    "adafactor": _switch("training.optim", "adafactor", ""),
    "no_cuda": _switch("launcher.device", "cpu", ""),
    "use_cpu": _switch("launcher.device", "cpu", ""),
    "use_mps_device": _switch("launcher.device", "mps", ""),
    "resume_from_checkpoint": _text(
        "training.resume", values={"true": "", "false": ""}, why="the same command resumes an unfinished run"
    ),
    "report_to": Flag(
        "tracking", Kind.words, _REPORTS, why="early default: every installed tracker; metrics.jsonl is always written"
    ),
    "tracker": Flag("tracking", Kind.words, _TRACKERS),
    "trackers": Flag("tracking", Kind.words, _TRACKERS),
    "aim_repo": _text("tracking.aim.repo"),
    "aim_remote_server_ip": _text("tracking.aim.repo", why="with the port, as aim://HOST:PORT"),
    "aim_remote_server_port": Flag("tracking.aim.repo", why="with the address, as aim://HOST:PORT"),
    "experiment": _text("tracking.aim.experiment"),
    "fsdp": Flag("launcher", Kind.words, {"full_shard": "fsdp1", "shard_grad_op": "fsdp1", "hybrid_shard": "fsdp1"}),
    "fsdp_config": _text("launcher", why="its values become fields of the launcher"),
    "fsdp_transformer_layer_cls_to_wrap": _text("launcher.transformer_layer_cls_to_wrap"),
    **_dropped("set the environment variables HF_HOME and FMSTUNE_CACHE", "cache_dir"),
    **_dropped("a run folder is never overwritten; choose another output_dir", "overwrite_output_dir"),
    **_dropped("models are always saved as safetensors", "save_safetensors"),
    **_dropped("set tracking=tensorboard and tracking.tensorboard.log_dir", "logging_dir"),
    **_dropped("the run folder has metrics.jsonl with the values of every step", "training_logs_filename"),
    **_dropped("the model is in the folder `model` of output_dir", "save_model_dir"),
    **_dropped("the run folder has job.yaml and lock.json, which describe the run", "exp_metadata"),
    **_dropped("the early script ignored it", "do_train", "do_eval", "do_predict"),
    **_dropped(OWNED["disable_tqdm"], "disable_tqdm"),
    **_dropped(OWNED["remove_unused_columns"], "remove_unused_columns"),
    **_dropped(OWNED["label_names"], "label_names"),
    **_dropped("the launcher numbers its processes", "local_rank"),
    **_dropped("always NCCL on GPUs and gloo on CPUs", "ddp_backend"),
    **_dropped(_REMOVED, "fp16_opt_level", "fp16_backend", "half_precision_backend", "past_index"),
    **_dropped(_REMOVED, "use_legacy_prediction_loop"),
    **_dropped("no metric of fmstune reads the inputs", "include_inputs_for_metrics"),
    **_dropped("run a sweep with -m", "ray_scope"),
    **_dropped("the launcher distributes the rows", "dispatch_batches", "split_batches"),
    **_dropped(SHARE, "push_to_hub", "hub_private_repo", "hub_always_push"),
    **_dropped(SHARE, "push_to_hub_model_id", "push_to_hub_organization", "hub_model_id", "hub_strategy"),
    # one word: a note does not repeat the secret, so a word after it must not be taken for it
    **dict.fromkeys(("push_to_hub_token", "hub_token"), Flag(why=_SECRET, fate=Fate.dropped)),
    **_dropped(_VLLM, "post_process_vllm", "lora_post_process_for_vllm"),
    **_dropped("run `fmstune merge --model RUN --out DIR` after the run", "merge_model"),
    **_refused("set training.activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
    **_refused(_REMOVED, "jit_mode_eval", "use_ipex"),
    **_refused("set training.torch_compile", "torchdynamo"),
    **_refused(_TPU, "tpu_num_cores", "tpu_metrics_debug"),
    **_refused("fmstune does not support SageMaker", "mp_parameters"),
    **_refused(_WRAPPED, "fsdp_min_num_params"),
    **_refused(_USE_FSDP, "deepspeed"),
    **_refused(OWNED["accelerator_config"], "accelerator_config"),
    **_refused("the embedding grows by the added tokens only", "embedding_size_multiple_of"),
    **_refused("write it to a Jinja file: data=template data.format.template_file=FILE", "data_formatter_template"),
    **_refused("set data=chat and data.format.messages_field", "dataset_conversation_field"),
    **_refused("write it to a Jinja file and set model.chat_template=FILE", "chat_template"),
    **_refused("set data=chat, which trains the assistant's turns", "instruction_template"),
    **_refused("set model.special_tokens.extra_special_tokens", "add_special_tokens"),
    **_refused("list the sources in data.train, each with its format and weight", "data_config_path"),
    **_refused("set callbacks=early_stopping, or a condition in callbacks.stop_when", "trainer_controller_config_file"),
    **_refused("set model.quantization, such as 'model.quantization={load_in_4bit: true}'", "auto_gptq", "bnb_qlora"),
    **_refused("set model.kernels=liger for fused kernels", "fused_lora", "fast_kernels"),
    **_refused("set training.packing=true, which needs no padding and isolates rows", "padding_free", "multipack"),
}
"""Flags of `tuning/sft_trainer.py`."""

OF_METHOD: Mapping[str, tuple[str, ...]] = {
    "lora": ("r", "lora_alpha", "lora_dropout", "target_modules", "bias"),
    "pt": ("num_virtual_tokens", "prompt_tuning_init", "prompt_tuning_init_text"),
    "none": (),
}
"""The flags that each `peft_method` read; the early tool ignored the others."""

_UNUSED = "fmstune's launcher does not need it"
_MEETING = {
    **_dropped("always c10d", "rdzv_backend"),
    **_dropped("set launcher.rdzv_timeout, the seconds to wait for other machines", "rdzv_conf"),
    **_dropped("run the same command again to resume", "max_restarts"),
    **_dropped(_UNUSED, "monitor_interval", "role"),
    **_dropped("only the main process prints", "tee", "log_dir"),
}
"""Flags of torchrun that `accelerate launch` has too."""

LAUNCH: Mapping[str, Flag] = {
    "config_file": _text("launcher.config_file", why="the early tool's own file is launcher=fsdp1"),
    **{name: Flag(f"launcher.{name}") for name in accelerate_file.SAME_NAME},
    "main_process_port": Flag("launcher.main_process_port", why=_FREE_PORT),
    "num_cpu_threads_per_process": Flag("launcher.threads"),
    "cpu": _switch("launcher.device", "cpu", ""),
    "use_cpu": _switch("launcher.device", "cpu", ""),
    "multi_gpu": _switch("launcher", "ddp", ""),
    "use_fsdp": _switch("launcher", "fsdp1", ""),
    **{f"fsdp_{name}": Flag(f"launcher.{field}") for name, field in accelerate_file.FSDP_FIELDS.items()},
    "fsdp_version": Flag("launcher", values={"1": "fsdp1", "2": "fsdp"}, why="default: 1, as in accelerate"),
    "mixed_precision": Flag(
        "training", values={"no": "", "bf16": "bf16=true", "fp16": "fp16=true"}, why="training.bf16, training.fp16"
    ),
    "fsdp_activation_checkpointing": Flag("training.activation_checkpointing", values={"true": "true", "false": ""}),
    **_dropped("every block of the model is wrapped", "fsdp_auto_wrap_policy"),
    **_dropped("checkpoints and models are always full files", "fsdp_state_dict_type"),
    **_dropped("all processes start with the same weights", "fsdp_sync_module_states"),
    **_dropped("accelerate passed it to DeepSpeed only", "gradient_accumulation_steps", "gradient_clipping"),
    **_dropped(_UNUSED, "same_network", "quiet", "debug", "enable_cpu_affinity"),
    **_dropped("for TPUs only", "downcast_bf16", "main_training_function"),
    **_MEETING,
    **_refused(_WRAPPED, "fsdp_min_num_params"),
    **_refused("set the environment variable CUDA_VISIBLE_DEVICES before the command", "gpu_ids"),
    **_refused("set training.torch_compile", "dynamo_backend"),
    **_refused(_USE_FSDP, "use_deepspeed", "use_megatron_lm", "deepspeed_config_file", "zero_stage"),
    **_refused(_TPU, "tpu"),
}
"""Flags of `accelerate launch`, and keys of a job file's `accelerate_launch_args` or `multiGPU`."""

TORCHRUN: Mapping[str, Flag] = {
    "nproc_per_node": Flag(
        "launcher.num_processes", why="multiplied by the machines; `gpu` and `auto` mean one for each GPU"
    ),
    "nnodes": Flag("launcher.num_machines"),
    "node_rank": Flag("launcher.machine_rank"),
    "master_addr": _text("launcher.main_process_ip"),
    "master_port": Flag("launcher.main_process_port", why=_FREE_PORT),
    "rdzv_endpoint": _text("launcher.main_process_ip", why="HOST:PORT; the port is launcher.main_process_port"),
    **_dropped("not needed on one machine", "standalone"),
    **_dropped(_UNUSED, "use_env", "start_method"),
    **_dropped("always c10d", "rdzv_id"),
    **_dropped("only the main process prints", "redirects"),
    **_MEETING,
    **_refused("the script must be one of the early tool's", "no_python"),
}
"""Flags of `torchrun` and of `python -m torch.distributed.launch`."""

INFERENCE: Mapping[str, Flag] = {
    "model": _text("--model"),
    "text": _text("--text"),
    "text_file": _text("--text_file"),
    "out_file": _text("--out_file"),
    "base_model_name_or_path": _text("--base_model_name_or_path", why="adapter_config.json is not changed"),
    "max_new_tokens": Flag("--max_new_tokens"),
    "use_flash_attn": _switch("--attention", "flash_attention_2", ""),
    **_refused("fmstune does not support activated LoRA", "use_alora"),
}
"""Flags of `scripts/run_inference.py`, which are those of `fmstune generate`."""

HARNESS: Mapping[str, Flag] = {
    "model": _text("--model", why="hf and hf-causal only; model_args names the folder"),
    "model_args": _text("--model", why="the value of pretrained, or of peft; dtype becomes --dtype"),
    "tasks": _text("--tasks", why="hendrycksTest-* is mmlu today"),
    "num_fewshot": Flag("--num_fewshot"),
    "batch_size": Flag("--batch_size", why="default: 8; auto is not supported"),
    "limit": Flag("--limit"),
    "include_path": _text("--include_path"),
    "output_path": _text("--out_file", why="for a folder: harness.json in it"),
    "device": Flag("--device", why="default: the first visible GPU, else the CPU"),
    **_dropped("nothing is cached", "no_cache"),
    **_dropped("prompts and samples are not written", "write_out", "log_samples"),
    **_refused("fmstune never runs code from a model's repository", "trust_remote_code"),
}
"""Flags of lm-evaluation-harness: `main.py` of 2023, and `lm_eval` of today."""


def find_flag(name: str, flags: Mapping[str, Flag]) -> Flag | None:
    """The entry of a flag; TUNING has transformers' training arguments too."""
    field = upstream_fields.fields_of(upstream_fields.SFT_CONFIG).get(name)
    if name in flags or flags is not TUNING:
        return flags.get(name)
    if name in OWNED:
        return Flag(why=OWNED[name], fate=Fate.refused)
    if name in TRANSLATED or field is None:
        return None
    return Flag(f"training.{name}", Kind.switch if bool in field.primitives else Kind.plain)


def unknown_flag(name: str, flags: Mapping[str, Flag]) -> Problem:
    """The problem with a flag that the early tool did not have."""
    known = [*flags]
    if flags is TUNING:
        known += [flag for flag in upstream_fields.fields_of(upstream_fields.SFT_CONFIG) if flag not in OWNED]
    hint = did_you_mean(f"--{name}", [f"--{flag}" for flag in known]) or " (docs/migration.md lists the flags)"
    return Problem(f"--{name}", f"is not a flag of the early tool{hint}")
