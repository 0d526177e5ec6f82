"""Files of a run are whole or not there."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fmstune.errors import UserError
from fmstune.runs import run_folder


def test_json_is_replaced_as_a_whole_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    run_folder.write_json(path, {"a": 1})
    run_folder.write_json(path, {"ü": 2})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ü": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_value_that_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    run_folder.write_json(tmp_path / "summary.json", {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        run_folder.write_json(tmp_path / "summary.json", {"a": float("nan")})
    assert run_folder.read_summary(tmp_path) == {"a": 1}


def test_a_file_that_cannot_be_written_is_named_by_its_flag_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "taken.json"
    folder.mkdir()
    with (
        pytest.raises(UserError, match=r"--out_file: .*taken\.json cannot be written \(Is a directory\)"),
        run_folder.written("--out_file", folder),
    ):
        run_folder.write_json(folder, {})
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755])
def test_weights_may_be_read_by_those_who_may_read_their_folder(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(1)}, file)
    tmp_path.chmod(mode)
    run_folder.share(tmp_path)
    assert file.stat().st_mode & 0o777 == mode & 0o666


def test_updating_keeps_what_was_there(tmp_path: Path) -> None:
    run_folder.update_summary(tmp_path, {"status": "running", "name": "x"})
    run_folder.update_summary(tmp_path, {"status": "finished"})
    assert run_folder.read_summary(tmp_path) == {"status": "finished", "name": "x"}


@pytest.mark.parametrize(("status", "then"), [("queued", "running"), ("interrupted", "interrupted"), (None, None)])
def test_a_run_that_its_process_has_begun_waits_no_more(tmp_path: Path, status: str | None, then: str | None) -> None:
    if status is not None:
        run_folder.update_summary(tmp_path, {"status": status})
    run_folder.begin(tmp_path)
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
    run_folder.keep_metrics(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_text() == "\n".join(lines[:2]) + "\n"
    run_folder.keep_metrics(tmp_path / "nowhere", 2)
