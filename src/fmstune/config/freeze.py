"""A composed configuration → a typed, frozen Job, or every problem that it has; and the job as a file."""

import dataclasses
import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import MISSING

from fmstune.config import named_classes, other_names, renamed_fields, upstream_fields
from fmstune.config.convert import convert_fields, convert_into, unknown_field
from fmstune.config.job import FULL, LORA, LORAPLUS_LR_RATIO, SFT, Data, Job, Source
from fmstune.config.metrics import metric_problems
from fmstune.config.upstream_fields import SFT_CONFIG, Field, field_of
from fmstune.errors import Problem, UserError, did_you_mean, first_line, in_words, raise_if_any
from fmstune.files import refuse_pipe
from fmstune.upstream import explain_missing_names

# not in hydra_internals: a runner reads job files, and importing Hydra would take it 0.06 s
with explain_missing_names("omegaconf"):
    from omegaconf._utils import get_yaml_loader

_HINTS = {
    "data.train": "a file, glob, folder or hub id, such as data.train=rows.jsonl",
    "model.path": "a folder or hub id of a causal language model, such as model.path=./my_model",
}


class Frozen(NamedTuple):
    """The job, and what was translated on the way and is worth a line to the user."""

    job: Job
    notes: tuple[str, ...]


def freeze(tree: Mapping[str, Any], *, trusted: Sequence[str] = ()) -> Frozen:
    """Turn a resolved tree into a Job, or raise every problem; a `_target_` may also be from the `trusted` packages."""
    tree, notes = renamed_fields.with_compare_by(renamed_fields.with_todays_targets(tree))
    problems: list[Problem] = []
    if isinstance(tree.get("data"), Mapping):
        data, unused = renamed_fields.with_format_settings(tree["data"])
        tree = {**tree, "data": data}
        for name in unused:
            target = str(data["format"].get("_target_")).rpartition(".")[2]
            problems.append(Problem(f"data.{name}", f"is not used by {target}; leave it out"))
    callbacks, others = named_classes.split_callbacks(tree.get("callbacks"))
    values = _typed(Job, {**tree, "callbacks": callbacks} if others else tree, "", problems)
    config_class = SFT_CONFIG
    if isinstance(tree.get("objective"), Mapping):
        objective_problems = list(_objective_problems(tree["objective"], trusted))
        problems += objective_problems
        config_class = config_class if objective_problems else values["objective"].get("config_class", SFT_CONFIG)
    if isinstance(tree.get("training"), Mapping):
        values["training"] = _training(tree["training"], config_class, problems, notes)
    if isinstance(tree.get("peft"), Mapping):
        values["peft"] = _peft(tree["peft"], problems)
    if isinstance(tree.get("tracking"), Mapping):
        values["tracking"] = named_classes.typed_trackers(tree["tracking"], trusted, problems)
    if others:
        values["callbacks"]["others"] = {name: dict(given) for name, given in others.items()}
    for name, given in named_classes.foreign_callbacks(others).items():
        problems += named_classes.target_form_problems(f"callbacks.{name}", given, trusted)
    if isinstance(tree.get("data"), Mapping):
        problems += _format_problems("data.format", data.get("format"), trusted)
        if "train" in data and data["train"] is None:
            problems.append(Problem("data.train", f"must be given: {_HINTS['data.train']}"))
        for name in ("train", "eval"):
            if isinstance(data.get(name), Mapping):
                values["data"][name] = _sources(f"data.{name}", data[name], trusted, problems)
    raise_if_any(problems)
    return Frozen(_build(Job, values), tuple(notes))


def read(path: Path, *, trusted: Sequence[str] = (), changes: Mapping[str, Any] | None = None) -> Frozen:
    """The job of a frozen `job.yaml`, with dotted `changes` applied; checked as strictly as a composed one."""
    tree = load_file(path)
    for field, value in with_copies(tree, changes or {}).items():
        tree = with_value(tree, field, value)
    return freeze(tree, trusted=trusted)


def load_file(path: Path) -> dict[str, Any]:
    """The job file as it is, with the settings of a format in the format: a file of before has them in `data` too.

    A frozen job holds no reference: text that looks like one is text.
    """
    refuse_pipe("job.yaml", path)
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
        json.dumps(tree, default=str, skipkeys=True)  # a ValueError for a value that holds itself
    except FileNotFoundError:
        raise UserError(str(path), ": no such file; give the job.yaml of a run folder") from None
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as err:
        raise UserError(str(path), f": cannot be read as a job: {first_line(err)}") from err
    if not isinstance(tree, dict):
        raise UserError(str(path), f": a job is a mapping of groups, found {in_words(tree)}")
    tree = {str(key): value for key, value in tree.items()}
    if isinstance(tree.get("data"), Mapping):
        tree["data"] = renamed_fields.with_format_settings(tree["data"])[0]
    return tree


