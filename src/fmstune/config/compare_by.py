"""Which number of `summary.json` says that one run is better than another."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeGuard

from fmstune.config.choices import Direction
from fmstune.config.job import SFT, Job, has_held_out, sources
from fmstune.config.metrics import Place, better_end, comparable, metrics_of, names_at
from fmstune.errors import Problem, did_you_mean

USUAL = ("tuned.eval_loss", "train_loss")
"""The numbers that runs are compared by unless a job names another: on held-out rows, else in training."""


def path(job: Job) -> str:
    """The number that the job names, or what suits it: the loss on held-out answers, else that of the training."""
    return job.compare_by or USUAL[0 if _is_evaluated(job) else 1]


def direction(job: Job) -> Direction | None:
    """Whether less or more of it is better; None where that must be given."""
    return job.direction or better_end(metrics_of(job), path(job))


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that can be compared with others."""
    # neither inf nor nan, nor a whole number that is too large for a float
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def curve(metrics: Iterable[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """Step and value of one metric of `metrics.jsonl`, without values that are not numbers."""
    pairs = ((line.get("step"), line.get(name)) for line in metrics)
    return [
        (step, float(value))
        for step, value in pairs
        if isinstance(step, int) and abs(step) < 2**63 and is_number(value)
    ]


def figure(summary: Mapping[str, Any], name: str) -> float | None:
    """Return the number under this dotted name, unchanged; None if the summary has none."""
    found: Any = summary
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found if is_number(found) else None


def value(summary: Mapping[str, Any], name: str) -> float | None:
    """The same as a float, whole numbers too."""
    return None if (found := figure(summary, name)) is None else float(found)


def compare_by_problems(job: Job) -> Iterator[Problem]:
    """Yield a problem where the summary of this job will not hold the number that it is compared by."""
    name = job.compare_by
    if name is None:
        return
    known = comparable_figures(job)
    if name.startswith("tuned.") and not _is_evaluated(job):
        hint = "set data.eval or data.eval_fraction, and an evaluation group that is not none"
        yield Problem("compare_by", f": {name} is measured on held-out rows, and this job measures none; {hint}")
    elif name not in known:
        hint = f"{did_you_mean(name, known)} ({', '.join(known)})"
        yield Problem("compare_by", f": {name} is not a number of summary.json{hint}")
    elif direction(job) is None:
        yield Problem("direction", f"must be given for compare_by={name}: minimize or maximize")


def comparable_figures(job: Job) -> list[str]:
    """The numbers of `summary.json` that runs of this job can be compared by, by their dotted names."""
    table = metrics_of(job)
    sets = ["", *(f"sets.{name}." for name in sources(job.data, "eval") if name)]
    return [
        *comparable(table),
        *losses_of_sources(job),
        *(f"tuned.{part}{score}" for part in sets for score in names_at(table, Place.held_out)),
    ]


def losses_of_sources(job: Job) -> list[str]:
    """The names of the losses of the training sources, logged and in `summary.json`; none where there is one source."""
    names = sources(job.data, "train")
    kept = job.data.row_losses and not job.data.streaming and job.objective._target_ == SFT
    return [f"loss_{name}" for name in names] if kept and len(names) > 1 else []


def _is_evaluated(job: Job) -> bool:
    return job.evaluation.enabled and has_held_out(job.data)
