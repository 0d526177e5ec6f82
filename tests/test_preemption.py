"""A run that is given notice saves a checkpoint and stops; the same command goes on to the same weights."""

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from fmstune import preemption
from fmstune.trainer import SaveAndStop
from tests.conftest import Result
from tests.test_cli import SCRIPT, wait_for

JOB = (
    "training.max_steps=40",
    "training.save_strategy=no",
    "training.per_device_train_batch_size=4",
    "training.gradient_accumulation_steps=2",
    "training.logging_steps=1",
    "launcher.device=cpu",
    "launcher.threads=1",
    "data.max_rows=64",
    "evaluation=none",
)


@pytest.fixture
def _former_handlers() -> Iterator[None]:
    numbers = preemption.signals({"SLURM_JOB_ID": "1"})
    former = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def test_sigterm_is_a_notice_within_a_slurm_job_only() -> None:
    assert preemption.signals({}) == {signal.SIGUSR1, signal.SIGUSR2}
    assert preemption.signals({"SLURM_JOB_ID": "7"}) == {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM}


@pytest.mark.usefixtures("_former_handlers")
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_a_notice_is_kept_until_the_next_run(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    preemption.heed()
    assert not preemption.given()
    signal.raise_signal(number)
    assert preemption.given()
    preemption.heed()
    assert not preemption.given()


def test_the_step_is_saved_once_also_where_training_stops_with_it(tmp_path: Path) -> None:
    args, state = TrainingArguments(str(tmp_path), use_cpu=True), TrainerState()
    control, asked = TrainerControl(), False
    callback = SaveAndStop(lambda: asked)
    callback.on_step_end(args, state, control)
    assert not (control.should_save or control.should_training_stop)
    asked = True
    callback.on_step_end(args, state, control)
    assert control.should_save and control.should_training_stop
    control.should_evaluate = True
    callback.on_epoch_end(args, state, control)
    assert not (control.should_save or control.should_evaluate)


@pytest.mark.slow
def test_a_run_that_gets_sigusr1_saves_and_stops_and_the_same_command_ends_it(fmstune: Callable[..., Result]) -> None:
    process = subprocess.Popen(
        [SCRIPT, *JOB, "output_dir=run"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: Path("run/metrics.jsonl").exists() or process.poll() is not None, "the first step")
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=60)
    assert process.returncode == preemption.CODE == 75, err
    assert "Traceback" not in err
    (checkpoint,) = Path("run").glob("checkpoint-*")
    step = int(checkpoint.name.rpartition("-")[2])
    assert 0 < step < 40
    summary = json.loads(Path("run/summary.json").read_text())
    said = f"preempted; a checkpoint was saved at step {step}, and the same command goes on"
    assert (summary["status"], summary["error"]) == ("interrupted", {"kind": "preempted", "message": said})
    assert f"interrupted: run\n  {said}" in out
    assert not Path("run/model").exists()

    again = fmstune(*JOB, "output_dir=run")
    assert again.code == 0, again.err
    assert (again.summary["steps"], again.summary["steps_here"]) == (40, 40 - step)
    undisturbed = fmstune(*JOB, "output_dir=other")
    assert undisturbed.code == 0
    weights = [Path(folder, "model", "model.safetensors").read_bytes() for folder in ("run", "other")]
    assert weights[0] == weights[1]
