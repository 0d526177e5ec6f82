"""Words that people bring from other tools, and the field or choice that each of them means here."""

import dataclasses
import typing
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

from fmstune.config import upstream_fields
from fmstune.config.job import LORA, Data, Job
from fmstune.config.renamed_fields import FORMAT_SETTINGS, OWNED
from fmstune.errors import did_you_mean
from fmstune.flatten import leaves

BROUGHT = {
    "model.path": "model_name_or_path model_name model_path model_id model.name base_model base_model_name_or_path"
    " pretrained pretrained_model_name_or_path hf_model checkpointer.checkpoint_dir",
    "model.revision": "model_revision",
    "model.tokenizer": "tokenizer_name tokenizer_name_or_path tokenizer_path",
    "model.dtype": "torch_dtype precision model_dtype compute_dtype",
    "model.attention": "attn_implementation attention_implementation use_flash_attn use_flash_attention flash_attention"
    " flash_attn flash_attention_2 use_flash_attention_2 attn",
    "model.chat_template": "chat_template_path",
    "model.adapter": "adapter_name_or_path adapter_path lora_model_dir lora_path peft_model_id",
    "model.quantization.load_in_4bit": "load_in_4bit qlora use_4bit quantization_bit",
    "model.quantization.load_in_8bit": "load_in_8bit use_8bit",
    "model.quantization.bnb_4bit_use_double_quant": "use_bnb_nested_quant double_quantization use_nested_quant",
    "data.train": "dataset dataset_name dataset_path dataset_dir datasets data_path data_file data_files data_dir"
    " train_file train_files train_path train_data train_dataset training_file training_data training_data_path"
    " data.path data.file data.name data.dataset",
    "data.eval": "eval_file eval_data eval_path eval_dataset validation validation_file validation_data"
    " validation_data_path valid_data val_data val_file dev_file test_file test_datasets",
    "data.eval_fraction": "val_set_size val_size validation_split validation_split_percentage eval_split test_size",
    "data.max_length": "max_seq_length max_seq_len max_len seq_len seq_length sequence_len sequence_length block_size"
    " cutoff_len context_length model_max_length max_input_length max_tokens max_source_length",
    "data.max_rows": "max_samples max_train_samples num_samples max_examples",
    "data.text_field": "dataset_text_field text_column",
    "data.response_template": "response_prefix response_part",
    "training.packing": "sample_packing pack use_packing packed dataset.packed",
    "training.learning_rate": "lr base_lr max_lr peak_lr init_lr",
    "training.num_train_epochs": "epochs epoch num_epochs n_epochs max_epochs train_epochs",
    "training.max_steps": "steps num_steps n_steps max_iters iters train_steps max_train_steps total_steps"
    " num_training_steps max_steps_per_epoch",
    "training.per_device_train_batch_size": "batch_size batchsize batch bs bsz train_batch_size micro_batch_size"
    " micro_bsz mbs per_device_batch_size train_micro_batch_size_per_gpu",
    "training.per_device_eval_batch_size": "eval_batch_size val_batch_size",
    "training.gradient_accumulation_steps": "grad_accum grad_acc gradient_accumulation accumulation_steps"
    " grad_accum_steps gradient_accumulation_step accumulate_grad_batches ga_steps",
    "training.warmup_steps": "warmup num_warmup_steps lr_warmup_steps warmup_proportion",
    "training.lr_scheduler_type": "scheduler lr_scheduler lr_schedule scheduler_type schedule",
    "training.optim": "optimizer optimizer_name optimizer_type optim_type",
    "training.weight_decay": "wd decay",
    "training.max_grad_norm": "grad_clip gradient_clipping clip_grad_norm gradient_clip_val max_norm clip_grad",
    "training.activation_checkpointing": "grad_checkpointing use_gradient_checkpointing grad_checkpoint"
    " enable_activation_checkpointing checkpoint_activations",
    "training.logging_steps": "log_interval log_every log_every_n_steps log_steps logging_interval log_freq",
    "training.save_steps": "save_interval save_every save_freq checkpoint_interval ckpt_interval",
    "training.eval_steps": "eval_interval eval_every val_check_interval eval_freq",
    "training.neftune_noise_alpha": "neftune noise_alpha neftune_alpha",
    "training.torch_compile": "compile use_compile",
    "training.resume": "resume_from_checkpoint resume resume_from auto_resume_from_checkpoints",
    "peft.r": "lora_r lora_rank rank",
    "peft.lora_alpha": "alpha",
    "peft.lora_dropout": "dropout",
    "peft.target_modules": "lora_target_modules lora_target lora_modules lora_attn_modules target_module",
    "peft.modules_to_save": "lora_modules_to_save",
    "peft.num_virtual_tokens": "virtual_tokens num_tokens prompt_length",
    "peft.use_rslora": "rslora",
    "peft.use_dora": "dora",
    "launcher.num_processes": "gpus num_gpus n_gpus n_gpu ngpus num_devices devices nproc_per_node nproc world_size",
    "launcher.num_machines": "nnodes num_nodes nodes n_nodes",
    "launcher.machine_rank": "node_rank",
    "launcher.main_process_ip": "master_addr",
    "launcher.main_process_port": "master_port",
    "launcher.threads": "num_threads omp_num_threads",
    "launcher.device=cpu": "use_cpu no_cuda",
    "model.kernels=liger": "liger use_liger enable_liger_kernel use_liger_kernel",
    "launcher=fsdp": "fsdp fsdp_config deepspeed deepspeed_config zero_stage use_fsdp",
    "peft=lora": "peft_method use_peft use_lora lora finetuning_type tuning_type peft_type adapter peft_config",
    "tracking=wandb": "report_to use_wandb wandb_project logger loggers tracker",
    "seed": "random_seed random_state manual_seed",
    "name": "run_name experiment_name job_name exp_name",
    "output_dir": "output output_path out out_dir outdir save_dir save_path run_dir checkpoint_dir",
    "evaluation.max_rows": "max_eval_samples",
}
"""By the name of today: words of TRL, axolotl, LLaMA-Factory, torchtune, torchrun and habit.

A word with a dot is only the whole name; a word without one is the last part of any name.
"""
_FIELDS = {word: field for field, words in BROUGHT.items() for word in words.split()}
_GROUPS = ("training", "data", "model", "peft", "launcher", "evaluation")
"""Where a field without its group is looked for, the likeliest first."""


