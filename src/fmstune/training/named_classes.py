"""Trackers and callbacks of a job, made from the classes that their `_target_` names."""

import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import TrainerCallback

from fmstune.config.job import Job
from fmstune.errors import Problem, UserError, did_you_mean
from fmstune.training.trackers.base import Subject, Tracker


def named_class_problems(job: Job) -> Iterator[Problem]:
    """Yield a problem for each class that cannot be imported, is of another kind, or does not take its settings."""
    parts = [
        ("tracking", job.tracking, Tracker, ("subject",)),
        ("callbacks", job.callbacks.others, TrainerCallback, ()),
    ]
    for group, named, kind, given in parts:
        for name, settings in named.items():
            yield from _problems_of(f"{group}.{name}", settings, kind, given)


def make_trackers(job: Job, subject: Subject) -> dict[str, Tracker]:
    """The job's trackers by name, not begun yet."""
    return {name: _class(one)(subject=subject, **_arguments(one)) for name, one in job.tracking.items()}


def make_callbacks(job: Job) -> list[TrainerCallback]:
    """The user's own callbacks of the job; raises UserError when a constructor refuses its arguments."""
    made = []
    for name, one in job.callbacks.others.items():
        try:
            made.append(_class(one)(**_arguments(one)))
        except (TypeError, ValueError) as err:
            raise UserError(f"callbacks.{name}", f": {one['_target_']} refuses its arguments: {err}") from err
    return made


def _problems_of(field: str, settings: Mapping[str, Any], kind: type, given: tuple[str, ...]) -> Iterator[Problem]:
    target = settings["_target_"]
    try:
        found = _class(settings)
    except ImportError as err:
        yield Problem(f"{field}._target_", f": cannot import {target.rpartition('.')[0]} ({err})")
        return
    except AttributeError:
        yield Problem(f"{field}._target_", f": {target.rpartition('.')[0]} has no class {target.rpartition('.')[2]!r}")
        return
    if not (isinstance(found, type) and issubclass(found, kind)):
        yield Problem(f"{field}._target_", f": {target} must be a class that extends {kind.__module__}.{kind.__name__}")
        return
    parameters = inspect.signature(found).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    takes = [name for name, one in parameters.items() if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)]
    for name in () if open_ended else [name for name in _arguments(settings) if name not in takes or name in given]:
        yield Problem(f"{field}.{name}", f": {found.__name__} has no such argument{did_you_mean(name, takes)}")
    for name in takes:
        if parameters[name].default is inspect.Parameter.empty and name not in (*settings, *given):
            yield Problem(f"{field}.{name}", f"must be given; {found.__name__} needs it")


def _class(settings: Mapping[str, Any]) -> Any:
    module, _, name = settings["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def _arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "_target_"}
