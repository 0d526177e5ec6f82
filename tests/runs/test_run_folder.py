"""The states of a run folder."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fmstune.errors import UserError
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


LOGS = [{"step": step, "epoch": step / 4, "loss": 1.0 / step} for step in (1, 2, 3)]
LINES = [json.dumps(log) + "\n" for log in LOGS]


def test_steps_that_are_taken_again_leave_one_line_each(tmp_path: Path) -> None:
    after = json.dumps({"step": 2, "epoch": 0.5, "eval_loss": 0.25}) + "\n"  # logged when the checkpoint was saved
    ended = json.dumps({"step": 2, "epoch": 0.5, "train_runtime": 1.0}) + "\n"
    (tmp_path / "metrics.jsonl").write_text("".join([*LINES[:2], after, ended, *LINES[2:], '{"step": 4, "lo']))
    assert run_folder.restore_metrics(tmp_path, LOGS[:2], 2) == []
    assert (tmp_path / "metrics.jsonl").read_text() == "".join([*LINES[:2], after])
    assert run_folder.restore_metrics(tmp_path / "nowhere", [], 2) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", ["3 of 3 lines up to step 3 were lost"]),
        (b"garbage\n", ["1 lines that hold no metrics were removed", "3 of 3 lines up to step 3 were lost"]),
        (b"\x80\x81\n[]\n", ["2 lines that hold no metrics were removed", "3 of 3 lines up to step 3 were lost"]),
        (b"[" * 100_000 + b"\n", ["1 lines that hold no metrics were removed", "3 of 3 lines up to step 3 were lost"]),
        (LINES[0].encode() + b'{"step": 2, "lo\n' + LINES[2].encode(), ["1 lines that hold", "1 of 3 lines up to"]),
        (None, ["3 of 3 lines up to step 3 were lost"]),
    ],
)
def test_lines_that_are_lost_come_back_from_the_checkpoint(
    tmp_path: Path, content: bytes | None, said: list[str]
) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_bytes(content)
    notes = run_folder.restore_metrics(tmp_path, LOGS, 3)
    assert [text in note for text, note in zip(said, notes, strict=True)] == [True] * len(said)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(LINES)


ODD = (b"", b"garbage", b"\x80\x81", b"[]", b"3", b"null", b"[" * 100_000, b'"text"')


@pytest.mark.parametrize("content", ODD)
@pytest.mark.parametrize("name", ["summary.json", "lock.json", "sources.json", "samples.json", "tracking.json"])
def test_a_damaged_file_is_named_to_a_reader_and_set_aside_for_a_run(
    tmp_path: Path, name: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: .*; correct or remove the file"):
        run_folder.read_own(path)
    run_folder.set_damaged_aside(tmp_path)
    assert (tmp_path / f"{name}.damaged").read_bytes() == content
    assert not path.exists()
    assert f"{path} was renamed to {name}.damaged, and is written anew: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "lock.json", "samples.json", "loss.png", ".lock"])
def test_a_folder_in_place_of_a_file_is_set_aside_too(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.damaged").touch()
    (tmp_path / name).mkdir()
    run_folder.set_damaged_aside(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.damaged", f"{name}.damaged2"]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"status": 3}, "status must be a text"),
        ({"tuned": [1]}, "tuned must be a mapping"),
        ({"error": "why"}, "error must be a mapping"),
        ({"data": {"sources": {"a": 1}}}, "data.sources must be a mapping of mappings"),
        ({"legs": {}}, "legs must be a list of mappings"),
    ],
)
def test_what_a_reader_counts_on_is_checked(tmp_path: Path, values: dict[str, object], fault: str) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"summary.json: {fault}; correct or remove the file"):
        run_folder.read_summary(tmp_path)
    assert not run_folder.has_finished(tmp_path)
    run_folder.update_summary(tmp_path, {"status": "running"})
    assert run_folder.read_summary(tmp_path) == {"status": "running"}
