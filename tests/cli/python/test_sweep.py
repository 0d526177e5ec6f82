"""A sweep's folder as an object."""

import json
from pathlib import Path

import pytest

import fmstune
from fmstune.cli.python import sweep as sweeps
from fmstune.cli.python.command import Answer
from fmstune.launch import caller


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sweep of three points, of which one failed and one was refused before it began."""
    place = tmp_path / "rates"
    same = {"code": 0, "skipped": False, "compare_by": "train_loss", "direction": "minimize", "error": None}
    points = [
        {"number": 0, "folder": "0-seed=1", "status": "finished", "metrics": {"train_loss": 0.5}, **same},
        {"number": 1, "folder": "1-seed=2", "status": "finished", "metrics": {"train_loss": 0.25}, **same},
        {"number": 2, "folder": "2-seed=x", "status": "failed", "metrics": {}, **same, "code": 2, "error": "seed"},
    ]
    for point in points:
        point["overrides"] = [point["folder"].partition("-")[2]]
    for point in points[:2]:
        (place / point["folder"]).mkdir(parents=True)
        (place / point["folder"] / "job.yaml").write_text("name: x\n")
        (place / point["folder"] / "summary.json").write_text('{"status": "finished"}')
    (place / "sweep.json").write_text(json.dumps(points))
    return place


def test_a_sweep_has_a_row_for_each_point_and_its_best_run(folder: Path) -> None:
    sweep = fmstune.Sweep(folder)
    rows = sweep.points().to_dict("records")
    assert [(row["number"], row["seed"], row["status"], row["train_loss"]) for row in rows[:2]] == [
        (0, "1", "finished", 0.5),
        (1, "2", "finished", 0.25),
    ]
    assert (rows[2]["status"], rows[2]["error"]) == ("failed", "seed")
    assert [run.folder.name for run in sweep.runs] == ["0-seed=1", "1-seed=2"]
    assert sweep.best == fmstune.run(folder / "1-seed=2")
    assert repr(sweep) == "Sweep('rates', 2 of 3 points finished)"


def test_a_sweep_whose_points_have_begun_is_returned_and_one_that_was_refused_raises(folder: Path) -> None:
    assert sweeps._sweep_of(Answer(2, "", {caller.PLACE: str(folder)})).folder == folder
    with pytest.raises(fmstune.UserError, match="fmstune: error: peft=x: no such choice"):
        sweeps._sweep_of(Answer(2, "", {caller.PROBLEMS: [["peft", "=x: no such choice"]]}))


def test_a_folder_without_a_sweep_is_refused() -> None:
    with pytest.raises(fmstune.UserError, match="nowhere: no sweep here"):
        fmstune.Sweep("nowhere")
