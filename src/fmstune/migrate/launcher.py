"""How the early tool was started → fields of the launcher group."""

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
    by_word,
    moved,
    moves,
    read_flags,
    shown,
    single,
    switch,
    typed,
    typed_list,
)

Read = Callable[[str], str | None]
"""The text of a file by its name; None where there is none."""

Given = dict[str, list[str]]
"""Flags with the words after them."""

EARLY_FILE = "accelerate_fsdp_defaults.yaml"
"""The early tool's own configuration of accelerate, whose settings `launcher=fsdp1` has; it says one process."""

_PREFETCH = ("BACKWARD_PRE", "BACKWARD_POST", "NO_PREFETCH")


class Launched(NamedTuple):
    """What started the early tool."""

    flags: Given | None
    """Those of `accelerate launch`, or as if; None where nothing did."""
    rest: list[str]
    """The script with its words."""
    spelled: Mapping[str, str] = {}
    """What was typed for a flag that has another name in `flags`."""
    notes: tuple[Note, ...] = ()
    """On flags that are left out."""
    problems: tuple[Problem, ...] = ()


def of_accelerate(words: Sequence[str]) -> Launched:
    """The flags of `accelerate launch`; `-m MODULE` stays in front of the script's words."""
    given, rest = read_flags(words, LAUNCH)
    if "module" in given:
        # a switch of accelerate's, so the word after it is the module
        rest = ["-m", *given.pop("module"), *rest]
    return Launched(given, rest)


def of_torchrun(words: Sequence[str]) -> Launched:
    """The flags of torchrun as those of `accelerate launch`."""
    given, rest = read_flags(words, TORCHRUN)
    out = Translated()
    known = {name: values for name, values in given.items() if moves(name, values, TORCHRUN, out) is not None}
    names = {flag: TORCHRUN[flag].field.partition(".")[2] for flag in known}
    flags = {names[name]: values for name, values in known.items()}
    spelled = {names[name]: shown(name, values) for name, values in known.items()}
    endpoint = _value(given, "rdzv_endpoint", "")
    if ":" in endpoint:
        host, _, port = endpoint.partition(":")
        flags |= {"main_process_ip": [host], "main_process_port": [port]}
        spelled["main_process_port"] = spelled["main_process_ip"]
    # of 1:4 machines as many as there can be
    each, machines = _value(given, "nproc_per_node", "1"), _value(given, "nnodes", "1").rpartition(":")[2]
    spelled.setdefault("num_processes", "--nproc_per_node was left out")
    if each in ("gpu", "auto"):
        flags.pop("num_processes", None)
    elif each.isdigit() and machines.isdigit():
        flags["num_processes"] = [str(int(each) * int(machines))]
    elif machines == "1":
        flags["num_processes"] = [each]
    else:
        said = spelled["num_processes"]
        out.problems.append(
            Problem(said, ": launcher.num_processes counts the processes of all machines; give a number")
        )
    flags["multi_gpu"] = []
    return Launched(flags, rest, spelled, tuple(out.notes), tuple(out.problems))


def _value(given: Given, name: str, default: str) -> str:
    return single(name, given[name]) if name in given else default


def translate(given: Given, old_names: str, read: Read, out: Translated) -> None:
    """Add the launcher to a translation; `old_names` says where the flags came from, for notes."""
    fsdp, flags = _sorted(given, out)
    file = _file(flags.pop("config_file", None), read, out)
    switches = {name: name in flags and switch(name, flags.pop(name)) for name in ("multi_gpu", "use_fsdp")}
    version = single("fsdp_version", flags.pop("fsdp_version", ["1"]))
    processes = _processes(flags, file)
    strategy = _strategy(switches, fsdp, file, processes, version)
    if strategy == "local":
        _alone(flags, file, switches, out)
        return
    out.fields["launcher"] = strategy
    why = "FSDP1, as accelerate has it without a version; launcher=fsdp is FSDP2" if strategy == "fsdp1" else ""
    out.notes.append(Note(Became.renamed, old_names, f"launcher={strategy}", why))
    if file is not None and file.path is not None:
        field = "launcher.config_file"
        out.fields[field] = typed(file.path)
        out.notes.append(Note(Became.kept, shown("config_file", [file.path]), f"{field}={typed(file.path)}"))
    if file is not None and file.path is None and "num_processes" not in flags:
        out.fields["launcher.num_processes"] = "1"
    _same_names(flags, out)
    if strategy.startswith("fsdp"):
        out.fields |= _fsdp_fields(fsdp, out)


class _File(NamedTuple):
    """A configuration of accelerate."""

    path: str | None
    """None where it is the early tool's own, and not here."""
    values: Mapping[str, Any]
    """Fields of the launcher."""


def _sorted(given: Given, out: Translated) -> tuple[Given, Given]:
    """FSDP's flags and the others that move; problems and notes of the rest are added."""
    fsdp: Given = {}
    flags: Given = {}
    for name, values in given.items():
        if moves(name, values, LAUNCH, out) is None:
            continue
        if name.startswith("fsdp_") and name != "fsdp_version":
            fsdp[name] = values
        else:
            flags[name] = values
    return fsdp, flags


def _file(values: list[str] | None, read: Read, out: Translated) -> _File | None:
    """The configuration file that was named; the early tool's own needs not be here."""
    if values is None:
        return None
    path = single("config_file", values)
    text = read(path)
    if text is not None:
        tree = yaml.safe_load(text)
        precision = str(tree.get("mixed_precision") or "no") if isinstance(tree, dict) else "no"
        _precision(precision, f"{path}: mixed_precision {precision}", out)
        return _File(path, accelerate_file.values_of(tree, path))
    if PurePath(path).name == EARLY_FILE:
        out.notes.append(Note(Became.renamed, shown("config_file", [path]), "launcher=fsdp1", "it has its settings"))
        return _File(None, {"strategy": "fsdp", "fsdp_version": 1, "num_processes": 1})
    raise UserError("--config_file", f"{path} cannot be read, and it says how the job is launched; give its path here")


