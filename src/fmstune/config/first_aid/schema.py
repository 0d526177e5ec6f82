"""A JSON schema of the job and of the files of each group, from the same classes that check a job."""

import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from fmstune.config import groups, job, named_classes, renamed_fields, upstream_fields
from fmstune.config.flags import field_docs
from fmstune.config.upstream_fields import Field, field_of

Schema = dict[str, Any]
DRAFT = "http://json-schema.org/draft-07/schema#"
"""The draft that the language server of YAML reads in full."""
_KINDS = {int: "integer", float: "number", bool: "boolean", str: "string", list: "array", dict: "object"}
_REFERENCE: Schema = {"type": "string", "pattern": r"^\?\?\?$|\$\{"}
"""A value that is given later, or one that refers to another field."""
_DEFAULTS: Schema = {"type": "array", "description": "Files that this one starts from, or chooses (Hydra)."}
_CLASS: Schema = {"type": "object", "properties": {"_target_": {"type": "string"}}, "required": ["_target_"]}


def job_schema() -> Schema:
    """The schema of a job, and of a file that begins with `# @package _global_`: any of its fields may be left out."""
    properties = {"defaults": _DEFAULTS, "hydra": {"type": "object"}, **_properties(job.Job)}
    properties |= {group: _part(group) for group in _parts()}
    about = "A job of fmstune, or a file that sets fields of several groups."
    return {"$schema": DRAFT, "title": "fmstune job", "description": about, **_closed(properties)}


def group_schema(group: str) -> Schema:
    """The schema of the files of a group, which hold its fields alone; raises UserError for a group that is none."""
    groups.raise_if_no_group("schema", group)
    if group == groups.SEARCH:
        about = "Fields of the job by their dotted names, and the values of each that a sweep tries."
        line = {"type": ["array", "string", "number", "boolean", "null"]}
        return {"$schema": DRAFT, "title": "fmstune search", "description": about, **_closed({})} | {
            "additionalProperties": line
        }
    if group not in _parts():
        return job_schema()
    part = _part(group)
    properties = {"defaults": _DEFAULTS, **part["properties"]}
    return {"$schema": DRAFT, "title": f"fmstune {group}", **part, "properties": properties}


def _parts() -> list[str]:
    """The groups that are fields of the job: the files of others set fields of several groups."""
    own = {field.name for field in fields(job.Job)}
    return [group for group in groups.GROUPS if group in own]


@cache
def _part(group: str) -> Schema:
    """The schema of one group's mapping."""
    match group:
        case "training":
            return _training()
        case "peft":
            return _peft()
        case "tracking":
            return _tracking()
        case "callbacks":
            properties = _properties(job.Callbacks)
            del properties["others"]
            return {"type": "object", "properties": properties, "additionalProperties": _CLASS}
        case "data":
            settings = {name: {"description": "A setting of data.format."} for name in renamed_fields.FORMAT_SETTINGS}
            return _closed({**settings, **_properties(job.Data)})
    hints = typing.get_type_hints(job.Job)
    return _closed(_properties(hints[group]))


def _closed(properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}


def _properties(kind: type) -> dict[str, Schema]:
    """The schema of each field of a dataclass of the job, with the line under it."""
    docs, hints = field_docs(kind), typing.get_type_hints(kind)
    found = {}
    for field in fields(kind):
        about = {"description": docs[field.name]} if field.name in docs else {}
        found[field.name] = {**about, **_of_hint(field.name, hints[field.name])}
    return found


def _of_hint(name: str, hint: Any) -> Schema:
    """The schema of an annotation; a group may also be named by nested dataclasses."""
    own = [part for part in (typing.get_args(hint) or (hint,)) if isinstance(part, type) and is_dataclass(part)]
    if own:
        # null leaves out what is optional; a reference takes the whole of another part
        return {"anyOf": [_closed({"defaults": _DEFAULTS, **_properties(own[0])}), {"type": "null"}, _REFERENCE]}
    return _of_field(field_of(name, hint))


def _of_field(field: Field) -> Schema:
    """The schema of one value, as `convert` takes it."""
    if not field.primitives:
        return {}
    named = [*field.choices, *field.words]
    kinds: list[Schema] = [{"enum": named}] if named else []
    for kind in field.primitives:
        if kind is list and field.items:
            kinds.append({"type": "array", "items": {"type": [_KINDS[item] for item in field.items]}})
        elif not (kind is str and field.choices):
            # a number where a text is wanted becomes one
            kinds.append({"type": ["string", "number"] if kind is str else _KINDS[kind]})
    # YAML 1.1 reads 1e-4 as a text
    kinds += [{"type": "string", "pattern": r"^[-+]?[0-9.]+(e[-+]?[0-9]+)?$"}] * bool(
        {int, float} & {*field.primitives}
    )
    kinds += [{"type": "boolean"}] * bool({"yes", "no"} & {*field.choices})
    return {"anyOf": [*kinds, *([{"type": "null"}] if field.optional else []), _REFERENCE]}


def _training() -> Schema:
    fields = upstream_fields.training_fields(upstream_fields.SFT_CONFIG)
    known = {name: _of_field(field) for name, field in fields.items()}
    own: dict[str, Schema] = {name: {} for name in (*renamed_fields.OWN, *renamed_fields.TRANSLATED)}
    taken = {name: schema for name, schema in known.items() if name not in renamed_fields.OWNED}
    return {"description": f"Fields of {upstream_fields.SFT_CONFIG}.", **_closed({**taken, **own})}


def _peft() -> Schema:
    """The fields of all methods; where `_target_` names one, its own alone."""
    targets = sorted({str(one["_target_"]) for one in groups.shipped_choices("peft").values()} - {job.FULL})
    ours: dict[str, Schema] = {"defaults": _DEFAULTS, "_target_": {"type": "string"}}
    ours |= {renamed_fields.USUAL_RATE: {"type": "number", "description": "The learning rate that suits the method."}}
    every, rules = dict(ours), []
    for target in targets:
        own = {name: _of_field(field) for name, field in upstream_fields.fields_of(target).items()}
        if target == job.LORA:
            own[job.LORAPLUS_LR_RATIO] = {"anyOf": [{"type": ["number", "null"]}, _REFERENCE]}
        # one name may be a field of several methods, with other types
        every |= {name: {} for name in own}
        named = {"properties": {"_target_": {"const": target}}, "required": ["_target_"]}
        rules.append({"if": named, "then": {"properties": {**ours, **own}, "additionalProperties": False}})
    return {"description": "Fields of the configuration class that _target_ names.", **_closed(every), "allOf": rules}


def _tracking() -> Schema:
    """The shipped trackers with their settings, and others by their class."""
    shipped = {}
    for name, target in named_classes.shipped_trackers().items():
        own = {field: _of_field(one) for field, one in upstream_fields.fields_of(target).items()}
        closed = _closed({"_target_": {"type": "string"}, **own})
        shipped[name] = {"anyOf": [closed, {"type": "null"}]}
    return {"type": "object", "properties": shipped, "additionalProperties": {"anyOf": [_CLASS, {"type": "null"}]}}
