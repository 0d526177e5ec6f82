"""Parts of a job that name a class by `_target_`, trackers and callbacks: their other keys are its arguments."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from fmstune.config import groups, upstream_fields
from fmstune.config.convert import convert_fields, unknown_field
from fmstune.config.job import BUILT_IN_CALLBACKS
from fmstune.errors import Problem, did_you_mean

OWN_TRACKERS = "fmstune.training.trackers"
"""Package of the trackers that fmstune brings, which need no `--trust`."""
OWN_CALLBACKS = "fmstune.training.debugging"
"""Package of the callbacks of the group `debug`."""
_HINTS = {"template_file": ": a Jinja file, such as data.format.template_file=row.jinja"}


def typed_trackers(tree: Mapping[str, Any], trusted: Sequence[str], problems: list[Problem]) -> dict[str, Any]:
    """The trackers by name, those of fmstune with all of their settings, and without those set to null."""
    values: dict[str, Any] = {}
    for name, given in ((name, given) for name, given in tree.items() if given is not None):
        path = f"tracking.{name}"
        if not isinstance(given, Mapping):
            problems.append(Problem(path, f"is a group of fields, got {given!r}; set them as {path}={{FIELD: VALUE}}"))
            continue
        settings = {key: value for key, value in given.items() if key != "_target_"}
        target = given.get("_target_", shipped_trackers().get(name))
        if target is None:
            problems.append(unknown_field(path, shipped_trackers()))
        elif own := _defaults(target):
            values[name] = own | convert_fields(settings, upstream_fields.fields_of(target), path, problems)
        elif str(target).startswith(f"{OWN_TRACKERS}."):
            near = did_you_mean(str(target), shipped_trackers().values())
            problems.append(Problem(f"{path}._target_", f": fmstune has no tracker {target!r}{near}"))
        else:
            problems += target_form_problems(path, given, (OWN_TRACKERS, *trusted))
            values[name] = dict(given)
    return values


def with_tracker_defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The group with the default of each setting of fmstune's trackers that is not given."""
    return {
        name: {**_defaults(given.get("_target_")), **given} if isinstance(given, Mapping) else given
        for name, given in tree.items()
    }


def _defaults(target: Any) -> dict[str, Any]:
    """The `_target_` and the settings of one of fmstune's own trackers; nothing of any other."""
    own = str(target).startswith(f"{OWN_TRACKERS}.") and upstream_fields.has_class(target)
    return {"_target_": target, **upstream_fields.defaults_in_source(target)} if own else {}


@cache
def shipped_trackers() -> Mapping[str, str]:
    """The `_target_` of each name in conf/tracking: jobs frozen before it was a field have only the name."""
    return {name: tree[name]["_target_"] for name, tree in groups.shipped_choices("tracking").items() if tree}


def split_callbacks(tree: Any) -> tuple[Any, dict[str, Any]]:
    """The callbacks of fmstune's own, and those that name a class."""
    if not isinstance(tree, Mapping):
        return tree, {}
    users = {str(name): given for name, given in tree.items() if name not in BUILT_IN_CALLBACKS}
    named = {name: given for name, given in users.items() if isinstance(given, Mapping) and "_target_" in given}
    return {name: given for name, given in tree.items() if name not in named}, named


def foreign_callbacks(named: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the callbacks that name a class which fmstune does not bring, and which needs `--trust`."""
    own = f"{OWN_CALLBACKS}."
    return {name: given for name, given in named.items() if not str(given.get("_target_")).startswith(own)}


def target_form_problems(
    path: str, given: Mapping[str, Any], allowed: Sequence[str], of: str = "a class, such as my_package.MyClass"
) -> Iterator[Problem]:
    """Yield what is wrong with the `_target_` of a group at `path`, and each of its values that is missing."""
    target = given.get("_target_")
    if not isinstance(target, str) or "." not in target:
        yield Problem(f"{path}._target_", f"must name {of}, got {target!r}")
        return
    if not target.startswith(tuple(f"{package}." for package in allowed)):
        among = f" ({', '.join(allowed)})" if allowed else ""
        hint = f"if you trust it, add --trust {target.partition('.')[0]}"
        yield Problem(f"{path}._target_", f": {target!r} is not in an allowed package{among}; {hint}")
    for name in (name for name, value in given.items() if value == "???"):
        yield Problem(f"{path}.{name}", f"must be given{_HINTS.get(name, '')}")
