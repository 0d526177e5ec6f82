"""Which number of `summary.json` says that one run is better than another."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from fmstune.errors import did_you_mean
from fmstune.job import Direction, Job, has_held_out, sources

_SCORES = ("eval_loss", "exact_match")
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
_LOWER = ("loss", "seconds", "bytes")


def path(job: Job) -> str:
    """The job's objective, or what suits it: the loss on held-out answers, else that of the training."""
    return job.objective or ("tuned.eval_loss" if _is_evaluated(job) else "train_loss")


def direction(job: Job) -> Direction | None:
    """Whether less or more of it is better; None where that must be given."""
    name = path(job).rpartition(".")[2]
    if job.direction is not None:
        return job.direction
    # tokens_per_second is not one of seconds
    if any(word in name for word in _HIGHER):
        return Direction.maximize
    return Direction.minimize if any(word in name for word in _LOWER) else None


def value(summary: Mapping[str, Any], name: str) -> float | None:
    """The number under this path; None where there is none, or one that cannot be compared."""
    found: Any = summary
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    number = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
    return float(found) if number else None


def problems(job: Job) -> Iterator[str]:
    """Why the summary of this job will not hold its objective."""
    name = job.objective
    if name is None:
        return
    known = [*_FIGURES, *_scores(job)]
    if name.startswith("tuned.") and not _is_evaluated(job):
        hint = "set data.eval or data.eval_fraction, and an evaluation group that is not none"
        yield f"objective: {name} is measured on held-out rows, and this job measures none; {hint}"
    elif name not in known:
        yield f"objective: {name} is no number of summary.json{did_you_mean(name, known)} ({', '.join(known)})"
    elif direction(job) is None:
        yield f"direction must be given for objective={name}: minimize or maximize"


def _scores(job: Job) -> list[str]:
    sets = [name for name in sources(job.data, "eval") if name]
    return [f"tuned.{place}{score}" for place in ("", *(f"sets.{name}." for name in sets)) for score in _SCORES]


def _is_evaluated(job: Job) -> bool:
    return job.evaluation.enabled and has_held_out(job.data)
