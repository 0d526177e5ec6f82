"""The early tool's launchers, accelerate and torchrun → fields of the launcher group."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import yaml

from fmstune.config.choices import Prefetch
from fmstune.errors import UserError
from fmstune.launch import accelerate_file
from fmstune.migrate.flags import LAUNCH, TORCHRUN
from fmstune.migrate.words import (
    Became,
    Given,
    Translation,
    hydra_list,
    hydra_word,
    kept_or_renamed,
    moved_flag,
    old_flag,
    read_flags,
    single_value,
    switch_value,
    todays_value,
    todays_word,
)

Read = Callable[[str], str | None]
"""The text of a file by its name; None if it cannot be read."""


class Launched(NamedTuple):
    """A launcher's flags and the command that it launches."""

    flags: Given | None
    """As flags of `accelerate launch`; None without a launcher."""
    rest: list[str]
    """The script with its words."""
    spelled: Mapping[str, str] = {}
    """The flag that was typed, for each that has another name in `flags`."""


def read_accelerate_launch(words: Sequence[str]) -> Launched:
    """Read the flags of `accelerate launch`; `-m MODULE` stays in front of the script's words."""
    given, rest = read_flags(words, LAUNCH)
    if "module" in given:
        # accelerate reads it as a switch, so the word after it is the module
        rest = ["-m", *given.pop("module"), *rest]
    return Launched(given, rest)


def read_torchrun(words: Sequence[str], out: Translation) -> Launched:
    """Read the flags of torchrun as flags of `accelerate launch`."""
    given, rest = read_flags(words, TORCHRUN)
    flags: Given = {}
    spelled: dict[str, str] = {}
    for name, values in given.items():
        if (flag := moved_flag(name, values, TORCHRUN, out)) is not None:
            todays = flag.field.partition(".")[2]
            flags[todays], spelled[todays] = values, old_flag(name, values)
    endpoint = single_value("rdzv_endpoint", given.get("rdzv_endpoint", [""]))
    if ":" in endpoint:
        host, _, port = endpoint.partition(":")
        flags |= {"main_process_ip": [host], "main_process_port": [port]}
        spelled["main_process_port"] = spelled["main_process_ip"]
    each = single_value("nproc_per_node", given.get("nproc_per_node", ["1"]))
    # the most machines of a range such as 1:4
    machines = single_value("nnodes", given.get("nnodes", ["1"])).rpartition(":")[2]
    spelled.setdefault("num_processes", "--nproc_per_node was left out")
    if each in ("gpu", "auto"):
        flags.pop("num_processes", None)
    elif each.isdigit() and machines.isdigit():
        flags["num_processes"] = [str(int(each) * int(machines))]
    elif machines == "1":
        flags["num_processes"] = [each]
    else:
        counted = ": launcher.num_processes counts the processes of all machines; give a number"
        out.problem(spelled["num_processes"], counted)
    return Launched({**flags, "multi_gpu": []}, rest, spelled)


def add_launcher(given: Given, old_names: str, read: Read, out: Translation) -> None:
    """Add the launcher's fields to a translation; `old_names` stands for these flags in notes."""
    flags = {name: values for name, values in given.items() if moved_flag(name, values, LAUNCH, out) is not None}
    fsdp = {name: flags.pop(name) for name in [*flags] if name.startswith("fsdp_") and name != "fsdp_version"}
    file = _file(flags.pop("config_file", None), read, out)
    multi_gpu, use_fsdp = (name in flags and switch_value(name, flags.pop(name)) for name in ("multi_gpu", "use_fsdp"))
    version = single_value("fsdp_version", flags.pop("fsdp_version", ["1"]))
    if single_value("num_processes", flags.get("num_processes", [str(file.get("num_processes"))])) == "1":
        strategy = "local"
    elif use_fsdp or fsdp:
        strategy = "fsdp" if version == "2" else "fsdp1"
    elif file and not multi_gpu:
        of_version = "fsdp" if file.get("fsdp_version") == 2 else "fsdp1"
        strategy = {"single": "local", "ddp": "ddp"}.get(file["strategy"], of_version)
    else:
        strategy = "ddp"
    if strategy == "local":
        # without the fields that connect several processes
        if multi_gpu or use_fsdp or file:
            out.note(Became.changed, "one process", "launcher=local", "one process needs neither DDP nor FSDP")
        out.fields["launcher"] = "local"
        if "device" in file:
            out.fields["launcher.device"] = file["device"]
        for name in accelerate_file.SAME_NAME:
            if name in flags:
                out.drop(old_flag(name, flags.pop(name)), "one process connects to no other")
        _same_names(flags, out)
        return
    why = "FSDP1 is accelerate's default version; launcher=fsdp is FSDP2" if strategy == "fsdp1" else ""
    out.set(old_names, "launcher", strategy, why, Became.renamed)
    if path := file.get("config_file"):
        out.set(old_flag("config_file", [path]), "launcher.config_file", hydra_word(path))
    elif file and "num_processes" not in flags:
        out.fields["launcher.num_processes"] = "1"
    _same_names(flags, out)
    if strategy.startswith("fsdp"):
        out.fields |= _fsdp_fields(fsdp, out)