def _processes(flags: Given, file: _File | None) -> str | None:
    """How many there are; None where it is the number of GPUs."""
    if "num_processes" in flags:
        return single("num_processes", flags["num_processes"])
    return str(file.values["num_processes"]) if file is not None and "num_processes" in file.values else None


def _strategy(
    switches: Mapping[str, bool], fsdp: Given, file: _File | None, processes: str | None, version: str
) -> str:
    """The choice of the launcher group; one process shares nothing with any of them."""
    if processes == "1":
        return "local"
    if switches["use_fsdp"] or fsdp:
        return "fsdp" if version == "2" else "fsdp1"
    if file is not None and not switches["multi_gpu"]:
        choices = {"single": "local", "ddp": "ddp"}
        found = str(file.values["strategy"])
        return choices.get(found) or ("fsdp" if file.values.get("fsdp_version") == 2 else "fsdp1")
    return "ddp"


def _alone(flags: Given, file: _File | None, switches: Mapping[str, bool], out: Translated) -> None:
    """One process: what sets it up for meeting others is left out."""
    if any(switches.values()) or file is not None:
        out.notes.append(Note(Became.changed, "one process", "launcher=local", "it shares its work with no other"))
    out.fields["launcher"] = "local"
    if file is not None and "device" in file.values:
        out.fields["launcher.device"] = file.values["device"]
    for name in ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port"):
        if name in flags:
            out.notes.append(Note(Became.dropped, shown(name, flags.pop(name)), why="one process meets no other"))
    _same_names(flags, out)


def _same_names(flags: Given, out: Translated) -> None:
    """Flags that are fields of the launcher."""
    for name, values in flags.items():
        flag = LAUNCH[name]
        if name == "mixed_precision":
            _precision(single(name, values), shown(name, values), out)
            continue
        value = flag.values["true" if switch(name, values) else "false"] if flag.values else single(name, values)
        if value:
            out.fields[flag.field] = typed(value, flag.kind)
            out.notes.append(
                Note(moved(name, flag.field), shown(name, values), f"{flag.field}={out.fields[flag.field]}")
            )


def _precision(word: str, old: str, out: Translated) -> None:
    """Accelerate's mixed precision, which transformers took for its own."""
    field, _, value = by_word("mixed_precision", LAUNCH["mixed_precision"], word).partition("=")
    if field:
        out.fields[f"training.{field}"] = value
        out.notes.append(Note(Became.renamed, old, f"training.{field}={value}"))


def _fsdp_fields(given: Given, out: Translated) -> dict[str, str]:
    """FSDP's flags as fields of today, by accelerate_file's reading."""
    tree: dict[str, Any] = {}
    for name, values in given.items():
        value: Any = single(name, values)
        if value.lower() in ("true", "false"):
            value = value.lower() == "true"
        if LAUNCH[name].field == "launcher.backward_prefetch" and value not in _PREFETCH:
            # as the early container's README has it
            out.notes.append(Note(Became.dropped, shown(name, values), why=f"it is none of {', '.join(_PREFETCH)}"))
        elif name == "fsdp_activation_checkpointing":
            if value is True:
                out.fields["training.activation_checkpointing"] = "true"
                out.notes.append(Note(Became.renamed, shown(name, values), "training.activation_checkpointing=true"))
        else:
            tree[name] = value
    found = accelerate_file.fsdp_values(tree)
    found.pop("fsdp_version", None)
    fields = dict(_fields_of(found))
    for name in tree:
        field = LAUNCH[name].field
        new = f"{field}={fields[field]}" if field in fields else field
        out.notes.append(Note(moved(name, field), shown(name, given[name]), new))
    return fields


def _fields_of(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Values of the launcher group as they are typed."""
    for name, value in found.items():
        if isinstance(value, list):
            yield f"launcher.{name}", typed_list(value)
        elif value is not None:
            yield f"launcher.{name}", str(value).lower() if isinstance(value, bool) else str(value)


def of_training(words: Sequence[str], config: str | None, read: Read) -> Given:
    """transformers' own `--fsdp "full_shard auto_wrap"` and `--fsdp_config FILE`, as flags of `accelerate launch`."""
    asked = " ".join(words).replace(",", " ").split()
    known = ("full_shard", "shard_grad_op", "hybrid_shard", "offload", "auto_wrap")
    wrong = [word for word in asked if word not in known]
    if wrong:
        raise UserError("--fsdp", f"{wrong[0]} is not taken; {', '.join(known)} are")
    found: Given = {"use_fsdp": []}
    for word in known[:3]:
        if word in asked:
            found["fsdp_sharding_strategy"] = [word]
    if "offload" in asked:
        found["fsdp_offload_params"] = ["true"]
    if config is not None:
        text = config if config.startswith("{") else read(config)
        if text is None:
            raise UserError("--fsdp_config", f"{config} cannot be read; give its path here, or leave it out")
        for name, value in json_object(text, f"--fsdp_config {config}").items():
            key = name if name.startswith("fsdp_") else f"fsdp_{name}"
            listed = value if isinstance(value, list) else [value]
            found[key] = [",".join(str(one) for one in listed)]
    return found


def json_object(text: str, name: str) -> dict[str, Any]:
    """A JSON object; raises UserError with the place where it is broken."""
    try:
        tree = json.loads(text)
    except ValueError as err:
        raise UserError(name, f": broken JSON ({err})") from err
    if not isinstance(tree, dict):
        raise UserError(name, f": a job is a JSON object of flags, found {type(tree).__name__}")
    return tree
