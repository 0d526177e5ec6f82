"""What is written and shown while a run trains."""

import json
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from fmstune.callbacks import MetricsFile, Progress


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
    progress = Progress()
    progress.on_train_begin(args, state, TrainerControl())
    progress._printed = -1e9
    logs = {"loss": 0.5, "learning_rate": 1e-4, "tokens_per_second": 1234.5}
    progress.on_log(args, state, TrainerControl(), logs=logs)
    assert "step 3/10  loss 0.5000  lr 1.00e-04  1,234 tokens/s  0:00 left" in capsys.readouterr().err


def test_without_a_terminal_progress_is_a_line_now_and_then(
    args: TrainingArguments, state: TrainerState, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress()
    progress.on_train_begin(args, state, TrainerControl())
    for _ in range(50):
        progress.on_log(args, state, TrainerControl(), logs={"loss": 0.5})
    assert capsys.readouterr().err == ""
    state.global_step = 10
    progress.on_log(args, state, TrainerControl(), logs={"loss": 0.5})
    assert capsys.readouterr().err.count("\n") == 1
