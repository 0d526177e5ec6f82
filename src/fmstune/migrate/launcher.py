"""The early tool's launchers, accelerate and torchrun → fields of the launcher group."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import yaml

from fmstune.errors import Problem, UserError
from fmstune.launch import accelerate_file
from fmstune.migrate.flags import LAUNCH, TORCHRUN
from fmstune.migrate.words import (
    Became,
    Note,
    Translated,
    hydra_list,
    hydra_word,
    kept_or_renamed,
    moved_flag,
    old_flag,
    read_flags,
    single_value,
    switch_value,
    todays_word,
)

Read = Callable[[str], str | None]
"""The text of a file by its name; None if it cannot be read."""

Given = dict[str, list[str]]
"""Flags with their values."""

EARLY_FILE = "accelerate_fsdp_defaults.yaml"
"""The early tool's own configuration of accelerate, whose settings `launcher=fsdp1` has; it says one process."""

_PREFETCH = ("BACKWARD_PRE", "BACKWARD_POST", "NO_PREFETCH")


class Launched(NamedTuple):
    """A launcher's flags and the command that it launches."""

    flags: Given | None
    """As flags of `accelerate launch`; None without a launcher."""
    rest: list[str]
    """The script with its words."""
    spelled: Mapping[str, str] = {}
    """The flag that was typed, for each that has another name in `flags`."""
    notes: tuple[Note, ...] = ()
    """On dropped flags."""
    problems: tuple[Problem, ...] = ()


def read_accelerate_launch(words: Sequence[str]) -> Launched:
    """Read the flags of `accelerate launch`; `-m MODULE` stays in front of the script's words."""
    given, rest = read_flags(words, LAUNCH)
    if "module" in given:
        # accelerate reads it as a switch, so the word after it is the module
        rest = ["-m", *given.pop("module"), *rest]
    return Launched(given, rest)


def read_torchrun(words: Sequence[str]) -> Launched:
    """Read the flags of torchrun as flags of `accelerate launch`."""
    given, rest = read_flags(words, TORCHRUN)
    out = Translated()
    known = {name: values for name, values in given.items() if moved_flag(name, values, TORCHRUN, out) is not None}
    names = {flag: TORCHRUN[flag].field.partition(".")[2] for flag in known}
    flags = {names[name]: values for name, values in known.items()}
    spelled = {names[name]: old_flag(name, values) for name, values in known.items()}
    endpoint = _value(given, "rdzv_endpoint", "")
    if ":" in endpoint:
        host, _, port = endpoint.partition(":")
        flags |= {"main_process_ip": [host], "main_process_port": [port]}
        spelled["main_process_port"] = spelled["main_process_ip"]
    # the most machines of a range such as 1:4
    each, machines = _value(given, "nproc_per_node", "1"), _value(given, "nnodes", "1").rpartition(":")[2]
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
    flags["multi_gpu"] = []
    return Launched(flags, rest, spelled, tuple(out.notes), tuple(out.problems))


def _value(given: Given, name: str, default: str) -> str:
    return single_value(name, given[name]) if name in given else default


def add_launcher(given: Given, old_names: str, read: Read, out: Translated) -> None:
    """Add the launcher's fields to a translation; `old_names` stands for these flags in notes."""
    fsdp, flags = _split_fsdp_flags(given, out)
    file = _file(flags.pop("config_file", None), read, out)
    switches = {name: name in flags and switch_value(name, flags.pop(name)) for name in ("multi_gpu", "use_fsdp")}
    version = single_value("fsdp_version", flags.pop("fsdp_version", ["1"]))
    processes = _processes(flags, file)
    strategy = _strategy(switches, fsdp, file, processes, version)
    if strategy == "local":
        _one_process(flags, file, switches, out)
        return
    why = "FSDP1 is accelerate's default version; launcher=fsdp is FSDP2" if strategy == "fsdp1" else ""
    out.set(old_names, "launcher", strategy, why, Became.renamed)
    if file is not None and file.path is not None:
        out.set(old_flag("config_file", [file.path]), "launcher.config_file", hydra_word(file.path))
    elif file is not None and "num_processes" not in flags:
        out.fields["launcher.num_processes"] = "1"
    _same_names(flags, out)
    if strategy.startswith("fsdp"):
        out.fields |= _fsdp_fields(fsdp, out)


class _File(NamedTuple):
    """A configuration of accelerate."""

    path: str | None
    """None for the early tool's own file, if it cannot be read."""
    values: Mapping[str, Any]
    """Fields of the launcher."""


def _split_fsdp_flags(given: Given, out: Translated) -> tuple[Given, Given]:
    """FSDP's flags, and the launcher's other flags that have a field."""
    moved = {name: values for name, values in given.items() if moved_flag(name, values, LAUNCH, out) is not None}
    fsdp = {name: moved.pop(name) for name in [*moved] if name.startswith("fsdp_") and name != "fsdp_version"}
    return fsdp, moved


