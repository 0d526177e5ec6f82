"""Run folders are read as they are: half-made, running, killed or broken."""

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fmstune.errors import UserError
from fmstune.runs.report import render, run_data, run_report, terminal_summary


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
    odd = [{"step": 1, "loss": "nan"}, {"step": 2, "loss": True}, {"loss": 1.0}, {"step": 10**400, "loss": 1.0}]
    lines = [*odd, {"step": 3, "loss": 1}]
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


NAMES = ("summary.json", "lock.json", "sources.json", "samples.json", "metrics.jsonl", "job.yaml")


@pytest.mark.parametrize("content", [b"garbage: [", b"\x80\x81\n", b"[]\n", b"3\n", None])
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_named_whatever_is_in_it(name: str, content: bytes | None) -> None:
    run = make(Path("run"))
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir() if content is None else (run / name).write_bytes(content + b"\n")
    with pytest.raises(UserError) as raised:
        run_data.read_run(run)
    (problem, *_) = map(str, raised.value.problems)
    assert problem.startswith(f"run/{name}:")
    assert problem.endswith(("correct or remove the file", "remove the line"))


SUMMARY = {
    "status": "finished",
    "error": None,
    "plan": {"total": 1, "total_steps": 2, "memory": {"weights": 1}},
    "train_loss": 0.5,
    "steps": 2,
    "stopped": "why",
    "positions": 3,
    "tokens_trained_on": 2,
    "base": {"eval_loss": 1.0, "rows": 2, "sets": {"a": {"eval_loss": 1.0, "rows": 2}}},
    "tuned": {"eval_loss": 1.0, "rows": 2, "rows_left_out": 3, "sets": {"a": {"eval_loss": 1.0, "rows": 2}}},
    "data": {"train": {"rows_read": 2, "rows_dropped": 0}, "held_out": None, "sources": {"a": {"rows_read": 2}}},
    "legs": [{"from_step": 0, "to_step": 1}, {"from_step": 1, "to_step": 2}],
    "tracking": {"aim": {"run": "x", "place": "y", "error": None}},
}
VALUES = (None, 3, -1.5, 10**400, float("nan"), "x", "", True, [], {}, [1], [[]], [{}], {"a": 1}, {"a": {"b": []}})


def places(tree: object) -> Iterator[tuple[object, ...]]:
    """Every place of a tree, from its top."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (key,)
        yield from ((key, *below) for below in places(value))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("place", [*places(SUMMARY)], ids=lambda place: ".".join(map(str, place)))
def test_a_summary_with_an_odd_value_anywhere_is_shown_or_its_fault_is(place: tuple[object, ...]) -> None:
    for value in VALUES:
        odd: Any = copy.deepcopy(SUMMARY)
        inner = odd
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        run = make(Path("run"), summary_json=json.dumps(odd))
        with suppress(UserError):
            read = run_data.read_run(run)
            assert render.render_text(run_report.run_document(read))
            assert terminal_summary.render_summary(read.summary, run, read.table)
