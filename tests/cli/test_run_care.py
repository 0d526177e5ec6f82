"""The verbs runs, logs and clean, as a user types them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fmstune.cli import run_care
from fmstune.runs.listing import list_runs
from tests.conftest import Result
from tests.runs.making_runs import make_checkpoint, make_run

Run = Callable[..., Result]


def test_an_empty_folder_says_so_and_is_no_error(fmstune: Run) -> None:
    assert fmstune("runs") == Result(0, "no runs in runs (no such folder yet)\n", "")
    Path("runs").mkdir()
    assert fmstune("runs") == Result(0, "no runs in runs\n", "")
    assert fmstune("runs", "--json").out == "[]\n"
    assert fmstune("runs", "nowhere").code == 2


def test_runs_are_a_table_with_damaged_ones_named_and_counted(fmstune: Run) -> None:
    make_run(Path("runs/a"), steps=4, tuned={"eval_loss": 0.5}, train_seconds=65.0)
    make_run(Path("runs/b"))
    Path("runs/b/summary.json").write_text("{")
    out = fmstune("runs").out.splitlines()
    assert out[0].split() == ["run", "status", "tuned.eval_loss", "steps", "time", "size", "begun"]
    assert out[2].split()[:5] == ["a", "finished", "0.5", "4/4", "1:05"]
    assert out[3].split()[:2] == ["b", "damaged"]
    assert out[4].startswith("damaged: runs/b/summary.json: cannot be read")
    assert out[-1] == "2 runs: 1 finished, 1 damaged; 0.0 MiB"
    rows = json.loads(fmstune("runs", "--json").out)
    assert [(row["folder"], row["status"]) for row in rows] == [("runs/a", "finished"), ("runs/b", "damaged")]


def test_a_narrow_terminal_has_two_lines_a_run() -> None:
    make_run(Path("runs/a"), steps=4, tuned={"eval_loss": 0.5})
    shown = run_care.render_runs(list_runs(Path("runs")), Path("runs"), 40).splitlines()
    assert shown[0] == "a"
    assert shown[1].startswith("  finished  tuned.eval_loss 0.5  4/4 steps  0:00  0.0 MiB  ")


def test_runs_that_are_compared_by_different_numbers_name_them() -> None:
    make_run(Path("runs/a"), tuned={"eval_loss": 0.5})
    (make_run(Path("runs/b"), train_loss=0.25) / "job.yaml").write_text("compare_by: train_loss\n")
    shown = run_care.render_runs(list_runs(Path("runs")), Path("runs"), 200).splitlines()
    assert " objective " in shown[0]
    assert "tuned.eval_loss 0.5" in shown[2] and "train_loss 0.25" in shown[3]


def test_the_log_of_a_run_is_printed_and_of_several_under_their_names(fmstune: Run) -> None:
    for name in ("a", "b"):
        (make_run(Path("runs") / name) / "log.txt").write_text(f"words of {name}\n")
    assert fmstune("logs", "runs/a").out == "words of a\n"
    assert fmstune("logs", "runs").out == "==> a <==\nwords of a\n\n==> b <==\nwords of b\n"
    # it follows until the run ends, and this one has
    assert fmstune("logs", "-f", "runs/a").out == "words of a\n"


def test_a_run_without_a_log_says_so(fmstune: Run) -> None:
    make_run(Path("runs/a"))
    assert fmstune("logs", "runs/a").err.startswith("fmstune: runs/a has no log")


def test_clean_shows_sizes_and_without_a_terminal_removes_nothing_unless_told_so(fmstune: Run) -> None:
    run = make_run(Path("runs/a"))
    for step in (1, 2):
        make_checkpoint(run, step)
    asked = fmstune("clean", "runs", "--keep", "last")
    assert asked.code == 2
    assert asked.out == "runs/a (finished): checkpoint-2 stays\n  remove checkpoint-1  0.0 MiB\n"
    assert asked.err == (
        "fmstune: error: --yes must be given where no terminal can be asked: "
        "1 checkpoint of 1 run, 0.0 MiB would be removed\n"
    )
    assert (run / "checkpoint-1").is_dir()
    assert fmstune("clean", "runs", "--keep", "last", "--yes").out.endswith("removed 1 checkpoint of 1 run, 0.0 MiB\n")
    assert not (run / "checkpoint-1").exists()
    again = fmstune("clean", "runs", "--keep", "last", "--yes")
    assert again == Result(
        0, "nothing to remove in runs: no ended run has other checkpoints than those that stay\n", ""
    )


@pytest.mark.parametrize(("answer", "gone"), [("y", True), ("", False), ("no", False)])
def test_in_a_terminal_clean_asks(answer: str, gone: bool, fmstune: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(Path("runs/a"))
    for step in (1, 2):
        make_checkpoint(run, step)
    monkeypatch.setattr(run_care, "_is_terminal", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert fmstune("clean", "runs", "--keep", "last").code == 0
    assert (run / "checkpoint-1").exists() is not gone
