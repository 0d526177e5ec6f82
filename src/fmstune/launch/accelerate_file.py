"""A user's own accelerate YAML → values of the launcher group; what this tool would not do as it says is refused.

The names are those of `accelerate config` (accelerate/commands/config/config_args.py and cluster.py, 1.15).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fmstune.errors import Problem, UserError, did_you_mean, raise_if_any

_STRATEGIES = {"FSDP": "fsdp", "MULTI_GPU": "ddp", "MULTI_CPU": "ddp", "NO": "single"}
_SAME_NAME = ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port")
_WITHOUT_EFFECT = (
    "compute_environment",
    "debug",
    "downcast_bf16",
    "enable_cpu_affinity",
    "main_training_function",
    "rdzv_backend",
    "same_network",
    "tpu_env",
    "tpu_use_cluster",
    "tpu_use_sudo",
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
_SHARDING = {
    "1": "full_shard",
    "2": "shard_grad_op",
    "4": "hybrid_shard",
    "full_shard": "full_shard",
    "shard_grad_op": "shard_grad_op",
    "hybrid_shard": "hybrid_shard",
    "true": "full_shard",
    "false": "shard_grad_op",
}
"""Numbers are torch's ShardingStrategy; true and false are `fsdp_reshard_after_forward` of FSDP2."""


def values(path: Path) -> dict[str, Any]:
    """Fields of the launcher group by name, as the file has them; raises UserError with all that does not go."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        reason = getattr(err, "strerror", None) or " ".join(str(err).split())
        raise UserError("launcher.config_file", f": {path} cannot be read ({reason}); give an accelerate YAML") from err
    return values_of(tree, path)


def values_of(tree: Any, path: Path | str) -> dict[str, Any]:
    """The same of a file that was read; `path` names it."""
    if not isinstance(tree, dict):
        raise UserError("launcher.config_file", f": {path} is not a mapping of settings; give an accelerate YAML")
    problems: list[Problem] = []
    found = {**_top(tree, problems), **_fsdp(tree.get("fsdp_config") or {}, problems)}
    raise_if_any(Problem("launcher.config_file", f": {path}: {problem}") for problem in problems)
    return found


def _top(tree: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    found: dict[str, Any] = {name: tree[name] for name in _SAME_NAME if tree.get(name) is not None}
    known = (*_SAME_NAME, *_WITHOUT_EFFECT, *_REFUSED_WHEN_SET, "distributed_type", "mixed_precision", "use_cpu")
    for name in tree:
        if name not in (*known, "fsdp_config", "gpu_ids"):
            problems.append(Problem(name, f"is unknown{did_you_mean(str(name), known)}"))
    for name, hint in _REFUSED_WHEN_SET.items():
        if tree.get(name):
            problems.append(Problem(name, f"is not taken ({hint}); leave it out"))
    kind = str(tree.get("distributed_type", "NO")).upper()
    if kind in _STRATEGIES:
        found["strategy"] = _STRATEGIES[kind]
    else:
        problems.append(Problem("", f"distributed_type {kind} is not one of {', '.join(_STRATEGIES)}"))
    if str(tree.get("gpu_ids") or "all") != "all":
        problems.append(
            Problem("", f"gpu_ids {tree['gpu_ids']} is not taken; set the environment variable CUDA_VISIBLE_DEVICES")
        )
    if str(tree.get("mixed_precision") or "no").lower() not in ("no", "false", "bf16", "fp16"):
        problems.append(
            Problem("", f"mixed_precision {tree['mixed_precision']} is not taken; model.dtype sets the precision")
        )
    if tree.get("use_cpu"):
        found["device"] = "cpu"
    return found


def fsdp_values(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the launcher group that settings of FSDP come to; raises UserError with all that does not go."""
    problems: list[Problem] = []
    found = _fsdp(tree, problems)
    raise_if_any(problems)
    return found


def _fsdp(tree: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """Values of `fsdp_config`; a file without a version means 1 (accelerate/utils/dataclasses.py)."""
    if not tree:
        return {}
    found: dict[str, Any] = {"fsdp_version": tree.get("fsdp_version", 1)}
    for name, value in tree.items():
        short = str(name).removeprefix("fsdp_")
        if short in _FSDP:
            try:
                found |= _FSDP[short](value)
            except ValueError as err:
                problems.append(Problem(name, f"{err}"))
        else:
            known = [f"fsdp_{key}" for key in _FSDP]
            problems.append(Problem(name, f"is unknown{did_you_mean(str(name), known)}"))
    return found


def _named(name: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {name: value}


def _sharding(value: Any) -> dict[str, Any]:
    word = str(value).lower()
    if word not in _SHARDING:
        raise ValueError(f"{value} is not taken; full_shard, shard_grad_op and hybrid_shard are, and launcher=ddp")
    return {"sharding_strategy": _SHARDING[word]}


def _only(*allowed: str, hint: str) -> Callable[[Any], dict[str, Any]]:
    """A setting that has one value here."""

    def check(value: Any) -> dict[str, Any]:
        if str(value).upper() not in allowed:
            raise ValueError(f"{value} is not taken; {hint}")
        return {}

    return check


def _blocks(value: Any) -> dict[str, Any]:
    names = [name.strip() for name in str(value).split(",")] if isinstance(value, str) else value
    return {"transformer_layer_cls_to_wrap": names or None}


_FSDP: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "version": lambda value: {"fsdp_version": value},
    "sharding_strategy": _sharding,
    "reshard_after_forward": _sharding,
    "offload_params": _named("cpu_offload"),
    "cpu_ram_efficient_loading": _named("cpu_ram_efficient_loading"),
    "transformer_layer_cls_to_wrap": _blocks,
    # the early tool's fixture has the second name, which accelerate 1.15 takes and does not use
    "backward_prefetch": _named("backward_prefetch"),
    "backward_prefetch_policy": _named("backward_prefetch"),
    "forward_prefetch": _named("forward_prefetch"),
    "use_orig_params": _named("use_orig_params"),
    "auto_wrap_policy": _only("TRANSFORMER_BASED_WRAP", hint="the model's blocks are wrapped, so leave it out"),
    "state_dict_type": _only("FULL_STATE_DICT", hint="checkpoints and models are ordinary files, so leave it out"),
    "sync_module_states": _only("TRUE", hint="all processes start from the same weights, so leave it out"),
    "activation_checkpointing": _only("FALSE", hint="training.activation_checkpointing=true sets it"),
    "activation_checkpointing_offload": _only("FALSE", hint="training.activation_offloading=true sets it"),
    "min_num_params": _only("0", hint="the model's blocks are wrapped, so leave it out"),
}


def taken(launcher: Mapping[str, Any], on_command_line: frozenset[str]) -> dict[str, Any]:
    """What the `config_file` of the launcher group says, where the command line does not say otherwise.

    `on_command_line` has the words' keys, such as `launcher` and `launcher.num_processes`.
    Raises UserError where the file is for another launcher than the one that was chosen.
    """
    path = launcher.get("config_file")
    if path is None:
        return {}
    found = values(Path(path).expanduser())
    strategy = found["strategy"]
    if "launcher" in on_command_line and launcher.get("strategy", "single") != strategy:
        choice = {"single": "local"}.get(strategy, strategy)
        raise UserError("launcher.config_file", f": {path} is for launcher={choice}; choose it, or another file")
    return {name: value for name, value in found.items() if f"launcher.{name}" not in on_command_line}
