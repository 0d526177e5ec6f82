"""A run that is given notice saves a checkpoint and stops; the same command goes on to the same weights."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from fmstune.launch import preemption, subprocesses
from fmstune.training.callbacks import SaveAndStop
from tests.cli.test_main import SCRIPT, wait_for
from tests.conftest import Result
from tests.fixtures import forked

JOB = (
    "training.max_steps=12",
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


@pytest.mark.slow
@pytest.mark.parametrize(("saves", "code"), [(True, 0), (False, preemption.CODE)])
def test_a_notice_waits_until_a_process_that_was_just_started_can_take_it(saves: bool, code: int) -> None:
    """One that saves nothing ends at once then."""
    child = (
        "import sys, time; from fmstune import errors; from fmstune.launch import parent, preemption; time.sleep(1)\n"
        f"try: parent.interrupt_once(saves={saves})\n"
        f"except errors.Preempted: sys.exit({preemption.CODE})\n"
        "sys.exit(not preemption.given())"
    )
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    assert subprocesses.start([sys.executable, "-c", child], os.environ) == code


def test_a_notice_between_two_processes_is_for_the_next_one() -> None:
    child = "import sys; from fmstune.launch import parent, preemption; parent.interrupt_once(saves=True); sys.exit(3)"
    waits = "import time; from fmstune.launch import parent, preemption; parent.interrupt_once(saves=True)\n"
    waits += "while not preemption.given(): time.sleep(0.02)"
    with preemption.kept_back():
        assert subprocesses.start([sys.executable, "-c", child], os.environ) == 3
        # to this thread, as others of the tests' own process would take it
        signal.raise_signal(signal.SIGUSR2)
        assert subprocesses.start([sys.executable, "-c", waits], os.environ) == 0


def test_what_a_shell_starts_may_be_given_notice_at_once_too() -> None:
    child = "import time; from fmstune.launch import parent, preemption; parent.interrupt_once(saves=True)\n"
    child += "while not preemption.given(): time.sleep(0.02)"
    process = subprocess.Popen(
        ["bash", "-c", 'trap "" TERM; echo; exec "$@"', "rank", *KEPT_BACK, sys.executable, "-c", child],
        env={**os.environ, "SLURM_JOB_ID": "7"},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline()
    wait_for(lambda: bool(blocked(process.pid) >> (signal.SIGTERM - 1) & 1), "notices kept back")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0


KEPT_BACK = (sys.executable, "-m", "fmstune.launch.preemption")


def blocked(pid: int) -> int:
    """The signals that wait (proc(5), SigBlk)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("SigBlk:"))


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
    process = forked.Started([SCRIPT, *JOB, "output_dir=run"])
    wait_for(lambda: Path("run/metrics.jsonl").exists() or process.poll() is not None, "the first step")
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=60)
    assert process.returncode == preemption.CODE == 75, err
    assert "Traceback" not in err
    (checkpoint,) = Path("run").glob("checkpoint-*")
    step = int(checkpoint.name.rpartition("-")[2])
    assert 0 < step < 12
    summary = json.loads(Path("run/summary.json").read_text())
    said = f"preempted; a checkpoint was saved at step {step}, and the same command resumes the run"
    assert (summary["status"], summary["error"]) == ("interrupted", {"kind": "preempted", "message": said})
    assert f"interrupted: run\n  {said}" in out
    assert not Path("run/model").exists()

    again = fmstune(*JOB, "output_dir=run")
    assert again.code == 0, again.err
    assert (again.summary["steps"], again.summary["steps_here"]) == (12, 12 - step)
    undisturbed = fmstune(*JOB, "output_dir=other")
    assert undisturbed.code == 0
    weights = [Path(folder, "model", "model.safetensors").read_bytes() for folder in ("run", "other")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_notice_to_a_sweep_ends_all_of_it_and_it_can_be_gone_on_with(fmstune: Callable[..., Result]) -> None:
    process = forked.Started([SCRIPT, "-m", "seed=1,2", *JOB, "output_dir=sweep"])
    first = Path("sweep/0-seed=1")
    wait_for(lambda: (first / "metrics.jsonl").exists() or process.poll() is not None, "the first step")
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=60)
    assert process.returncode == preemption.CODE, err
    assert "interrupted  seed=1" in out and "seed=2" not in out
    assert "Traceback" not in err
    again = fmstune("-m", "--resume", "sweep")
    assert again.code == 0, again.err
    steps = [json.loads((path / "summary.json").read_text())["steps_here"] for path in (first, Path("sweep/1-seed=2"))]
    assert 0 < steps[0] < steps[1] == 12