def parse_yaml(text: str) -> Any:
    """What a text of YAML holds, read as Hydra reads its files: `1e-4` is a number, and no key comes twice."""
    return yaml.load(text, Loader=get_yaml_loader())


def with_copies(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes; those of `model.lora_targets` also where freezing has copied it into the PEFT fields."""
    field, copy = "model.lora_targets", "peft.target_modules"
    model, peft = (group if isinstance(group := tree.get(name), Mapping) else {} for name in ("model", "peft"))
    same = peft.get("target_modules", MISSING) == model.get("lora_targets")
    return {**changes, copy: changes[field]} if field in changes and copy not in changes and same else dict(changes)


def with_value(tree: Any, field: str, value: Any) -> Any:
    """The tree with one value at its dotted name; a mapping is merged into a mapping, as composing does."""
    return _with_value(tree, field.split("."), value, field)


def _with_value(tree: Any, keys: Sequence[str], value: Any, field: str) -> Any:
    if not keys:
        if isinstance(tree, Mapping) and isinstance(value, Mapping):
            return {**tree, **{key: _with_value(tree.get(key), (), one, field) for key, one in value.items()}}
        return value
    key, *rest = keys
    if isinstance(tree, list):
        if not (key.isdecimal() and int(key) < len(tree)):
            raise UserError(field, f": the list has {len(tree)} items, counted from 0, and no item {key}")
        at = int(key)
        return [*tree[:at], _with_value(tree[at], rest, value, field), *tree[at + 1 :]]
    tree = tree if isinstance(tree, Mapping) else {}
    return {**tree, key: _with_value(tree.get(key), rest, value, field)}


def write(job: Job, path: Path) -> None:
    """Write the job so that `read` gives an equal one; FileExistsError, as one process alone can claim a run folder."""
    with path.open("x", encoding="utf-8") as file:
        file.write(dump(job))


def dump(job: Job) -> str:
    """The job as YAML text."""
    return str(yaml.safe_dump(as_tree(job), sort_keys=False, allow_unicode=True, width=110))


def as_tree(job: Job) -> dict[str, Any]:
    """The job as what YAML can hold: mappings, lists and plain values."""
    tree = dataclasses.asdict(
        job, dict_factory=lambda items: {key: one.value if isinstance(one, Enum) else one for key, one in items}
    )
    tree["callbacks"] |= tree["callbacks"].pop("others")
    return tree


def _typed(cls: type, tree: Mapping[str, Any], prefix: str, problems: list[Problem]) -> dict[str, Any]:
    """The values of one dataclass's fields, converted; problems are appended."""
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if not field.metadata}
    for key in tree:
        if key not in fields:
            known = [*fields, *(renamed_fields.FORMAT_SETTINGS if cls is Data else ())]
            names = other_names.unknown_names(str(key), tree[key], known)
            problems += [unknown_field(f"{prefix}{name}", known if name == key else ()) for name in names]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        path, hint = f"{prefix}{name}", hints[name]
        group = next(filter(_is_group, typing.get_args(hint) or (hint,)), None)
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in tree or tree[name] == MISSING:
            if required or name in tree:
                problems.append(Problem(path, f"must be given{': ' + _HINTS[path] if path in _HINTS else ''}"))
        elif group is None or (tree[name] is None and group is not hint):
            convert_into(values, tree[name], path, field_of(name, hint), problems)
        elif isinstance(tree[name], Mapping):
            values[name] = _typed(group, tree[name], f"{path}.", problems)
        else:
            how = f"set them as {path}={{FIELD: VALUE}}" if prefix else f"choose one with {path}=NAME"
            problems.append(Problem(path, f"is a group of fields, got {tree[name]!r}; {how}"))
            values[name] = {}
    return values


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _build(hint: Any, value: Any) -> Any:
    """The value as its annotation says: instances of dataclasses, depth first, and members of enumerations."""
    for kind in typing.get_args(hint) or (hint,):
        if _is_group(kind) and value is not None:
            hints = typing.get_type_hints(kind)
            return kind(**{name: _build(hints[name], one) for name, one in value.items()})
        if isinstance(kind, type) and issubclass(kind, Enum) and value in [member.value for member in kind]:
            return kind(value)
    return value


