"""Short runs: how long they are, the job of one, and the number that two runs are compared by."""

import math
from pathlib import Path
from typing import Any

import pytest

from fmstune.config import freeze
from fmstune.config.job import Job
from fmstune.runs.report.run_data import Run
from fmstune.sweeps.short_runs import choose_share, common_figure, short_job
from tests import composing


def run(losses: list[float], steps: int | None = None, **summary: Any) -> Run:
    metrics = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    plan = {"plan": {"total_steps": steps or len(losses)}}
    return Run(Path("x"), {}, {**plan, **summary}, metrics, {}, {}, [], [])


def wave(count: int, gap_from: int = 10**6, gap: float = 0.5) -> list[float]:
    """A loss that changes by about 0.1 from step to step, and by `gap` from a step on."""
    return [2 + 0.05 * math.sin(5 * step) + (gap if step >= gap_from else 0) for step in range(count)]


def job(*words: str) -> Job:
    return freeze.freeze(composing.composed_tree(*words)).job


def test_runs_of_few_steps_are_repeated_whole() -> None:
    assert choose_share(run(wave(16)), run(wave(16, 0))) == 1.0


def test_curves_that_are_apart_early_need_few_steps() -> None:
    assert choose_share(run(wave(100)), run(wave(100, 0))) == 0.08  # eight of a hundred
    assert choose_share(run(wave(100)), run(wave(100, 20))) == pytest.approx(1.5 * 0.21)


def test_curves_that_are_never_apart_are_run_whole() -> None:
    assert choose_share(run(wave(100)), run(wave(100))) == 1.0
    assert choose_share(run(wave(100)), run(wave(100, 98))) == 1.0
    assert choose_share(run(wave(100)), run([])) == 1.0


def test_runs_of_other_length_are_compared_at_the_same_share() -> None:
    long = run([value for value in wave(50, 0) for _ in range(2)])
    assert choose_share(run(wave(50)), long) == 0.16


def test_a_short_run_keeps_the_schedule_and_ends_early() -> None:
    whole = job("training.max_steps=200", "tracking=tensorboard")
    short = short_job(whole, 0.1, Path("x/a"), "tuned.eval_loss", more_seed=2)
    assert short.training["max_steps"] == 200 and short.callbacks.stop_when == "step >= 20"
    assert (short.training["save_strategy"], short.training["logging_steps"]) == ("no", 1)
    assert (short.output_dir, short.seed, short.tracking) == ("x/a", whole.seed + 2, {})
    assert (short.evaluation.base, short.evaluation.max_new_tokens) == (False, 1)


def test_a_run_by_epochs_ends_at_a_share_of_them() -> None:
    short = short_job(job("training.num_train_epochs=4"), 0.25, Path("x"), "train_loss")
    assert short.callbacks.stop_when == "epoch >= 1.000000"


def test_the_rules_of_the_job_hold_too_and_what_they_look_at_stays() -> None:
    words = ("callbacks.stop_when='loss < 0.1'", "training.max_steps=100", "training.logging_steps=5")
    short = short_job(job(*words), 0.5, Path("x"), "tuned.eval_loss")
    assert short.callbacks.stop_when == ["loss < 0.1", "step >= 50"]
    assert short.training["logging_steps"] == 5


def test_a_whole_run_has_no_further_rule_and_scores_are_measured_as_they_were() -> None:
    whole = job("training.max_steps=8", "training.data_seed=3")
    short = short_job(whole, 1.0, Path("x"), "tuned.exact_match", more_seed=1)
    assert short.callbacks.stop_when is None and short.evaluation == whole.evaluation
    assert short.training["data_seed"] == 4


def test_the_number_that_compares_the_runs_is_taken_where_both_have_it() -> None:
    scored, plain = job("compare_by=tuned.exact_match", "direction=maximize"), job("evaluation=none")
    both = run([], 1, train_loss=1.0, tuned={"exact_match": 0.5, "eval_loss": 0.5})
    assert common_figure(both, both, (scored, scored)) == "tuned.exact_match"
    assert common_figure(both, run([], 1, train_loss=2.0), (scored, plain)) == "train_loss"
    assert common_figure(both, run([], 1), (scored, plain)) is None
