"""A value of YAML or of the command line → the type that its field has, or a problem."""

import json
import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from fmstune.config import other_names
from fmstune.config.upstream_fields import Field
from fmstune.errors import Problem, did_you_mean


def convert_into(values: dict[str, Any], value: Any, path: str, field: Field, problems: list[Problem]) -> None:
    """Put the converted value into `values`, or what is wrong with it into `problems`."""
    try:
        values[field.name] = convert(value, field)
    except ValueError as err:
        problems.append(Problem(path, f"{err}"))


def convert_fields(
    tree: Mapping[str, Any], fields: Mapping[str, Field], path: str, problems: list[Problem], of: str = ""
) -> dict[str, Any]:
    """The values of a group at `path`, converted; problems of unknown keys and wrong values are appended."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if key in fields:
            convert_into(values, value, f"{path}.{key}", fields[key], problems)
        else:
            problems.append(unknown_field(f"{path}.{key}", fields, of=of))
    return values


def convert(value: Any, field: Field) -> Any:
    """The value as one of the field's types; raises ValueError with the end of a sentence that starts with its name."""
    if value is None:
        if field.optional:
            return None
        raise ValueError(f"must be {_kinds(field)}, got null")
    if not field.primitives or (isinstance(value, str) and value in field.words):
        return value
    if {dict, str} <= {*field.primitives} and isinstance(value, str):
        # text is the JSON of a mapping in TrainingArguments, which looks at it while training
        value = _json_object(value)
    if field.choices and isinstance(value, bool) and bool not in field.primitives:
        value = "yes" if value else "no"  # YAML reads a bare `no` as false
    for kind in field.primitives:
        converted = _as_kind(value, kind)
        if kind is list and converted is not None and field.items:
            converted = _with_items(converted, field.items)
        if converted is not None and (kind is not str or not field.choices or converted in field.choices):
            return converted
    if field.choices:
        word = str(value)
        known = [*(("true", "false") if bool in field.primitives else ()), *field.choices]
        raise ValueError(f"must be one of {', '.join(known)}; got {word!r}{did_you_mean(word, known)}")
    raise ValueError(f"must be {_kinds(field)}, got {value!r}")


def _with_items(value: list[Any], kinds: tuple[type, ...]) -> list[Any] | None:
    """The list, or None where it holds a value of another kind: items are not converted."""
    fits = all(type(item) in kinds or (type(item) is int and float in kinds) for item in value)
    return value if fits else None


def _json_object(text: str) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        if isinstance(value := json.loads(text), dict):
            return value
    raise ValueError(f"must be a mapping of keys to values, got {text!r}")


def _as_kind(value: Any, kind: type) -> Any:
    """The value as this type, or None where that would lose or invent something."""
    if kind is bool:
        return value if isinstance(value, bool) else {"true": True, "false": False}.get(str(value).lower())
    if isinstance(value, bool):
        return None
    if kind is str:
        return str(value) if isinstance(value, (str, int, float)) else None
    if kind in (int, float) and isinstance(value, (int, float, str)):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            return None
        if kind is float:
            return None if math.isnan(number) else number  # nan compares false with every limit
        return int(number if isinstance(value, str) else value) if number.is_integer() else None
    return value if isinstance(value, kind) else None


def _kinds(field: Field) -> str:
    names: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    names |= {dict: "a mapping of keys to values", list: "a list"}
    of = {int: "a list of whole numbers", float: "a list of numbers", str: "a list of text"}
    names |= {list: " or ".join(of[kind] for kind in field.items) or names[list]}
    kinds = [names.get(kind, kind.__name__) for kind in field.primitives]
    return " or ".join([*kinds, *field.words, *(["null"] if field.optional else [])])


def unknown_field(path: str, known: Collection[str], of: str = "") -> Problem:
    """The problem of a field that its group, or the class `of`, does not have; these have the fields `known`."""
    hint = other_names.hint(path, known)
    if not hint and not of and known:
        hint = f"; its group has {', '.join(known)}" if "." in path else f"; the job has {', '.join(known)}"
    return Problem(path, f": unknown field{' of ' + of if of else ''}{hint}")
