"""Trackers, callbacks and the objective of a job: the classes that their `_target_` names."""

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
    for name, settings in job.tracking.items():
        yield from _problems_of(f"tracking.{name}", settings, Tracker, ("subject",))
    for name, settings in job.callbacks.others.items():
        yield from _problems_of(f"callbacks.{name}", settings, TrainerCallback, ())


def make_trackers(job: Job, subject: Subject) -> dict[str, Tracker]:
    """The job's trackers by name, not begun yet."""
    return {
        name: find_class(f"tracking.{name}", one["_target_"], Tracker)(subject=subject, **_arguments(one))
        for name, one in job.tracking.items()
    }


def make_callbacks(job: Job) -> list[TrainerCallback]:
    """The user's own callbacks of the job; raises UserError when a constructor refuses its arguments."""
    made = []
    for name, one in job.callbacks.others.items():
        try:
            made.append(find_class(f"callbacks.{name}", one["_target_"], TrainerCallback)(**_arguments(one)))
        except (TypeError, ValueError) as err:
            raise UserError(f"callbacks.{name}", f": {one['_target_']} refuses its arguments: {err}") from err
    return made


def _problems_of(field: str, settings: Mapping[str, Any], kind: type, given: tuple[str, ...]) -> Iterator[Problem]:
    try:
        found = find_class(field, settings["_target_"], kind)
    except UserError as err:
        yield from err.problems
        return
    parameters = inspect.signature(found).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    takes = [name for name, one in parameters.items() if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)]
    for name in () if open_ended else [name for name in _arguments(settings) if name not in takes or name in given]:
        yield Problem(f"{field}.{name}", f": {found.__name__} has no such argument{did_you_mean(name, takes)}")
    for name in takes:
        if parameters[name].default is inspect.Parameter.empty and name not in (*settings, *given):
            yield Problem(f"{field}.{name}", f"must be given; {found.__name__} needs it")


def _is_below(found: Any, kind: type) -> bool:
    """Whether it is a class that extends `kind`, which alone would do nothing."""
    return isinstance(found, type) and issubclass(found, kind) and found is not kind


def find_class(field: str, target: str, kind: type) -> Any:
    """Import the class that `_target_` names; raises UserError where it is missing, or does not extend `kind`."""
    field, (place, _, name) = f"{field}._target_", target.rpartition(".")
    try:
        module = importlib.import_module(place)
    except ImportError as err:
        raise UserError(field, f": cannot import {place} ({err})") from err
    found = getattr(module, name, None)
    if found is None:
        classes = [known for known, one in vars(module).items() if _is_below(one, kind)]
        raise UserError(field, f": {place} has no class {name!r}{did_you_mean(name, classes)}")
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UserError(field, f": {target} must be a class that extends {kind.__module__}.{kind.__name__}")
    return found


def _arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "_target_"}
