# SPDX-License-Identifier: Apache-2.0
"""A training ends before its last step where a rule says so, and only there."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fmstune.config import conditions
from fmstune.config.job import EarlyStopping
from fmstune.training.stopping import find_stop_reason, stalled
from tests.conftest import Result
from tests.end_to_end.test_resume import QUICK, interrupted_after

Run = Callable[..., Result]


@pytest.mark.parametrize(
    ("values", "patience", "stops"),
    [
        ([], 1, False),
        ([1.0], 1, False),
        ([1.0, 0.9], 1, False),
        ([1.0, 1.0], 1, True),
        ([1.0, 1.1, 0.9], 2, False),
        ([1.0, 1.1, 1.2], 2, True),
        ([1.0, 1.1, 1.0], 2, True),
        ([1.0, 0.5, 0.6, 0.7, 0.8], 3, True),
        ([0.8, 0.7, 0.6, 0.5], 3, False),
    ],
)
def test_patience_ends_when_the_last_values_are_no_better_than_those_before(
    values: list[float], patience: int, stops: bool
) -> None:
    assert (stalled(EarlyStopping(patience=patience), values) is not None) is stops
    more = EarlyStopping(patience=patience, greater_is_better=True)
    assert (stalled(more, [-value for value in values]) is not None) is stops


def test_what_is_better_by_too_little_is_no_better() -> None:
    assert stalled(EarlyStopping(patience=1, threshold=0.25), [1.0, 0.5]) is None
    assert stalled(EarlyStopping(patience=1, threshold=0.25), [1.0, 0.8]) == (
        "eval_loss has not fallen by more than 0.25 since it was 1, 1 values ago"
    )


def test_the_first_rule_that_holds_is_named_with_the_values_it_looked_at() -> None:
    rules = [conditions.read_condition("eval_loss > 2"), conditions.read_condition("step >= 20 and loss < 0.5")]
    logged = {"loss": [0.9, 0.4], "step": [10.0, 20.0], "eval_loss": [1.0, 1.5]}
    assert (
        find_stop_reason(EarlyStopping(patience=1), rules, logged)
        == "eval_loss has not fallen since it was 1, 1 values ago"
    )
    assert find_stop_reason(None, rules, logged) == "step >= 20 and loss < 0.5 (step is 20, loss is 0.4)"
    assert find_stop_reason(None, rules, {**logged, "loss": [0.9, 0.5]}) is None
    assert find_stop_reason(None, [], logged) is None


@pytest.mark.slow
def test_a_run_ends_where_its_rule_says_also_when_it_was_killed_just_there(fmstune: Run) -> None:
    words = (
        *QUICK,
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.threshold=100",
        'callbacks.stop_when=["loss < 0.001", "not risen(eval_mean_token_accuracy, 9)"]',
        "training.eval_strategy=steps",
        "training.eval_steps=1",
        "output_dir=run",
    )
    first = fmstune(*words)
    assert first.code == 0, first.err
    assert (first.summary["steps"], first.summary["plan"]["total_steps"]) == (2, 4)
    assert first.summary["stopped"].startswith("eval_loss has not fallen by more than 100 since it was ")
    assert f"stopped after step 2: {first.summary['stopped']}" in first.out
    weights = Path("run/model/adapter_model.safetensors").read_bytes()
    interrupted_after(2)
    again = fmstune(*words)
    assert again.code == 0, again.err
    assert (again.summary["steps"], again.summary["steps_here"]) == (2, 0)
    assert Path("run/model/adapter_model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_a_run_without_rules_says_that_it_was_not_stopped(fmstune: Run) -> None:
    run = fmstune("training.max_steps=1", "training.save_strategy=no", "evaluation=none", "data.max_rows=8")
    assert json.loads((run.folder / "summary.json").read_text())["stopped"] is None