def _file(values: list[str] | None, read: Read, out: Translation) -> dict[str, Any]:
    """The configuration file as fields of the launcher, `config_file` too unless it is the early tool's own."""
    if values is None:
        return {}
    path = single_value("config_file", values)
    text = read(path)
    if text is not None:
        tree = yaml.safe_load(text)
        precision = str(tree.get("mixed_precision") or "no") if isinstance(tree, dict) else "no"
        _precision(precision, f"{path}: mixed_precision {precision}", out)
        return {**accelerate_file.values_of(tree, path), "config_file": path}
    # the early tool's own configuration of accelerate, whose settings `launcher=fsdp1` has; it says one process
    if PurePath(path).name == "accelerate_fsdp_defaults.yaml":
        out.note(Became.renamed, old_flag("config_file", [path]), "launcher=fsdp1", "which has the file's settings")
        return {"strategy": "fsdp", "fsdp_version": 1, "num_processes": 1}
    raise UserError("--config_file", f"{path} cannot be read; give the path of this file, which sets the launcher")


def _same_names(flags: Given, out: Translation) -> None:
    for name, values in flags.items():
        if name == "mixed_precision":
            _precision(single_value(name, values), old_flag(name, values), out)
        elif value := todays_value(name, LAUNCH[name], values):
            out.set(old_flag(name, values), LAUNCH[name].field, value)


def _precision(word: str, old: str, out: Translation) -> None:
    """Add accelerate's mixed precision as a field of training, since transformers read it from accelerate."""
    field, _, value = todays_word("mixed_precision", LAUNCH["mixed_precision"], word).partition("=")
    if field:
        out.set(old, f"training.{field}", value)


def _fsdp_fields(given: Given, out: Translation) -> dict[str, str]:
    """FSDP's flags as fields of the launcher, read as accelerate_file reads a configuration."""
    tree: dict[str, Any] = {}
    for name, values in given.items():
        word = single_value(name, values)
        value = {"true": True, "false": False}.get(word.lower(), word)
        if LAUNCH[name].field == "launcher.backward_prefetch" and value not in list(Prefetch):
            # the early container's README has a value that accelerate does not know
            out.drop(old_flag(name, values), f"not one of {', '.join(Prefetch)}")
        elif name != "fsdp_activation_checkpointing":
            tree[name] = value
        elif value is True:
            out.set(old_flag(name, values), "training.activation_checkpointing", "true")
    found = accelerate_file.fsdp_values(tree).items()
    fields = {f"launcher.{name}": _typed(value) for name, value in found if value is not None}
    fields.pop("launcher.fsdp_version", None)
    for name in tree:
        field, old = LAUNCH[name].field, old_flag(name, given[name])
        out.note(kept_or_renamed(old, field), old, f"{field}={fields[field]}" if field in fields else field)
    return fields


def _typed(value: Any) -> str:
    if isinstance(value, list):
        return hydra_list(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def read_fsdp_of_training(words: Sequence[str], config: str | None, read: Read) -> Given:
    """Read transformers' `--fsdp "full_shard auto_wrap"` and `--fsdp_config FILE` as flags of `accelerate launch`."""
    asked = " ".join(words).replace(",", " ").split()
    known = ("full_shard", "shard_grad_op", "hybrid_shard", "offload", "auto_wrap")
    if wrong := [word for word in asked if word not in known]:
        raise UserError("--fsdp", f"{wrong[0]} is not supported; choose from {', '.join(known)}")
    found: Given = {"use_fsdp": []}
    for word in known[:3]:
        if word in asked:
            found["fsdp_sharding_strategy"] = [word]
    if "offload" in asked:
        found["fsdp_offload_params"] = ["true"]
    if config is not None:
        text = config if config.startswith("{") else read(config)
        if text is None:
            raise UserError("--fsdp_config", f"{config} cannot be read; give the path of this file, or remove the flag")
        for name, value in json_object(text, f"--fsdp_config {config}").items():
            listed = value if isinstance(value, list) else [value]
            found[f"fsdp_{name.removeprefix('fsdp_')}"] = [",".join(map(str, listed))]
    return found


def json_object(text: str, name: str) -> dict[str, Any]:
    """Parse a JSON object; raises UserError with the place of a syntax error."""
    try:
        tree = json.loads(text)
    except ValueError as err:
        raise UserError(name, f": broken JSON ({err})") from err
    if not isinstance(tree, dict):
        raise UserError(name, f": expected a JSON object of flags, found {type(tree).__name__}")
    return tree
