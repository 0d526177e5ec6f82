"""Names that `training` does not take as they are: those of the early tool, and those that another group owns."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from fmstune.config.metrics import OF_EVERY_OBJECTIVE


class Translation(NamedTuple):
    """What an early name is called today, and how its value changes."""

    name: str
    value: Callable[[Any], Any] = lambda value: value


def _warmup(ratio: Any) -> Any:
    try:
        number = float(ratio)
    except (TypeError, ValueError):
        return ratio  # it is refused as `warmup_steps`
    # SFTConfig reads `warmup_steps` below 1 as a ratio, so a ratio of exactly 1 would silently mean one step
    if not 0 <= number < 1:
        raise ValueError(f"must be in [0, 1), got {ratio}; set training.warmup_steps instead")
    return number


def _word(on: str, off: str, value: Any) -> str:
    """The word of today for true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, got {value!r}")
    return on if value else off


TRANSLATED: Mapping[str, Translation] = {
    "evaluation_strategy": Translation("eval_strategy"),
    "warmup_ratio": Translation("warmup_steps", _warmup),
    "gradient_checkpointing": Translation("activation_checkpointing"),
    "gradient_checkpointing_kwargs": Translation("activation_checkpointing_kwargs"),
    "group_by_length": Translation("train_sampling_strategy", partial(_word, "group_by_length", "random")),
    "include_tokens_per_second": Translation("include_num_input_tokens_seen", partial(_word, "all", "no")),
    "per_gpu_train_batch_size": Translation("per_device_train_batch_size"),
    "per_gpu_eval_batch_size": Translation("per_device_eval_batch_size"),
}
"""Early names of training arguments (transformers 4 and the flag-driven tool) that still say what they said."""

_LAUNCHER, SHARE = "the launcher group sets it", "share the model after the run: fmstune push RUN --repo USER/NAME"

OWNED: Mapping[str, str] = {
    # fields of SFTConfig that another group sets
    "max_length": "data.max_length sets it",
    "dataset_text_field": "data.text_field sets it",
    "truncation_mode": "data.over_length sets what happens to long rows",
    "completion_only_loss": "data.response_template and data.format say what is trained",
    "assistant_only_loss": "data=chat with data.format.train says which turns are trained",
    "dataset_kwargs": "the data group prepares the rows",
    "dataset_num_proc": "rows are tokenised in one process, with launcher.threads threads",
    "chat_template_path": "model.chat_template names the template",
    **{name: f"model.special_tokens.{name} sets it" for name in ("eos_token", "pad_token")},
    "model_init_kwargs": "the model group sets how the model is loaded",
    "use_liger_kernel": "model.kernels=liger sets it",
    "liger_kernel_config": "model.kernels=liger takes all of Liger's kernels but those of the loss, which TRL fuses",
    "trust_remote_code": "fmstune runs no code from a model's repository",
    **{name: f"the top-level {name} sets it" for name in ("seed", "output_dir")},
    "run_name": "the top-level name sets it",
    "report_to": "the tracking group says where metrics go, such as tracking=aim",
    "use_cpu": "launcher.device=cpu sets it",
    **dict.fromkeys(("local_rank", "ddp_backend", "fsdp", "fsdp_config"), _LAUNCHER),
    "deepspeed": f"{_LAUNCHER}, and DeepSpeed is not one of its choices",
    **dict.fromkeys(("accelerator_config", "parallelism_config"), _LAUNCHER),
    "resume_from_checkpoint": "training.resume sets it",
    "do_train": "the verb says what to do: fmstune train",
    **dict.fromkeys(("do_eval", "do_predict"), "the evaluation group says what is evaluated"),
    "disable_tqdm": "fmstune shows its own progress",
    "remove_unused_columns": "the data group prepares the columns",
    "label_names": "the data group prepares the labels",
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo"), SHARE),
    **dict.fromkeys(("hub_always_push", "hub_revision"), SHARE),
    "hub_token": "secrets stay out of a job; set the environment variable HF_TOKEN",
    # flags of the early tool that are fields of other groups now
    "max_seq_length": "it is data.max_length now",
    "torch_dtype": "it is model.dtype now",
    "use_flash_attn": "it is model.attention now (flash_attention_2, sdpa)",
    "model_name_or_path": "it is model.path now",
    "tokenizer_name_or_path": "it is model.tokenizer now",
    "training_data_path": "it is data.train now",
    "validation_data_path": "it is data.eval now",
    "response_template": "it is data.response_template now",
    "peft_method": "choose a group, such as peft=lora, peft=prompt_tuning or peft=full",
    **{name: f"it is peft.{name} now" for name in ("r", "lora_alpha", "lora_dropout", "target_modules")},
    "no_cuda": "it is launcher.device=cpu now",
    "overwrite_output_dir": "a run folder is never overwritten; choose another output_dir",
    "logging_dir": "it is tracking.tensorboard.log_dir now",
    "tracker": "choose a group, such as tracking=aim",
    "trackers": "choose several at once, such as tracking=[aim,tensorboard]",
    "aim_repo": "it is tracking.aim.repo now",
    "aim_remote_server_ip": "give the server as tracking.aim.repo=aim://HOST:PORT",
    "aim_remote_server_port": "give the server as tracking.aim.repo=aim://HOST:PORT",
    "experiment": "it is tracking.aim.experiment now",
    "save_safetensors": "models are saved as safetensors only",
    "cache_dir": "the environment variables HF_HOME and FMSTUNE_CACHE set it",
}
"""Names that `training` refuses, each with where the setting lives."""

