"""Which number of `summary.json` says that one run is better than another."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeGuard

from fmstune.config.job import ANSWERED, Direction, Job, has_held_out, sources
from fmstune.errors import Problem, did_you_mean

SCORES = ("eval_loss", *ANSWERED)
"""What `tuned` holds of held-out rows, and of each of their sets where they have names."""
_FIGURES = (
    "train_loss",
    "train_seconds",
    "step_seconds",
    "tokens_per_second",
    "peak_memory_bytes",
    "load_seconds",
    "preparation_seconds",
)
_HIGHER = ("match", "accuracy", "f1", "per_second")
_LOWER = ("loss", "seconds", "bytes", "perplexity")
USUAL = ("tuned.eval_loss", "train_loss")
"""What runs are compared by where nothing else is asked: on held-out answers, else in training."""


def path(job: Job) -> str:
    """The job's objective, or what suits it: the loss on held-out answers, else that of the training."""
    return job.objective or USUAL[0 if _is_evaluated(job) else 1]


def direction(job: Job) -> Direction | None:
    """Whether less or more of it is better; None where that must be given."""
    return job.direction or direction_of(path(job))


def direction_of(name: str) -> Direction | None:
    """Whether less or more of a figure is better, by its name; None where that does not tell."""
    last = name.rpartition(".")[2]
    # tokens_per_second is not one of seconds
    if any(word in last for word in _HIGHER):
        return Direction.maximize
    return Direction.minimize if any(word in last for word in _LOWER) else None


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that can be compared with others."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def curve(metrics: Iterable[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """Step and value of one metric of `metrics.jsonl`, without what is no number."""
    pairs = ((line.get("step"), line.get(name)) for line in metrics)
    return [(step, float(value)) for step, value in pairs if isinstance(step, int) and is_number(value)]


def figure(summary: Mapping[str, Any], name: str) -> float | None:
    """The number under this dotted name, as it stands there; None where there is none."""
    found: Any = summary
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found if is_number(found) else None


def value(summary: Mapping[str, Any], name: str) -> float | None:
    """The same as a float, whole numbers too."""
    found = figure(summary, name)
    return None if found is None else float(found)


def problems(job: Job) -> Iterator[Problem]:
    """Why the summary of this job will not hold its objective."""
    name = job.objective
    if name is None:
        return
    known = [*_FIGURES, *_scores(job)]
    if name.startswith("tuned.") and not _is_evaluated(job):
        hint = "set data.eval or data.eval_fraction, and an evaluation group that is not none"
        yield Problem("objective", f": {name} is measured on held-out rows, and this job measures none; {hint}")
    elif name not in known:
        yield Problem(
            "objective", f": {name} is no number of summary.json{did_you_mean(name, known)} ({', '.join(known)})"
        )
    elif direction(job) is None:
        yield Problem("direction", f"must be given for objective={name}: minimize or maximize")


def _scores(job: Job) -> list[str]:
    sets = [name for name in sources(job.data, "eval") if name]
    return [f"tuned.{place}{score}" for place in ("", *(f"sets.{name}." for name in sets)) for score in SCORES]


def _is_evaluated(job: Job) -> bool:
    return job.evaluation.enabled and has_held_out(job.data)
