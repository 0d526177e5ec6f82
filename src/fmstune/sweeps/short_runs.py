"""Short runs that stand for long ones: how long they must be, the job of one, and the number that it gives."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fmstune.config import compare_by
from fmstune.config.conditions import stop_rules
from fmstune.config.job import SFT, Job
from fmstune.runs.report.run_data import Run

LEAST_STEPS = 8
"""Steps of a short run, at least, unless the run itself has fewer."""
WHOLE = 2 * LEAST_STEPS
"""Steps up to which a run is repeated whole."""
_WINDOW = 5
"""Logs over which the difference of two curves is averaged."""
_BEYOND = 3.0
"""Standard errors by which two curves must be apart."""
_FURTHER = 1.5
"""How much longer than to the point where the curves are apart a short run is."""


def total_steps(run: Run) -> int:
    """The steps that a run was planned to take; 0 where that is not known."""
    return int(run.figure("plan.total_steps") or run.figure("steps") or 0)


def choose_share(a: Run, b: Run) -> float:
    """Return the share of its steps that a short run takes: until the recorded losses are apart, and half of it again.

    A share and no number of steps, so that a run of other length is compared at the same point of its schedule.
    """
    fewest = min(total_steps(a), total_steps(b))
    if fewest <= WHOLE:
        return 1.0
    apart = _share_apart(*(_by_share(run) for run in (a, b)))
    return 1.0 if apart is None else min(max(_FURTHER * apart, LEAST_STEPS / fewest), 1.0)


def _by_share(run: Run) -> dict[float, float]:
    steps = total_steps(run)
    return {round(step / steps, 6): value for step, value in run.curve("loss") if step <= steps}


def _share_apart(a: Mapping[float, float], b: Mapping[float, float]) -> float | None:
    """The first share of the steps at which two curves are apart by more than a loss changes from log to log."""
    shares = sorted(a.keys() & b.keys())
    if len(shares) < _WINDOW + 1:
        return None
    jumps = [a[two] - a[one] for one, two in pairwise(shares)]
    # of two batches, each of one curve; the median is not moved by the fall at the beginning
    error = statistics.median(map(abs, jumps)) / 0.6745 / math.sqrt(_WINDOW)
    for end in range(_WINDOW, len(shares) + 1):
        window = shares[end - _WINDOW : end]
        if abs(statistics.fmean(a[one] - b[one] for one in window)) > _BEYOND * error:
            return window[-1]
    return None


def short_job(job: Job, share: float, folder: Path, figure: str, *, more_seed: int = 0) -> Job:
    """Return the job that takes this share of its steps, under the schedule of all of them, and saves no checkpoint.

    `figure` is the number that is wanted; `more_seed` is added to the seeds.
    """
    training = {**job.training, "resume": None}
    if training.get("data_seed") is not None:
        training["data_seed"] += more_seed
    if not training.get("load_best_model_at_end"):
        training["save_strategy"] = "no"
    callbacks = job.callbacks
    if share < 1:
        if not _watches_logs(job):
            training |= {"logging_strategy": "steps", "logging_steps": 1}
        rules = [*stop_rules(callbacks.stop_when), _end_rule(training, share)]
        callbacks = replace(callbacks, stop_when=rules[0] if len(rules) == 1 else rules)
    evaluation = job.evaluation
    if job.objective._target_ == SFT and figure.endswith("loss"):
        evaluation = replace(evaluation, base=False, sample=0, max_new_tokens=1)
    return replace(
        job,
        seed=job.seed + more_seed,
        output_dir=str(folder),
        training=training,
        callbacks=callbacks,
        evaluation=evaluation,
        tracking={},
        launcher=replace(job.launcher, slurm=None),
        sweep=type(job.sweep)(),
    )


def _watches_logs(job: Job) -> bool:
    return job.callbacks.early_stopping is not None or job.callbacks.stop_when is not None


def _end_rule(training: Mapping[str, Any], share: float) -> str:
    """The condition under which this share of the steps has been taken."""
    steps = training.get("max_steps") or -1
    if steps > 0:
        return f"step >= {math.ceil(round(share * steps, 6))}"
    return f"epoch >= {share * float(training.get('num_train_epochs') or 3.0):.6f}"


def common_figure(a: Run, b: Run, jobs: tuple[Job, Job]) -> str | None:
    """Return the number that compares the runs, where both have it; else the usual one that both have, or None."""
    names = [*(compare_by.path(job) for job in jobs), *compare_by.USUAL]
    return next((name for name in names if all(run.figure(name) is not None for run in (a, b))), None)
