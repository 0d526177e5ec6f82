"""Which checkpoints of ended runs are removed, and which stay."""

from pathlib import Path

import pytest

from fmstune.errors import UserError
from fmstune.runs import processes, run_folder
from fmstune.runs.cleaning import Removable, read_keep, removable, remove_checkpoints
from tests.runs.making_runs import make_checkpoint, make_run

RUN = Path("runs/a")


def names(found: list[Removable]) -> list[list[str]]:
    return [[path.name for path, _ in one.folders] for one in found]


@pytest.mark.parametrize(
    ("keep", "gone"),
    [
        ("last", ["checkpoint-9", "checkpoint-10"]),
        ("best", ["checkpoint-9"]),
        (0, ["checkpoint-9", "checkpoint-10", "checkpoint-11"]),
        (2, ["checkpoint-9"]),
    ],
)
def test_of_a_finished_run_those_stay_that_are_asked_for(keep: str | int, gone: list[str]) -> None:
    make_run(RUN)
    for step in (9, 10, 11):
        make_checkpoint(RUN, step, best="checkpoint-10")
    (RUN / "model").mkdir()
    found, going_on = removable(Path("runs"), keep)
    assert (names(found), going_on) == ([gone], [])
    assert found[0].bytes > 1000 * len(gone)
    assert list(remove_checkpoints(found)) == []
    left = {path.name for path in RUN.iterdir() if path.is_dir()}
    assert left == {"model", *(f"checkpoint-{step}" for step in (9, 10, 11))} - {*gone}
    assert removable(Path("runs"), keep) == ([], [])


def test_without_a_best_one_the_last_stays_and_the_reason_is_given() -> None:
    make_run(RUN)
    for step in (1, 2):
        make_checkpoint(RUN, step)
    (one,), _ = removable(Path("runs"), "best")
    assert (one.kept, one.note) == (("checkpoint-2",), "it records no best checkpoint, so the last one stays")


def test_a_run_that_can_be_resumed_keeps_its_last_checkpoint() -> None:
    make_run(RUN, status="interrupted", kind="preempted")
    for step in (1, 2):
        make_checkpoint(RUN, step)
    (one,), _ = removable(Path("runs"), 0)
    assert (one.kept, names([one])) == (("checkpoint-2",), [["checkpoint-1"]])
    assert one.note == "it is stopped, so the checkpoint that resumes it stays"


def test_an_incomplete_checkpoint_does_not_count_as_one_that_stays() -> None:
    make_run(RUN, status="failed", kind="user")
    make_checkpoint(RUN, 1)
    (RUN / "checkpoint-2").mkdir()
    (RUN / ".saving").mkdir()
    (one,), _ = removable(RUN, "last")
    assert (one.kept, names([one])) == (("checkpoint-1",), [[".saving", "checkpoint-2"]])


def test_where_none_is_complete_all_stay() -> None:
    make_run(RUN)
    (RUN / "checkpoint-2").mkdir()
    assert removable(RUN, 0) == ([], [])


def test_a_running_run_keeps_all() -> None:
    make_run(RUN, status="running")
    for step in (1, 2):
        make_checkpoint(RUN, step)
    with processes.record_process(RUN):
        assert removable(Path("runs"), 0) == ([], [RUN])


def test_a_run_that_was_started_meanwhile_keeps_its_checkpoints() -> None:
    make_run(RUN)
    make_checkpoint(RUN, 1)
    found, _ = removable(Path("runs"), 0)
    with run_folder.lock_folder(RUN):
        (problem,) = remove_checkpoints(found)
    assert str(problem).startswith("runs/a: another process runs this job")
    assert (RUN / "checkpoint-1").is_dir()


def test_keep_is_a_word_or_a_number() -> None:
    assert [read_keep(word) for word in ("best", "last", "3")] == ["best", "last", 3]
    with pytest.raises(UserError, match="^--keep must be best, last or a number of checkpoints, got 'newest'$"):
        read_keep("newest")
