"""What is written and shown while a run trains."""

import json
import os
import time
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from fmstune.config.metrics import metrics_of
from fmstune.runs.report import plots
from fmstune.training.callbacks import LossPlot, MetricsFile, Progress


@pytest.fixture
def state() -> TrainerState:
    return TrainerState(global_step=3, max_steps=10, epoch=0.5)


@pytest.fixture
def args(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(str(tmp_path), use_cpu=True)


def test_each_log_is_one_line_of_json(tmp_path: Path, args: TrainingArguments, state: TrainerState) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.on_log(args, state, TrainerControl(), logs={"loss": 1.5})
    metrics.on_log(args, state, TrainerControl(), logs={"eval_loss": 2.5})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 3, "epoch": 0.5, "loss": 1.5},
        {"step": 3, "epoch": 0.5, "eval_loss": 2.5},
    ]


def test_a_loss_that_is_no_number_stays_readable(tmp_path: Path, args: TrainingArguments, state: TrainerState) -> None:
    MetricsFile(tmp_path / "m.jsonl").on_log(args, state, TrainerControl(), logs={"loss": float("nan")})
    assert json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=pytest.fail)["loss"] == "nan"


def test_progress_names_loss_rate_speed_and_time_left(
    args: TrainingArguments, state: TrainerState, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(metrics_of({}))
    progress.on_train_begin(args, state, TrainerControl())
    progress._printed = -1e9
    logs = {"loss": 0.5, "learning_rate": 1e-4, "tokens_per_second": 1234.5}
    progress.on_log(args, state, TrainerControl(), logs=logs)
    assert "step 3/10  loss 0.5000  lr 1.00e-04  1,234 tokens/s  0:00 left" in capsys.readouterr().err


def test_without_a_terminal_progress_is_a_line_now_and_then(
    args: TrainingArguments, state: TrainerState, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(metrics_of({}))
    progress.on_train_begin(args, state, TrainerControl())
    for _ in range(50):
        progress.on_log(args, state, TrainerControl(), logs={"loss": 0.5})
    assert capsys.readouterr().err == ""
    state.global_step = 10
    progress.on_log(args, state, TrainerControl(), logs={"loss": 0.5})
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: TrainingArguments, state: TrainerState) -> LossPlot:
    """A picture that is due at the first log, of a run in this folder."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    monkeypatch.setattr(LossPlot, "FIRST_AFTER_SECONDS", 0.0)
    made = LossPlot(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    made.on_train_begin(args, state, TrainerControl())
    return made


def test_the_loss_is_drawn_while_it_trains_by_a_process_that_no_step_waits_for(
    plot: LossPlot, tmp_path: Path, args: TrainingArguments, state: TrainerState
) -> None:
    state.is_world_process_zero = True
    begun = time.perf_counter()
    plot.on_log(args, state, TrainerControl())
    waited = time.perf_counter() - begun
    drawing = plot._drawing
    assert drawing is not None
    assert drawing.wait(timeout=120) == 0
    took = time.perf_counter() - begun
    assert waited < took / 2
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    # the next one waits until this one was a hundredth of the time
    plot.on_log(args, state, TrainerControl())
    assert plot._drawing is None
    assert plot._next - plot._begun == pytest.approx(100 * ((tmp_path / "loss.png").stat().st_mtime - plot._begun))
    assert sorted(os.listdir(tmp_path)) == ["loss.png", "metrics.jsonl"]


def test_a_drawing_that_goes_on_at_the_end_is_given_up_and_leaves_nothing(
    plot: LossPlot, tmp_path: Path, args: TrainingArguments, state: TrainerState
) -> None:
    plot.on_log(args, state, TrainerControl())
    drawing = plot._drawing
    assert drawing is not None
    plots.aside(tmp_path / "loss.png", drawing.pid).touch()
    plot.on_train_end(args, state, TrainerControl())
    assert drawing.poll() is not None
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_picture_that_cannot_be_drawn_is_said_once_and_the_training_goes_on(
    plot: LossPlot, tmp_path: Path, args: TrainingArguments, state: TrainerState, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").write_text("{x\n")
    for _ in range(3):
        plot.on_log(args, state, TrainerControl())
        if plot._drawing is not None:
            plot._drawing.wait(timeout=120)
    assert capsys.readouterr().err == "fmstune: note: loss.png cannot be drawn while training\n"


def test_another_rank_draws_nothing(plot: LossPlot, args: TrainingArguments, state: TrainerState) -> None:
    state.is_world_process_zero = False
    plot.on_log(args, state, TrainerControl())
    assert plot._drawing is None
