"""A run is repeated from what it has recorded: what differs is listed, and what comes out is compared."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fmstune.training import reproduce
from tests.conftest import RECORDED, Result

Run = Callable[..., Result]


def lock(folder: Path = Path("first")) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "lock.json").read_text())
    return found


def edit(**values: Any) -> None:
    (Path("first") / "lock.json").write_text(json.dumps({**lock(), **values}))


def rows(out: str) -> dict[str, list[str]]:
    """The table of differences: recorded and now by fact."""
    lines = [line.split() for line in out.splitlines()]
    start = lines.index(["fact", "recorded", "now"]) + 2
    table = lines[start : lines.index([], start)]
    return {fact: values for fact, *values in table}


@pytest.mark.slow
def test_the_same_job_on_the_same_machine_gives_the_same_bytes(fmstune: Run, recorded_run: Path) -> None:
    again = fmstune("reproduce", "first", "--strict")
    assert again.code == 0, again.err
    assert "0 of the facts that can change the result differ from first/lock.json" in again.out
    assert "weights: bit for bit equal" in again.out
    assert again.folder.parts[0] == "runs"
    assert {**lock(again.folder), "command": ""} == {**lock(), "command": ""}
    name = "model/adapter_model.safetensors"
    assert (again.folder / name).read_bytes() == (recorded_run / name).read_bytes()


def test_what_was_typed_is_recorded(recorded_run: Path) -> None:
    assert lock()["command"] == f"fmstune {' '.join(RECORDED)}"


@pytest.mark.slow
def test_another_machine_is_a_note_that_strict_lets_pass(fmstune: Run, recorded_run: Path) -> None:
    edit(platform="Plan 9", cpu="8086", environment={})
    again = fmstune("reproduce", "first", "--strict", "output_dir=again")
    assert again.code == 0, again.err
    assert again.out.count("(note)") == len(lock(Path("again"))["environment"]) + 2
    assert "bit for bit equal" in again.out


def test_every_difference_is_listed_and_strict_makes_nothing(fmstune: Run, recorded_run: Path) -> None:
    edit(packages={**lock()["packages"], "torch": "1.0"}, git_commit="f" * 40, threads=3)
    (Path("rows.jsonl")).write_text(Path("rows.jsonl").read_text().replace("parcel 3", "parcel 9"))
    weights = load_file("m/model.safetensors")
    weights["lm_head.weight"] += 1
    save_file(weights, "m/model.safetensors", {"format": "pt"})
    shutil.rmtree("runs", ignore_errors=True)

    refused = fmstune("reproduce", "first", "--strict")

    assert refused.code == 2
    differing = (
        "packages.torch",
        "git_commit",
        "threads",
        "data_hashes.data.train",
        "tokens.data.train",
        "model_files.model.path.model.safetensors",
    )
    found = rows(refused.out)
    assert set(found) == set(differing)
    assert found["packages.torch"] == ["1.0", lock(recorded_run)["packages"]["torch"].replace("1.0", torch.__version__)]
    assert f"{len(differing)} of the facts" in refused.out
    assert all(fact in refused.err for fact in differing)
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_change_is_listed_and_by_how_much_the_result_differs_is_said(fmstune: Run, recorded_run: Path) -> None:
    changed = fmstune("reproduce", "first", "training.learning_rate=0.5", "output_dir=again")
    assert changed.code == 0, changed.err
    assert rows(changed.out)["training.learning_rate"][1] == "0.5"
    assert "tensors differ, by up to" in changed.out
    line = next(line for line in changed.out.splitlines() if line.startswith("tuned.eval_loss"))
    assert line.split()[-1] != "none"
    base = next(line for line in changed.out.splitlines() if line.startswith("base.eval_loss"))
    assert base.split()[-1] == "none"


def test_data_that_is_gone_is_a_difference_and_then_the_problem_of_the_run(fmstune: Run, recorded_run: Path) -> None:
    Path("rows.jsonl").unlink()
    gone = fmstune("reproduce", "first")
    assert gone.code == 2
    assert rows(gone.out)["data_hashes.data.train"][1] == "-"
    assert "cannot be checked: data.train: no file rows.jsonl" in gone.out
    assert "data.train: no file rows.jsonl" in gone.err


@pytest.mark.slow
def test_a_record_of_an_older_fmstune_is_compared_as_far_as_it_goes(fmstune: Run, recorded_run: Path) -> None:
    old = {key: value for key, value in lock().items() if key not in ("processes", "model_files", "tokens")}
    (recorded_run / "lock.json").write_text(json.dumps(old))
    shutil.rmtree(recorded_run / "model")
    (recorded_run / "summary.json").write_text('{"status": "failed"}')
    again = fmstune("reproduce", "first", "output_dir=again")
    assert again.code == 0, again.err
    assert rows(again.out)["model_files"] == ["not", "recorded", "-", "(note)"]
    assert "0 of the facts" in again.out
    assert "nothing to compare: the run in first is not finished (failed)" in again.out


def test_weights_are_compared_tensor_by_tensor(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, value in ((one, 1.0), (other, 1.5)):
        folder.mkdir()
        save_file({"a": torch.tensor([value, 1.0]), "b": torch.ones(2)}, folder / "model.safetensors")
    (line,) = reproduce.differing(one, other)
    assert line.startswith("weights: 1 of 2 tensors differ, by up to 5.00e-01 (a), by 2.5e-01 of their size")
    save_file({"a": torch.tensor([1.0, 1.0]), "c": torch.ones(2)}, other / "model.safetensors")
    assert list(reproduce.differing(one, other)) == ["weights: 2 tensors are in one of the two only, such as b"]
    assert "holds none to compare" in next(reproduce.differing(one, tmp_path / "nowhere"))
