"""Parts of a job that name a class by `_target_`, trackers and callbacks: their other keys are its arguments."""

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

import yaml

from fmstune.config import groups, upstream_fields
from fmstune.config.convert import convert_into, unknown_field
from fmstune.config.job import BUILT_IN_CALLBACKS
from fmstune.errors import Problem

OWN_TRACKERS = "fmstune.training.trackers"
"""Package of the trackers that fmstune brings, which need no `--trust`."""


def typed_trackers(
    tree: Mapping[str, Any], trusted: Sequence[str], problems: list[Problem]
) -> dict[str, dict[str, Any]]:
    """The trackers by name, those of fmstune with all of their settings; null is none."""
    values: dict[str, dict[str, Any]] = {}
    for name, given in tree.items():
        path = f"tracking.{name}"
        if given is None:
            continue
        if not isinstance(given, Mapping):
            problems.append(Problem(path, f"is a group of fields, got {given!r}; set them as {path}={{FIELD: VALUE}}"))
            continue
        target = given.get("_target_", shipped_tracker(str(name)))
        if target is None:
            problems.append(unknown_field(path, str(name), _with_a_tracker()))
        elif str(target).startswith(f"{OWN_TRACKERS}."):
            values[name] = _of_own_tracker(path, str(target), given, problems)
        else:
            problems += _in_form(path, target, given, (OWN_TRACKERS, *trusted))
            values[name] = dict(given)
    return values


def with_tracker_defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The group with the default of each setting of fmstune's trackers that is not given."""
    return {name: _with_defaults(given) if isinstance(given, Mapping) else given for name, given in tree.items()}


def shipped_tracker(name: str) -> str | None:
    """The `_target_` in conf/tracking for this name: jobs frozen before it was a field have only the name."""
    if name not in groups.choices("tracking"):
        return None
    text = resources.files("fmstune.conf").joinpath("tracking", f"{name}.yaml").read_text(encoding="utf-8")
    target: str | None = yaml.safe_load(text).get(name, {}).get("_target_")
    return target


def split_callbacks(tree: Any) -> tuple[Any, dict[str, Any]]:
    """The callbacks of fmstune's own, and those that name a class."""
    if not isinstance(tree, Mapping):
        return tree, {}
    named = {
        str(name): given
        for name, given in tree.items()
        if name not in BUILT_IN_CALLBACKS and isinstance(given, Mapping) and "_target_" in given
    }
    return {name: given for name, given in tree.items() if name not in named}, named


def typed_callbacks(
    tree: Mapping[str, Mapping[str, Any]], trusted: Sequence[str], problems: list[Problem]
) -> dict[str, dict[str, Any]]:
    """The user's callbacks by name; their arguments are compared with the class where it can be imported."""
    for name, given in tree.items():
        problems += _in_form(f"callbacks.{name}", given["_target_"], given, trusted)
    return {name: dict(given) for name, given in tree.items()}


def not_allowed(path: str, target: str, allowed: Sequence[str]) -> Iterator[Problem]:
    """A problem where the target is in none of the allowed packages."""
    if not any(target.startswith(f"{package}.") for package in allowed):
        package = target.partition(".")[0]
        among = f" ({', '.join(allowed)})" if allowed else ""
        yield Problem(
            f"{path}._target_",
            f": {target!r} is not in an allowed package{among}; if you trust it, add --trust {package}",
        )


def _in_form(path: str, target: Any, given: Mapping[str, Any], allowed: Sequence[str]) -> Iterator[Problem]:
    if not isinstance(target, str) or "." not in target:
        yield Problem(f"{path}._target_", f"must name a class, such as my_package.MyClass, got {target!r}")
        return
    yield from not_allowed(path, target, allowed)
    yield from (Problem(f"{path}.{name}", "must be given") for name, value in given.items() if value == "???")


def _of_own_tracker(path: str, target: str, given: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    values: dict[str, Any] = {"_target_": target}
    if not upstream_fields.has_class(target):
        problems.append(Problem(f"{path}._target_", f": fmstune has no tracker {target!r}"))
        return values
    fields = upstream_fields.fields_of(target)
    for name in given.keys() - {"_target_"} - fields.keys():
        problems.append(unknown_field(f"{path}.{name}", str(name), fields))
    values |= upstream_fields.defaults_in_source(target)
    for name in fields.keys() & given.keys():
        convert_into(values, name, given[name], f"{path}.{name}", fields[name], problems)
    return values


def _with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    target = str(given.get("_target_"))
    own = target.startswith(f"{OWN_TRACKERS}.") and upstream_fields.has_class(target)
    return {"_target_": target, **upstream_fields.defaults_in_source(target), **given} if own else dict(given)


def _with_a_tracker() -> list[str]:
    return [name for name in groups.choices("tracking") if shipped_tracker(name) is not None]
