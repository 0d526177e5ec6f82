"""A row for each run and sweep of a folder."""

import json
import os
from pathlib import Path

import pytest

from fmstune.errors import UserError
from fmstune.runs import processes, run_folder, sweep_folder
from fmstune.runs.listing import ListedRun, Status, list_runs, run_folders, run_status
from tests.runs.making_runs import make_run

SPENT = {"train_seconds": 5.0, "preparation_seconds": 1.0, "load_seconds": 0.5}


def aged(run: Path, begun: int) -> Path:
    """The run as if it had begun then, in seconds since 1970."""
    os.utime(run / "job.yaml", (begun, begun))
    for name in ("metrics.jsonl", "summary.json"):
        if (run / name).exists():
            os.utime(run / name, (begun + 8, begun + 8))
    return run


def test_a_finished_run_has_the_figures_of_its_summary() -> None:
    aged(make_run(Path("runs/a"), steps=4, tuned={"eval_loss": 0.5}, train_loss=1.0, **SPENT), 1000)
    size = sum(path.stat().st_size for path in Path("runs/a").iterdir())
    assert list_runs(Path("runs")) == [
        ListedRun("runs/a", "run", Status.finished, "tuned.eval_loss", 0.5, 4, 4, 6.5, size, 1000.0)
    ]


def test_a_run_that_did_not_finish_has_the_steps_and_the_time_that_it_took() -> None:
    aged(make_run(Path("runs/a"), status="failed", kind="user"), 1000)
    (row,) = list_runs(Path("runs"))
    assert (row.status, row.objective, row.steps, row.total_steps, row.seconds) == (Status.failed, None, 2, 4, 8.0)


@pytest.mark.parametrize(
    ("status", "kind", "shown"),
    [
        ("finished", None, "finished"),
        ("failed", "user", "failed"),
        ("failed", "signal", "killed"),
        ("interrupted", "interrupted", "interrupted"),
        ("interrupted", "preempted", "stopped"),
        ("queued", None, "queued"),
        ("running", None, "killed"),
        (None, None, "killed"),
    ],
)
def test_the_status_is_the_recorded_one_unless_the_process_is_gone(
    status: str | None, kind: str | None, shown: str
) -> None:
    assert run_status(aged(make_run(Path("a"), status=status, kind=kind), 1000)) == shown


def test_a_run_whose_process_lives_is_running_whatever_its_last_leg_recorded() -> None:
    for name, status in (("a", "running"), ("b", "failed"), ("c", None)):
        with processes.record_process(aged(make_run(Path(name), status=status), 1000)):
            assert run_status(Path(name)) is Status.running
    with run_folder.lock_folder(aged(make_run(Path("of an earlier fmstune"), status="running"), 1000)):
        assert run_status(Path("of an earlier fmstune")) is Status.running


def test_a_run_of_another_machine_is_running_as_far_as_it_says_and_names_the_machine() -> None:
    run = aged(make_run(Path("runs/a"), status="running"), 1000)
    (run / processes.FILE).write_text(json.dumps({"host": "node7", "pid": 3, "started": 1.0, "slurm_job_id": None}))
    (row,) = list_runs(Path("runs"))
    assert (row.status, row.host) == (Status.running, "node7")


def test_the_newest_is_last_and_folders_between_are_looked_into() -> None:
    for number, name in enumerate(("2026-01-02/b", "a", "2026-01-01/c")):
        aged(make_run(Path("runs") / name), 1000 + number)
    assert [row.folder for row in list_runs(Path("runs"))] == ["runs/2026-01-02/b", "runs/a", "runs/2026-01-01/c"]
    assert [row.folder for row in list_runs(Path("runs/a"))] == ["runs/a"]


def make_sweep(folder: Path, *states: str) -> Path:
    for number, status in enumerate(states):
        aged(make_run(folder / f"{number}-seed={number}", status=status, tuned={"eval_loss": number / 4}), 1000)
        summary = json.dumps({"status": status, "tuned": {"eval_loss": number / 4}})
        (folder / f"{number}-seed={number}" / "summary.json").write_text(summary)
        by, words = "tuned.eval_loss", [f"seed={number}"]
        point = sweep_folder.Point(
            number, f"{number}-seed={number}", words, status, 0, False, by, "minimize", {by: number / 4}, None
        )
        sweep_folder.record_point(folder, point)
    sweep_folder.record_command(folder, ["-m"])
    sweep_folder.gather_points(folder)
    return folder


def test_a_sweep_is_one_row_with_its_best_point_and_its_folder_lists_the_points() -> None:
    make_sweep(Path("runs/rates"), "finished", "failed", "finished")
    (row,) = list_runs(Path("runs"))
    assert (row.kind, row.status, row.compare_by, row.objective) == ("sweep", Status.failed, "tuned.eval_loss", 0.0)
    assert (row.steps, row.total_steps) == (2, 3)
    assert [one.kind for one in list_runs(Path("runs/rates"))] == ["run"] * 3
    assert len(run_folders(Path("runs"))) == 3


def test_a_sweep_runs_while_its_own_process_lives() -> None:
    make_sweep(Path("runs/rates"), "finished")
    assert list_runs(Path("runs"))[0].status is Status.finished
    with processes.record_process(Path("runs/rates")):
        assert list_runs(Path("runs"))[0].status is Status.running


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("summary.json", "{", "runs/a/summary.json: cannot be read"),
        ("job.yaml", "a: [", "runs/a/job.yaml: cannot be read"),
        ("job.yaml", None, "runs/a: no job.yaml"),
    ],
)
def test_a_damaged_run_is_listed_with_the_reason(file: str, text: str | None, says: str) -> None:
    run = make_run(Path("runs/a"))
    (run / file).unlink() if text is None else (run / file).write_text(text)
    (row,) = list_runs(Path("runs"))
    assert row.status is Status.damaged
    assert row.damage is not None and row.damage.startswith(says)


def test_other_folders_are_no_runs() -> None:
    Path("runs/notes").mkdir(parents=True)
    Path("runs/notes/summary.json").write_text("{}")
    assert list_runs(Path("runs")) == []
    with pytest.raises(UserError, match="^nowhere: no such folder; give a folder of runs"):
        list_runs(Path("nowhere"))