def _objective_problems(tree: Mapping[str, Any], trusted: Sequence[str]) -> Iterator[Problem]:
    """Yield a problem for a class of the objective that is not allowed or not there, and for each wrong metric."""
    target = tree.get("_target_", SFT)
    package = str(target).partition(".")[0]
    if not isinstance(target, str) or "." not in target:
        yield Problem("objective._target_", f"must name a class such as {SFT}, got {target!r}")
    elif target != SFT and package not in trusted:
        yield Problem("objective._target_", f": {target!r} is not fmstune's; if you trust it, add --trust {package}")
    config_class = tree.get("config_class", SFT_CONFIG)
    if not re.fullmatch(r"trl\.\w+Config", str(config_class)) or not upstream_fields.has_class(config_class):
        yield Problem("objective.config_class", f": the installed trl has no configuration class {config_class!r}")
    metrics = tree.get("metrics")
    for name, fields in metrics.items() if isinstance(metrics, Mapping) else ():
        yield from metric_problems(str(name), fields)


def _training(tree: Mapping[str, Any], config_class: str, problems: list[Problem], notes: list[str]) -> dict[str, Any]:
    """The training group: early names translated, names that others own refused, the rest typed by TRL's class."""
    fields = upstream_fields.training_fields(config_class)
    values: dict[str, Any] = {}
    for given, early in tree.items():
        path, translation = f"training.{given}", renamed_fields.TRANSLATED.get(given, renamed_fields.Translation(given))
        name = translation.name
        try:
            value = translation.value(early)
        except ValueError as err:
            problems.append(Problem(path, str(err)))
            continue
        if given in renamed_fields.TRANSLATED:
            notes.append(f"{path} is called training.{name} now; set to {value}")
        if given in renamed_fields.OWNED:
            problems.append(Problem(path, f": {renamed_fields.OWNED[given]}"))
        elif name in renamed_fields.OWN:
            values[name] = value
        elif name in fields:
            convert_into(values, value, path, fields[name], problems)
        else:
            own = [field for field in fields if field not in renamed_fields.OWNED]
            known = [*own, *renamed_fields.TRANSLATED, *renamed_fields.OWN]
            problems.append(unknown_field(path, known, of=config_class))
    return values


def _peft(tree: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    rest = dict(tree)
    target = rest.pop("_target_", None)
    if target == FULL:
        hint = ": full tuning has no adapter and takes no fields; choose peft=lora"
        problems += [Problem(f"peft.{key}", hint) for key in rest]
    elif not isinstance(target, str) or not re.fullmatch(r"peft\.\w+Config", target):
        hint = f"must be a PEFT configuration such as peft.LoraConfig, got {target!r}"
        problems.append(Problem("peft._target_", hint))
    elif not upstream_fields.has_class(target):
        name = target.rpartition(".")[2]
        near = did_you_mean(name, (one for one in upstream_fields.class_names(target) if one.endswith("Config")))
        problems.append(Problem("peft._target_", f": the installed peft has no configuration class {name!r}{near}"))
    else:
        fields = dict(upstream_fields.fields_of(target))
        if target == LORA:
            fields[LORAPLUS_LR_RATIO] = Field(LORAPLUS_LR_RATIO, (float,), True)
        elif LORAPLUS_LR_RATIO in rest:
            del rest[LORAPLUS_LR_RATIO]
            hint = f"is a setting of {LORA}, and the method is {target}; leave it out"
            problems.append(Problem(f"peft.{LORAPLUS_LR_RATIO}", hint))
        rest = convert_fields(rest, fields, "peft", problems, of=target)
    return {"_target_": target, **rest}


def _sources(path: str, tree: Mapping[str, Any], trusted: Sequence[str], problems: list[Problem]) -> dict[str, Any]:
    """Several sources by name, each a place or the fields of a `Source`; the values keep that form."""
    values: dict[str, Any] = {}
    for key, source in tree.items():
        name, field = str(key), f"{path}.{key}"
        values[name] = source
        if isinstance(source, Mapping):
            values[name] = _typed(Source, source, f"{field}.", problems)
            problems += _format_problems(f"{field}.format", source.get("format"), trusted)
        elif source is None or source == MISSING:
            problems.append(Problem(field, f"must be given: {_HINTS['data.train']}"))
    return values


def _format_problems(path: str, format: Any, trusted: Sequence[str]) -> Iterator[Problem]:
    if isinstance(format, Mapping):
        of, allowed = "a function such as fmstune.data.formats.text", ("fmstune.data.formats", *trusted)
        yield from named_classes.target_form_problems(path, format, allowed, of)
