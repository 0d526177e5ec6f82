"""A notice to a run that is going on: it reaches its process, or says what reaches it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fmstune.errors import UserError
from fmstune.launch import notice
from fmstune.runs import processes
from tests.runs.making_runs import make_run

RUN = Path("runs/a")
TRAINING = """
import signal, sys, time
from pathlib import Path
from fmstune.runs import processes, run_folder
def stop(number, frame):
    run_folder.mark_ended(Path("runs/a"), "interrupted", "preempted", "a checkpoint was saved at step 2")
    sys.exit(75)
signal.signal(signal.SIGUSR1, stop)
with processes.record_process(Path("runs/a")):
    print("begun", flush=True)
    time.sleep(60)
"""


def recorded(**values: object) -> None:
    own = {"host": "node7", "pid": 12, "started": 1.0, "slurm_job_id": None, **values}
    (RUN / processes.FILE).write_text(json.dumps(own))


def test_a_run_of_this_machine_gets_the_signal_and_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    make_run(RUN, status="running")
    with subprocess.Popen([sys.executable, "-c", TRAINING], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        assert notice.stop_runs(RUN) == 0
        assert process.wait() == 75
    assert capsys.readouterr().out.splitlines() == [
        "notice sent to runs/a: it ends its step, saves a checkpoint and stops",
        "stopped: runs/a",
        "  a checkpoint was saved at step 2",
    ]


def test_a_run_that_has_just_begun_is_waited_for_until_it_has_recorded_its_process() -> None:
    make_run(RUN, status="running")
    with subprocess.Popen([sys.executable, "-c", TRAINING], stdout=subprocess.DEVNULL) as process:
        assert processes.read_process(RUN) is None
        assert notice.stop_runs(RUN) == 0
        assert process.wait() == 75


@pytest.mark.parametrize("status", ["finished", "failed", "running"])
def test_a_run_that_has_ended_is_left_alone(status: str) -> None:
    make_run(RUN, status=status)
    os.utime(RUN / "job.yaml", (1000, 1000))
    ended = "killed" if status == "running" else status
    with pytest.raises(UserError, match=rf"^runs/a: it has ended \({ended}\), so there is nothing to stop$"):
        notice.stop_runs(RUN)


def test_a_run_of_another_machine_says_what_to_do_there() -> None:
    make_run(RUN, status="running")
    recorded()
    with pytest.raises(UserError, match="^runs/a: it runs on node7; there: fmstune stop runs/a, or kill -USR1 12$"):
        notice.stop_runs(RUN)


def test_a_job_of_slurm_gets_the_notice_from_scancel_and_is_not_queued_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(RUN, status="running")
    recorded(slurm_job_id="77")
    scancel = tmp_path / "bin" / "scancel"
    scancel.parent.mkdir()
    summary = json.dumps({"status": "interrupted", "error": {"kind": "preempted", "message": "saved"}})
    script = f"#!/bin/sh\necho $@ >> {tmp_path}/called\necho '{summary}' > {tmp_path}/{RUN}/summary.json\n"
    scancel.write_text(script)
    scancel.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scancel.parent}:{os.environ['PATH']}")
    assert notice.stop_runs(RUN) == 0
    assert (tmp_path / "called").read_text() == "--batch --signal=TERM 77\n--signal=USR1 77\n"


def test_without_scancel_the_words_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    make_run(RUN, status="running")
    recorded(slurm_job_id="77")
    words = "scancel --batch --signal=TERM 77 && scancel --signal=USR1 77"
    with pytest.raises(UserError, match=f"^runs/a: it is Slurm job 77; on a machine of the cluster: {words}$"):
        notice.stop_runs(RUN)


def test_a_queued_job_is_taken_out_of_the_queue_by_the_user() -> None:
    make_run(RUN, status="queued")
    (RUN / "slurm_job_id").write_text("77\n")
    with pytest.raises(UserError, match="^runs/a: it waits in Slurm's queue; scancel 77 takes it out$"):
        notice.stop_runs(RUN)


def test_of_a_sweep_the_running_points_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    make_run(RUN, status="running")
    make_run(Path("runs/b"), status="finished")
    with subprocess.Popen([sys.executable, "-c", TRAINING], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        assert notice.stop_runs(Path("runs")) == 0
        assert process.wait() == 75
    assert capsys.readouterr().out.count("notice sent") == 1
