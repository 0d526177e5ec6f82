"""A user's own accelerate YAML → values of the launcher group; what this tool would not do as it says is refused.

The names are those of `accelerate config` (accelerate/commands/config/config_args.py and cluster.py, 1.15).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fmstune.errors import Problem, UserError, collect_problems, did_you_mean, raise_if_any
from fmstune.files import refuse_pipe, user_path

_STRATEGIES = {"FSDP": "fsdp", "MULTI_GPU": "ddp", "MULTI_CPU": "ddp", "NO": "single"}
SAME_NAME = ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port")
_WITHOUT_EFFECT = (
    *("compute_environment", "debug", "downcast_bf16", "enable_cpu_affinity", "main_training_function"),
    *("rdzv_backend", "same_network", "tpu_env", "tpu_use_cluster", "tpu_use_sudo"),
)
"""Taken and not used: the rendezvous is c10d always, the function is the runner, and there is no TPU."""
_REFUSED_WHEN_SET = {
    "deepspeed_config": "FSDP is what shards here",
    "megatron_lm_config": "FSDP is what shards here",
    "parallelism_config": "it is not one of the launcher's settings",
    "fp8_config": "model.dtype and training.bf16 set the precision",
    "mpirun_config": "processes are started by torch's elastic launcher",
    "dynamo_config": "set training.torch_compile",
}
_TAKEN = {
    "gpu_ids": (("all",), "set the environment variable CUDA_VISIBLE_DEVICES"),
    "mixed_precision": (("no", "false", "bf16", "fp16"), "model.dtype sets the precision"),
}
_SHARDING = {
    **{name: name for name in ("full_shard", "shard_grad_op", "hybrid_shard")},
    "1": "full_shard",
    "2": "shard_grad_op",
    "4": "hybrid_shard",
    "true": "full_shard",
    "false": "shard_grad_op",
}
"""Numbers are torch's ShardingStrategy; true and false are `fsdp_reshard_after_forward` of FSDP2."""
FSDP_FIELDS = {
    "version": "fsdp_version",
    "sharding_strategy": "sharding_strategy",
    "reshard_after_forward": "sharding_strategy",
    "offload_params": "cpu_offload",
    # the early tool's fixture has the second name, which accelerate 1.15 takes and does not use
    "backward_prefetch": "backward_prefetch",
    "backward_prefetch_policy": "backward_prefetch",
    "cpu_ram_efficient_loading": "cpu_ram_efficient_loading",
    "transformer_layer_cls_to_wrap": "transformer_layer_cls_to_wrap",
    "forward_prefetch": "forward_prefetch",
    "use_orig_params": "use_orig_params",
}
"""The field of the launcher group for each setting of `fsdp_config`, without `fsdp_` before its name."""
_FSDP_FIXED = {
    "auto_wrap_policy": ("TRANSFORMER_BASED_WRAP", "the model's blocks are wrapped, so leave it out"),
    "state_dict_type": ("FULL_STATE_DICT", "checkpoints and models are ordinary files, so leave it out"),
    "sync_module_states": ("TRUE", "all processes start from the same weights, so leave it out"),
    "activation_checkpointing": ("FALSE", "training.activation_checkpointing=true sets it"),
    "activation_checkpointing_offload": ("FALSE", "training.activation_offloading=true sets it"),
    "min_num_params": ("0", "the model's blocks are wrapped, so leave it out"),
}
"""The one value of each other setting, and what to do about another."""


def values(path: Path) -> dict[str, Any]:
    """Fields of the launcher group by name, as the file has them; raises UserError with all that does not go."""
    refuse_pipe("launcher.config_file", path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as err:
        reason = getattr(err, "strerror", None) or " ".join(str(err).split())
        raise UserError("launcher.config_file", f": {path} cannot be read ({reason}); give an accelerate YAML") from err
    return values_of(tree, path)


def values_of(tree: Any, path: Path | str) -> dict[str, Any]:
    """The same of a file that was read; `path` names it."""
    if not isinstance(tree, dict):
        raise UserError("launcher.config_file", f": {path} is not a mapping of settings; give an accelerate YAML")
    problems: list[Problem] = []
    found = _top(tree, problems)
    with collect_problems(problems):
        found |= fsdp_values(tree.get("fsdp_config") or {})
    raise_if_any(Problem("launcher.config_file", f": {path}: {problem}") for problem in problems)
    return found


def _top(tree: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    found: dict[str, Any] = {name: tree[name] for name in SAME_NAME if tree.get(name) is not None}
    known = (*SAME_NAME, *_WITHOUT_EFFECT, *_REFUSED_WHEN_SET, *_TAKEN, "distributed_type", "use_cpu", "fsdp_config")
    problems += [Problem(name, f"is unknown{did_you_mean(str(name), known)}") for name in tree if name not in known]
    for name, hint in _REFUSED_WHEN_SET.items():
        if tree.get(name):
            problems.append(Problem(name, f"is not taken ({hint}); leave it out"))
    kind = str(tree.get("distributed_type", "NO")).upper()
    if kind in _STRATEGIES:
        found["strategy"] = _STRATEGIES[kind]
    else:
        problems.append(Problem("distributed_type", f"{kind} is not one of {', '.join(_STRATEGIES)}"))
    for name, (words, hint) in _TAKEN.items():
        if str(tree.get(name) or words[0]).lower() not in words:
            problems.append(Problem(name, f"{tree[name]} is not taken; {hint}"))
    if tree.get("use_cpu"):
        found["device"] = "cpu"
    return found


def fsdp_values(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the launcher group for settings of `fsdp_config`; raises UserError with all that are not taken."""
    problems: list[Problem] = []
    # a file without a version means 1 (accelerate/utils/dataclasses.py)
    found: dict[str, Any] = {"fsdp_version": tree.get("fsdp_version", 1)} if tree else {}
    for name, value in tree.items():
        short = str(name).removeprefix("fsdp_")
        field, word = FSDP_FIELDS.get(short), str(value).lower()
        only, hint = _FSDP_FIXED.get(short, (None, ""))
        if field == "sharding_strategy" and word not in _SHARDING:
            text = f"{value} is not taken; full_shard, shard_grad_op and hybrid_shard are, and launcher=ddp"
            problems.append(Problem(name, text))
        elif field == "sharding_strategy":
            found[field] = _SHARDING[word]
        elif field == "transformer_layer_cls_to_wrap":
            found[field] = ([name.strip() for name in value.split(",")] if isinstance(value, str) else value) or None
        elif field is not None:
            found[field] = value
        elif only is None:
            known = [f"fsdp_{key}" for key in (*FSDP_FIELDS, *_FSDP_FIXED)]
            problems.append(Problem(name, f"is unknown{did_you_mean(str(name), known)}"))
        elif word != only.lower():
            problems.append(Problem(name, f"{value} is not taken; {hint}"))
    raise_if_any(problems)
    return found


def taken(launcher: Mapping[str, Any], on_command_line: frozenset[str]) -> dict[str, Any]:
    """What the launcher group's `config_file` says, without the fields whose keys are on the command line."""
    path = launcher.get("config_file")
    if not isinstance(path, str | int | float) or isinstance(path, bool):
        return {}  # none is given, or freezing says that it must be text
    found = values(user_path(str(path)))
    strategy = found["strategy"]
    if "launcher" in on_command_line and launcher.get("strategy", "single") != strategy:
        choice = {"single": "local"}.get(strategy, strategy)
        raise UserError("launcher.config_file", f": {path} is for launcher={choice}; choose it, or another file")
    return {name: value for name, value in found.items() if f"launcher.{name}" not in on_command_line}