def suggestion(path: str, known: Collection[str] = ()) -> str | None:
    """The field or choice that the unknown name `path` means, of which its own group has the fields `known`."""
    group, _, key = path.rpartition(".")
    word = key.lower().replace("-", "_")
    for found in (_FIELDS.get(path.lower()), _FIELDS.get(word), *_elsewhere(word)):
        if found is not None and found != path and _is_there(found, group, known):
            return found
    return None


def hint(path: str, known: Collection[str] = ()) -> str:
    """The suggestion to append to a message: a word of another tool, else a near name of its group, else of any."""
    if (found := suggestion(path, known)) is not None:
        return f"; did you mean {found!r}?"
    if near := did_you_mean(path.rpartition(".")[2], known):
        return near
    return _nearest_of_all(path) if "." not in path else ""


def unknown_names(key: str, value: Any, known: Collection[str]) -> list[str]:
    """The names to report of an unknown key: those within it where it is a group of another tool, such as `lora.r`."""
    inside = [".".join((key, *path)) for path, _ in leaves(value)] if isinstance(value, Mapping) else []
    brought = any(suggestion(name) for name in inside) and not did_you_mean(key, known)
    return inside if brought else [key]


def _is_there(found: str, group: str, known: Collection[str]) -> bool:
    """Whether the field exists, where its group is that of the unknown name: one method lacks fields of another."""
    of, _, name = found.partition("=")[0].rpartition(".")
    return of != group or not known or name in known


def _elsewhere(word: str) -> Iterator[str]:
    """The fields of this name in any group, and at the top of the job."""
    yield from (f"{group}.{word}" for group, names in _fields_of_groups().items() if word in names)
    yield from (field.name for field in dataclasses.fields(Job) if field.name == word)


def _nearest_of_all(word: str) -> str:
    names = {name: f"{group}.{name}" for group, fields in reversed(_fields_of_groups().items()) for name in fields}
    near = get_close_matches(word, names, n=1, cutoff=0.8)
    return f"; did you mean {names[near[0]]!r}?" if near else ""


@cache
def _fields_of_groups() -> dict[str, list[str]]:
    hints = typing.get_type_hints(Job)
    found: dict[str, list[str]] = {}
    for group in _GROUPS:
        if group == "training":
            found[group] = [name for name in upstream_fields.fields_of(upstream_fields.SFT_CONFIG) if name not in OWNED]
        elif group == "peft":
            found[group] = [*upstream_fields.fields_of(LORA)]
        else:
            found[group] = [field.name for field in dataclasses.fields(hints[group])]
            found[group] += FORMAT_SETTINGS if hints[group] is Data else ()
    return found
