"""Run folders are read as they are: half-made, running, killed or broken."""

import json
from pathlib import Path

import pytest

from fmstune.errors import UserError
from fmstune.runs.report import run_data


def make(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.yaml").write_text("name: x\nseed: 1\ntraining:\n  learning_rate: 1.0e-05\n")
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def test_a_run_that_has_just_begun_is_a_run() -> None:
    run = run_data.read_run(make(Path("run")))
    assert run.job == {"name": "x", "seed": 1, "training": {"learning_rate": 1e-05}}
    assert (run.status, run.error, run.figure("tuned.eval_loss"), run.curve("loss")) == ("begun", None, None, [])


def test_the_last_line_may_be_half_written() -> None:
    run = run_data.read_run(make(Path("run"), metrics_jsonl='{"step": 1, "loss": 2.0}\n{"step": 2, "lo'))
    assert run.curve("loss") == [(1, 2.0)]


def test_what_is_no_number_is_in_no_curve() -> None:
    lines = [{"step": 1, "loss": "nan"}, {"step": 2, "loss": True}, {"loss": 1.0}, {"step": 3, "loss": 1}]
    run = run_data.read_run(make(Path("run"), metrics_jsonl="".join(json.dumps(line) + "\n" for line in lines)))
    assert run.curve("loss") == [(3, 1.0)]


def test_all_that_is_broken_is_said_at_once() -> None:
    make(Path("all/0-a"), metrics_jsonl='{"step": 1}\n{x\n[1]\n', summary_json="{")
    make(Path("all/1-b"), lock_json="[]")
    with pytest.raises(UserError) as raised:
        run_data.read_runs(Path("all"))
    found = [problem.partition(" ")[0] for problem in map(str, raised.value.problems)]
    assert found == [
        "all/0-a/summary.json:",
        "all/0-a/metrics.jsonl:2:",
        "all/0-a/metrics.jsonl:3:",
        "all/1-b/lock.json:",
    ]


def test_runs_come_by_their_number() -> None:
    for name in ("10-c", "2-b", "0-a"):
        make(Path("all") / name)
    (Path("all") / "notes").mkdir()
    assert [run.folder.name for run in run_data.read_runs(Path("all"))] == ["0-a", "2-b", "10-c"]


def test_a_folder_of_folders_of_runs_names_these() -> None:
    make(Path("runs/today/a"))
    with pytest.raises(UserError, match="runs: no run here .*; runs are in runs/today"):
        run_data.raise_if_no_run(Path("runs"))
