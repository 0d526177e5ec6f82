"""The states of a run folder."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fmstune.runs import run_folder


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755])
def test_weights_may_be_read_by_those_who_may_read_their_folder(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(1)}, file)
    tmp_path.chmod(mode)
    run_folder.share_weights(tmp_path)
    assert file.stat().st_mode & 0o777 == mode & 0o666


def test_updating_keeps_what_was_there(tmp_path: Path) -> None:
    run_folder.update_summary(tmp_path, {"status": "running", "name": "x"})
    run_folder.update_summary(tmp_path, {"status": "finished"})
    assert run_folder.read_summary(tmp_path) == {"status": "finished", "name": "x"}


@pytest.mark.parametrize(("status", "then"), [("queued", "running"), ("interrupted", "interrupted"), (None, None)])
def test_a_run_that_its_process_has_begun_waits_no_more(tmp_path: Path, status: str | None, then: str | None) -> None:
    if status is not None:
        run_folder.update_summary(tmp_path, {"status": status})
    run_folder.mark_begun(tmp_path)
    assert run_folder.read_summary(tmp_path).get("status") == then


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, "failed"), (signal.SIGTERM, "interrupted"), (signal.SIGSEGV, "failed")]
)
def test_a_runner_that_a_signal_ended_is_recorded(tmp_path: Path, number: signal.Signals, status: str) -> None:
    run_folder.mark_killed(tmp_path, number)
    summary = run_folder.read_summary(tmp_path)
    assert summary["status"] == status
    assert summary["error"]["message"] == f"the runner died of {number.name}"


def test_steps_that_are_taken_again_leave_one_line_each(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo')
    run_folder.drop_metrics_after(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_text() == "\n".join(lines[:2]) + "\n"
    run_folder.drop_metrics_after(tmp_path / "nowhere", 2)