USUAL_RATE = "usual_learning_rate"
"""The key of a peft file that `training.learning_rate` refers to, and of `training` where `auto` looks around it."""
OWN: tuple[str, ...] = ("resume", USUAL_RATE)
"""Keys of `training` that are fmstune's and never reach SFTConfig."""
MOVED_TARGETS = {"fmstune.adapters.": "fmstune.models.adapters.", "fmstune.formats.": "fmstune.data.formats."}
"""Modules whose functions frozen jobs of before name as `_target_`, and where these are now."""
COMPARE_BY = "objective"
"""The name of `compare_by` before `objective` became a group."""
FORMAT_SETTINGS = ("text_field", "response_template")
"""Settings of `data.format` that may also be given as fields of `data`."""


def with_compare_by(tree: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """Return the job's tree with the number that compares runs under its name of today, and a note where it moved."""
    if COMPARE_BY not in tree or isinstance(tree[COMPARE_BY], Mapping):
        return tree, []
    todays = dict(tree)
    figure = todays.pop(COMPARE_BY)
    return (todays, []) if figure is None else ({**todays, "compare_by": figure}, [_compare_by_note(figure)])


def with_compare_by_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words of a command with `objective=FIGURE` as `compare_by=FIGURE`, and a note for each."""
    todays, notes = [], []
    for word in words:
        name, _, value = word.partition("=")
        if name.lstrip("+") == COMPARE_BY and all("." in one or one in OF_EVERY_OBJECTIVE for one in value.split(",")):
            word = f"{name.removesuffix(COMPARE_BY)}compare_by={value}"
            notes.append(_compare_by_note(value))
        todays.append(word)
    return todays, notes


def _compare_by_note(figure: Any) -> str:
    return f"objective={figure} is compare_by={figure} now; objective says what a model is trained for"


def with_todays_targets(tree: Any) -> Any:
    """The tree with each `_target_` of fmstune's own under its name of today."""
    if isinstance(tree, list):
        return [with_todays_targets(value) for value in tree]
    if not isinstance(tree, Mapping):
        return tree
    todays = {key: with_todays_targets(value) for key, value in tree.items()}
    for former, now in MOVED_TARGETS.items():
        if str(target := todays.get("_target_")).startswith(former):
            todays["_target_"] = now + str(target).removeprefix(former)
    return todays


def with_format_settings(data: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The group `data` with these settings in its format, and the names of those that its format does not have."""
    rest = dict(data)
    given = {name: rest.pop(name) for name in FORMAT_SETTINGS if name in data}
    format = data.get("format")
    if not isinstance(format, Mapping):
        return rest, []
    moved = {name: value for name, value in given.items() if name in format}
    unused = [name for name, value in given.items() if name not in format and value is not None]
    return {**rest, "format": {**format, **moved}}, unused
