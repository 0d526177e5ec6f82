# SPDX-License-Identifier: Apache-2.0
"""A training ends before its last step where a rule says so, and only there."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fmstune.config import conditions, freeze
from fmstune.config.job import EarlyStopping
from fmstune.runs import looks, sweep_folder
from fmstune.runs.looks import RowLosses
from fmstune.training.stopping import LoserStopping, find_stop_reason, stalled
from tests.cli.test_main import SCRIPT
from tests.config.test_freeze import tree
from tests.conftest import Result
from tests.end_to_end.test_resume import QUICK, interrupted_after
from tests.fixtures import forked

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


@pytest.mark.parametrize(
    ("last", "looked"), [(None, ["eval_a_loss"]), ("eval_b_loss", ["eval_b_loss"])], ids=["one set", "several sets"]
)
def test_a_look_is_taken_once_a_step_after_the_last_set(tmp_path: Path, last: str | None, looked: list[str]) -> None:
    sweep = {"stop_losers": True, "points": 2, "risk": 1.0}
    job = freeze.freeze(tree(output_dir=str(tmp_path / "own"), sweep=sweep)).job
    (tmp_path / "own").mkdir()
    at, how = SimpleNamespace(global_step=1, max_steps=4, eval_steps=1, is_world_process_zero=True), SimpleNamespace()
    how.eval_strategy = "steps"
    seen, given = [], [""]

    def measure() -> RowLosses:
        seen.append(given[0])
        return RowLosses([1.0] * 30, [2] * 30)

    callback: Any = LoserStopping(job, measure, "rows", last)
    for metric in ("eval_a_loss", "eval_b_loss"):
        given[0] = metric
        callback.on_evaluate(how, at, None, metrics={metric: 0.5})
    assert seen == looked
    at.global_step = 4
    callback.on_train_end(how, at, None)
    assert list(looks.read_curve(tmp_path / "own")) == [0.25, 1.0]


GRID = (
    *("-m", "peft=lora", "training.learning_rate=1e-2,1e-5", "output_dir=sweep", "training.max_steps=8"),
    *("training.gradient_accumulation_steps=1", "training.save_strategy=no", "data.max_rows=32"),
    *("training.eval_strategy=steps", "training.eval_steps=1", "training.per_device_eval_batch_size=30"),
    *("evaluation.max_rows=30", "evaluation.batch_size=30", "evaluation.base=false", "evaluation.max_new_tokens=1"),
)
LOSER = Path("sweep/1-learning_rate=1e-05")


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
def test_a_loser_is_stopped_with_a_checkpoint_and_is_finished_when_asked_for() -> None:
    done = forked.run([SCRIPT, *GRID, "sweep.stop_losers=true"])
    assert done.returncode == 0, done.stderr
    good, lost = sweep_folder.read_points(Path("sweep"))
    assert [good.status, lost.status] == ["finished", "stopped"]
    step = summary(LOSER)["steps"]
    assert 2 < step < 8
    assert lost.steps_saved == 8 - step
    assert lost.error is not None
    assert lost.error.startswith("0-learning_rate=0.01 has the lower held-out loss (")
    assert f"saved: {8 - step} of 16 steps" in done.stdout
    assert "1 of 2 points were stopped early" in done.stdout
    assert "best: sweep/0-learning_rate=0.01" in done.stdout
    assert not (LOSER / "model").exists()
    assert [path.name for path in LOSER.glob("checkpoint-*")] == [f"checkpoint-{step}"]
    # each look is at the rows of the final loss
    ends = looks.read_curve(Path("sweep/0-learning_rate=0.01"))
    assert ends[1.0].loss == pytest.approx(summary(Path("sweep/0-learning_rate=0.01"))["tuned"]["eval_loss"], rel=1e-3)

    again = forked.run([SCRIPT, "-m", "--resume", "sweep"])
    assert "2 of 2 points had ended already" in again.stderr
    assert "was stopped as a loser; sweep.stop_losers=false resumes it" in again.stderr
    assert summary(LOSER)["status"] == "stopped"

    whole = forked.run([SCRIPT, "-m", "--resume", "sweep", "sweep.stop_losers=false"])
    assert whole.returncode == 0, whole.stderr
    assert summary(LOSER)["status"] == "finished"
    assert (summary(LOSER)["steps"], summary(LOSER)["steps_here"]) == (8, 8 - step)
    assert [point.skipped for point in sweep_folder.read_points(Path("sweep"))] == [True, False]
