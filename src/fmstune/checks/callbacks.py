"""Rules on what ends a training early: stop rules that can never be true, and losers that could not be told."""

from collections.abc import Iterator, Mapping
from typing import Any

from fmstune.config import compare_by, conditions
from fmstune.config.job import Job, has_held_out, sources
from fmstune.config.metrics import Place, metrics_of, names_at
from fmstune.errors import Problem, did_you_mean
from fmstune.runs.losers import what_stops

_NAN, _PROFILE = "fmstune.training.debugging.nan.FindNan", "fmstune.training.debugging.profiler.Profile"
"""The `_target_` that `debug=nan` and `debug=profile` set."""


def callback_problems(job: Job) -> Iterator[Problem]:
    """Yield a problem for each stop rule that cannot be read or be true, and for debugging that would see nothing."""
    stopping = job.callbacks.early_stopping
    if stopping is not None and (problem := _unknown(job, stopping.metric)) is not None:
        yield Problem("callbacks.early_stopping.metric", f"={problem}")
    rules = conditions.stop_rules(job.callbacks.stop_when)
    if job.callbacks.stop_when is not None and not rules:
        yield Problem("callbacks.stop_when", "has no condition; write one, such as loss < 0.1, or set it to null")
    for text in rules:
        yield from (Problem("callbacks.stop_when", f"={text!r}: {wrong}") for wrong in _wrong_in_condition(job, text))
    for settings in job.callbacks.others.values():
        yield from _unseen_by(settings, job.training)


def _unseen_by(debugging: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Problem]:
    """Words of a command that win over those of `debug=nan` or `debug=profile`, and leave them nothing to look at."""
    if debugging["_target_"] == _NAN and training.get("torch_compile"):
        text = "=true leaves out the hooks by which debug=nan looks at modules; add training.torch_compile=false"
        yield Problem("training.torch_compile", text)
    if debugging["_target_"] == _PROFILE:
        needed, steps = debugging.get("skip_first", 0) + debugging.get("active", 0), training.get("max_steps", -1)
        if 0 <= steps < needed:
            text = f"={steps} ends before debug=profile has seen its steps; set training.max_steps={needed} or more"
            yield Problem("training.max_steps", text)


def _wrong_in_condition(job: Job, text: str) -> Iterator[str]:
    try:
        names = conditions.read_condition(text).names
    except ValueError as err:
        yield str(err)
        return
    if not names:
        yield "no metric stands in it, so that it would be always true or never; name one, such as loss"
    for name in names:
        # logged with each of the other metrics
        if name not in ("step", "epoch") and (problem := _unknown(job, name)) is not None:
            yield problem


def _unknown(job: Job, metric: str) -> str | None:
    """Why this job never logs a metric; None where it does."""
    evaluates = job.training.get("eval_strategy", "no") != "no" and has_held_out(job.data)
    trained = [*names_at(metrics_of(job), Place.training), *compare_by.losses_of_sources(job)]
    known = [*trained, *_held_out(job)]
    if metric in trained or (metric in known and evaluates):
        return None
    if metric in known:
        fields = "set training.eval_strategy=epoch or steps, and data.eval or data.eval_fraction"
        return f"{metric} is measured by evaluating while training; {fields}"
    return f"{metric} is never logged by this job, which logs {', '.join(known)}{did_you_mean(metric, known)}"


def _held_out(job: Job) -> list[str]:
    """The names of what is measured on held-out rows: of each set, where they have names."""
    names = sources(job.data, "train" if job.data.eval is None else "eval")
    prefixes = [f"eval_{name}_" if name else "eval_" for name in names]
    evaluated, sampled = (names_at(metrics_of(job), place) for place in (Place.evaluation, Place.sample))
    found = [f"{prefix}{measure}" for prefix in prefixes for measure in evaluated]
    answered = [f"{prefix}{measure}" for prefix in ("eval_", *prefixes) for measure in sampled]
    return [*found, *(dict.fromkeys(answered) if job.evaluation.sample else [])]


def loser_problems(job: Job) -> Iterator[Problem]:
    """Yield a problem for each reason why points of a sweep cannot be compared on held-out rows while they train."""
    if (stopped_by := what_stops(job.sweep)) is None:
        return
    field, value = stopped_by
    if not has_held_out(job.data):
        yield Problem(field, f"={value} compares points on held-out rows; set data.eval or data.eval_fraction")
    if job.training.get("eval_strategy", "no") == "no":
        yield Problem(field, f"={value} looks at points at each evaluation; set training.eval_strategy=steps")
    if (path := compare_by.path(job)) != LOSS and has_held_out(job.data):
        text = f"={value} compares points by their held-out loss, and this sweep by {path}; set compare_by={LOSS}"
        yield Problem(field, f"{text}{'' if job.evaluation.enabled else ' and evaluation.enabled=true'}")


LOSS = compare_by.USUAL[0]
