"""What is written and shown while a run trains."""

import json
import os
import time
from pathlib import Path

import pytest
from PIL import Image
from transformers import TrainerControl, TrainerState, TrainingArguments

from fmstune.config.metrics import metrics_of
from fmstune.training.callbacks import LossPlot, MetricsFile, Progress, draw_loss


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
def plot(tmp_path: Path, args: TrainingArguments, state: TrainerState) -> LossPlot:
    """A picture of a run in this folder, which is due at the first log."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    made = LossPlot(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    made.FIRST_AFTER_SECONDS = 0.0
    return made


def test_the_loss_is_drawn_during_training_for_a_hundredth_of_the_time(
    plot: LossPlot, tmp_path: Path, args: TrainingArguments, state: TrainerState
) -> None:
    plot.on_train_begin(args, state, TrainerControl())
    begun = time.monotonic()
    plot.on_log(args, state, TrainerControl())
    took = time.monotonic() - begun
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert plot._next - begun == pytest.approx(101 * took, rel=0.1)
    (tmp_path / "loss.png").unlink()
    plot.on_log(args, state, TrainerControl())
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_the_loss_is_not_drawn_in_the_first_two_minutes(
    tmp_path: Path, args: TrainingArguments, state: TrainerState
) -> None:
    plot = LossPlot(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    begun = time.monotonic()
    plot.on_train_begin(args, state, TrainerControl())
    assert plot._next - begun == pytest.approx(120, abs=1)
    plot.on_log(args, state, TrainerControl())
    assert os.listdir(tmp_path) == []


def test_a_picture_that_cannot_be_drawn_is_noted_once_and_does_not_end_the_training(
    plot: LossPlot, tmp_path: Path, args: TrainingArguments, state: TrainerState, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loss.png").mkdir()
    plot.on_train_begin(args, state, TrainerControl())
    for _ in range(3):
        plot.on_log(args, state, TrainerControl())
    assert capsys.readouterr().err.count("fmstune: note: loss.png cannot be drawn during training (") == 1


def test_another_rank_draws_nothing(
    plot: LossPlot, tmp_path: Path, args: TrainingArguments, state: TrainerState
) -> None:
    state.is_world_process_zero = False
    plot.on_train_begin(args, state, TrainerControl())
    plot.on_log(args, state, TrainerControl())
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_drawn_loss_is_a_picture_and_no_other_file_stays(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)] + [{"step": 3, "eval_loss": 0.5}, {"step": 3}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.width > 600
        assert len(picture.convert("RGB").getcolors(1_000_000)) > 10
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "loss.png"}


def test_a_loss_that_is_not_a_number_is_left_out_of_the_picture(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": "nan"}\n')
    draw_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 0
