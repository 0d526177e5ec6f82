"""What a Slurm job records and says when its processes have ended."""

import json
from pathlib import Path

import pytest

from fmstune.launch import preemption, slurm_end
from fmstune.runs import run_folder

SAVED = "preempted; a checkpoint was saved at step 7"


def ended(code: int, *flags: str) -> int:
    return slurm_end.main(["run/job.yaml", str(code), *flags])


@pytest.fixture(autouse=True)
def _run() -> None:
    Path("run/.ranks").mkdir(parents=True)
    run_folder.update_summary(Path("run"), {"status": "running", "error": None})


def words(rank: int, kind: str, text: str, at: float) -> None:
    own = {"kind": kind, "text": text, "at": at}
    Path(f"run/.ranks/{rank}.json").write_text(json.dumps({"message": {"fmstune": own}}))


def test_the_first_error_is_said_once_and_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    words(0, "internal", "Connection closed by peer", 1.0)
    words(1, "user", "fmstune: error: data.train: gone", 2.0)
    assert ended(137) == 2
    assert capsys.readouterr().err == "fmstune: error: data.train: gone\n"
    summary = run_folder.read_summary(Path("run"))
    assert (summary["status"], summary["error"]["kind"]) == ("failed", "user")
    assert not Path("run/.ranks").exists()


@pytest.mark.parametrize(("code", "kind"), [(2, "user"), (137, "internal")])
def test_an_end_that_nobody_recorded_is_recorded(code: int, kind: str) -> None:
    assert ended(code) == code
    said = f"the Slurm job ended with code {code}; its log says why"
    assert run_folder.read_summary(Path("run"))["error"] == {"kind": kind, "message": said}


@pytest.mark.parametrize("code", [130, 143])
def test_a_job_that_was_cancelled_before_it_trained_has_not_failed(code: int) -> None:
    assert ended(code) == code
    summary = run_folder.read_summary(Path("run"))
    assert (summary["status"], summary["error"]["kind"]) == ("interrupted", "interrupted")


@pytest.mark.parametrize(("flags", "status"), [(("--requeue",), "queued"), ((), "interrupted")])
def test_a_preempted_job_goes_back_into_the_queue_once(flags: tuple[str, ...], status: str) -> None:
    run_folder.mark_ended(Path("run"), run_folder.INTERRUPTED, run_folder.PREEMPTED, SAVED)
    # 137: srun has killed the process that was the slower one to end
    words(1, run_folder.PREEMPTED, SAVED, 1.0)
    assert ended(137, *flags) == preemption.CODE
    assert run_folder.read_summary(Path("run"))["status"] == status
    assert run_folder.read_summary(Path("run"))["error"]["message"] == SAVED


def test_a_requeued_job_that_fails_before_it_trains_is_not_requeued_for_the_former_end() -> None:
    run_folder.mark_ended(Path("run"), run_folder.INTERRUPTED, run_folder.PREEMPTED, SAVED)
    assert ended(75, "--requeue") == preemption.CODE
    assert ended(1, "--requeue") == 1
    assert run_folder.read_summary(Path("run"))["status"] == "failed"


def test_a_finished_run_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    run_folder.update_summary(Path("run"), {"status": "finished"})
    assert ended(0) == 0
    assert "finished: run" in capsys.readouterr().out