def _file(values: list[str] | None, read: Read, out: Translated) -> _File | None:
    """Read the configuration file; the early tool's own may be missing."""
    if values is None:
        return None
    path = single_value("config_file", values)
    text = read(path)
    if text is not None:
        tree = yaml.safe_load(text)
        precision = str(tree.get("mixed_precision") or "no") if isinstance(tree, dict) else "no"
        _precision(precision, f"{path}: mixed_precision {precision}", out)
        return _File(path, accelerate_file.values_of(tree, path))
    if PurePath(path).name == EARLY_FILE:
        out.note(Became.renamed, old_flag("config_file", [path]), "launcher=fsdp1", "which has the file's settings")
        return _File(None, {"strategy": "fsdp", "fsdp_version": 1, "num_processes": 1})
    raise UserError("--config_file", f"{path} cannot be read; give the path of this file, which sets the launcher")


def _processes(flags: Given, file: _File | None) -> str | None:
    """The number of processes; None for one a GPU."""
    if "num_processes" in flags:
        return single_value("num_processes", flags["num_processes"])
    return str(file.values["num_processes"]) if file is not None and "num_processes" in file.values else None


def _strategy(
    switches: Mapping[str, bool], fsdp: Given, file: _File | None, processes: str | None, version: str
) -> str:
    """The choice of the launcher group; one process is always `local`."""
    if processes == "1":
        return "local"
    if switches["use_fsdp"] or fsdp:
        return "fsdp" if version == "2" else "fsdp1"
    if file is not None and not switches["multi_gpu"]:
        choices = {"single": "local", "ddp": "ddp"}
        found = str(file.values["strategy"])
        return choices.get(found) or ("fsdp" if file.values.get("fsdp_version") == 2 else "fsdp1")
    return "ddp"


def _one_process(flags: Given, file: _File | None, switches: Mapping[str, bool], out: Translated) -> None:
    """Add `launcher=local` without the fields that connect several processes."""
    if any(switches.values()) or file is not None:
        out.note(Became.changed, "one process", "launcher=local", "one process needs neither DDP nor FSDP")
    out.fields["launcher"] = "local"
    if file is not None and "device" in file.values:
        out.fields["launcher.device"] = file.values["device"]
    for name in ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port"):
        if name in flags:
            out.drop(old_flag(name, flags.pop(name)), "one process connects to no other")
    _same_names(flags, out)


def _same_names(flags: Given, out: Translated) -> None:
    """Add each flag that has a field of the launcher."""
    for name, values in flags.items():
        flag = LAUNCH[name]
        if name == "mixed_precision":
            _precision(single_value(name, values), old_flag(name, values), out)
            continue
        value = (
            flag.values["true" if switch_value(name, values) else "false"]
            if flag.values
            else single_value(name, values)
        )
        if value:
            out.set(old_flag(name, values), flag.field, hydra_word(value, flag.kind))


def _precision(word: str, old: str, out: Translated) -> None:
    """Add accelerate's mixed precision as a field of training, since transformers read it from accelerate."""
    field, _, value = todays_word("mixed_precision", LAUNCH["mixed_precision"], word).partition("=")
    if field:
        out.set(old, f"training.{field}", value)


def _fsdp_fields(given: Given, out: Translated) -> dict[str, str]:
    """FSDP's flags as fields of the launcher, read as accelerate_file reads a configuration."""
    tree: dict[str, Any] = {}
    for name, values in given.items():
        value: Any = single_value(name, values)
        if value.lower() in ("true", "false"):
            value = value.lower() == "true"
        if LAUNCH[name].field == "launcher.backward_prefetch" and value not in _PREFETCH:
            # the early container's README has a value that accelerate does not know
            out.drop(old_flag(name, values), f"not one of {', '.join(_PREFETCH)}")
        elif name == "fsdp_activation_checkpointing":
            if value is True:
                out.set(old_flag(name, values), "training.activation_checkpointing", "true")
        else:
            tree[name] = value
    found = accelerate_file.fsdp_values(tree)
    found.pop("fsdp_version", None)
    fields = dict(_fields_of(found))
    for name in tree:
        field, old = LAUNCH[name].field, old_flag(name, given[name])
        out.note(kept_or_renamed(old, field), old, f"{field}={fields[field]}" if field in fields else field)
    return fields


def _fields_of(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Values of the launcher group as they are typed."""
    for name, value in found.items():
        if isinstance(value, list):
            yield f"launcher.{name}", hydra_list(value)
        elif value is not None:
            yield f"launcher.{name}", str(value).lower() if isinstance(value, bool) else str(value)


def read_fsdp_of_training(words: Sequence[str], config: str | None, read: Read) -> Given:
    """Read transformers' `--fsdp "full_shard auto_wrap"` and `--fsdp_config FILE` as flags of `accelerate launch`."""
    asked = " ".join(words).replace(",", " ").split()
    known = ("full_shard", "shard_grad_op", "hybrid_shard", "offload", "auto_wrap")
    wrong = [word for word in asked if word not in known]
    if wrong:
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
            key = name if name.startswith("fsdp_") else f"fsdp_{name}"
            listed = value if isinstance(value, list) else [value]
            found[key] = [",".join(str(one) for one in listed)]
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
