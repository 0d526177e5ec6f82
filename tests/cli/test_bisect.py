"""`fmstune bisect A B`, as a user types it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Result

Run = Callable[..., Result]


def edit(file: str, change: Callable[[Any], object]) -> None:
    found = json.loads(Path(file).read_text())
    change(found)
    Path(file).write_text(json.dumps(found))


@pytest.fixture
def two_runs(recorded_run: Path) -> None:
    """The recorded run, and a copy of it that passes for another."""
    shutil.copytree(recorded_run, "second")


def in_job(old: str, new: str) -> None:
    text = Path("second/job.yaml").read_text()
    assert text.count(old) == 1
    Path("second/job.yaml").write_text(text.replace(old, new))


@pytest.mark.usefixtures("two_runs")
def test_where_nothing_differs_no_run_is_made(fmstune: Run) -> None:
    done = fmstune("bisect", "first", "second")
    assert done.code == 0, done.err
    assert done.out.startswith("A  first  tuned.eval_loss ")
    assert "no field that can reach the result differs, so no run here can tell more" in done.out
    assert "fingerprints: equal in the first steps" in done.out
    assert not Path("runs").exists()


@pytest.mark.usefixtures("two_runs")
def test_where_only_the_environment_differs_the_first_module_that_departs_is_named(fmstune: Run) -> None:
    edit("second/lock.json", lambda lock: lock["packages"].update(torch="2.12.0"))

    def depart(prints: Any) -> None:
        calls = prints["steps"][1]["modules"]
        attention = next(place for place, one in enumerate(calls) if one["module"].endswith("layers.1.self_attn"))
        for one in calls[attention:]:
            one["output"][:2] = [one["output"][0] + 1, one["output"][1] + 1]

    edit("second/fingerprints.json", depart)
    in_job("name: fmstune", "name: other")
    done = fmstune("bisect", "first", "second", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["differences"] == {} and found["cannot_reach_the_result"] == ["name"]
    (fact,) = found["not_in_the_jobs"]
    assert fact.startswith("packages.torch ") and fact.endswith(" → 2.12.0")
    assert found["first_departure"]["step"] == 1
    assert found["first_departure"]["module"].endswith("layers.1.self_attn")
    assert "1 fact of versions, devices and files above can make the difference" in done.err
    assert "not run, as they cannot reach the result: name (1 field)" in done.err


@pytest.mark.usefixtures("two_runs")
def test_a_rate_that_was_chosen_by_probes_is_the_rate_of_the_run(fmstune: Run) -> None:
    rate = next(line for line in Path("first/job.yaml").read_text().splitlines() if "  learning_rate:" in line)
    in_job(f"{rate}\n", "  learning_rate: auto\n  usual_learning_rate: 0.5\n")
    Path("second/learning_rate.json").write_text(json.dumps({"rate": float(rate.split()[1])}))
    assert "no field that can reach the result differs" in fmstune("bisect", "first", "second").out


@pytest.mark.usefixtures("two_runs")
def test_other_seeds_are_said_to_make_the_difference(fmstune: Run) -> None:
    in_job("seed: 42", "seed: 43")
    assert "the seed makes the difference" in fmstune("bisect", "first", "second").out


@pytest.mark.usefixtures("two_runs")
def test_data_that_has_changed_since_is_said(fmstune: Run) -> None:
    with Path("rows.jsonl").open("a") as file:
        file.write(json.dumps({"output": "### Text: new\n### Response: soon"}) + "\n")
    out = fmstune("bisect", "first", "second").out
    assert "data.train: rows.jsonl has changed since first read it; the runs here read it as it is" in out


@pytest.mark.usefixtures("two_runs")
def test_runs_without_fingerprints_say_so(fmstune: Run) -> None:
    Path("second/fingerprints.json").unlink()
    assert "fingerprints: not recorded by both runs" in fmstune("bisect", "first", "second").out


def test_all_that_is_wrong_is_said_at_once(fmstune: Run, recorded_run: Path) -> None:
    Path("empty").mkdir()
    Path("file").touch()
    done = fmstune("bisect", "frist", "empty", "--max_runs=3", "--steps=0", "--out=file")
    assert done.code == 2
    for text in (
        "--max_runs must be at least 4 (A, B, and A with 2 other seeds), got 3",
        "--steps must be at least 1, got 0",
        "--out: file is a file; name a folder",
        "frist: no such folder; did you mean 'first'?; give the folder of a run",
        "empty: not a run folder (no job.yaml in it)",
    ):
        assert text in done.err


@pytest.mark.usefixtures("two_runs")
def test_runs_that_cannot_be_compared_are_refused(fmstune: Run) -> None:
    assert "bisect: first and first are one run; give two" in fmstune("bisect", "first", "first").err
    done = fmstune("bisect", "first", "second", "--metric=tuned.eval_los")
    assert done.code == 2
    assert "--metric: second has no figure 'tuned.eval_los'; did you mean 'tuned.eval_loss'?" in done.err
    assert "--steps=9 is more than the 2 steps of first" in fmstune("bisect", "first", "second", "--steps=9").err
    edit("second/summary.json", lambda summary: [summary.pop(name) for name in ("tuned", "train_loss")])
    assert "have no loss and no score in common to explain" in fmstune("bisect", "first", "second").err
    Path("second/summary.json").unlink()
    done = fmstune("bisect", "first", "second")
    assert done.code == 2
    assert "second: has no results yet (begun); give a run that has finished" in done.err
    in_job("  resume: null", "  resume: x/checkpoint-1")
    shutil.copy("first/summary.json", "second/summary.json")
    assert "second: training.resume=x/checkpoint-1: it began from" in fmstune("bisect", "first", "second").err


SMALL = (
    *("peft=lora", "data.max_rows=16", "training.max_steps=3", "training.per_device_train_batch_size=4"),
    *("training.gradient_accumulation_steps=1", "training.warmup_steps=0", "training.save_strategy=no"),
    *("evaluation.max_rows=8", "evaluation.base=false", "evaluation.max_new_tokens=1", "launcher.threads=1"),
)


@pytest.mark.slow
def test_the_field_that_makes_the_difference_is_named_and_nothing_is_run_twice(fmstune: Run) -> None:
    for name, words in {
        "a": (),
        "b": ("training.learning_rate=5e-2", "training.adam_epsilon=1e-7", "training.logging_steps=2"),
    }.items():
        assert fmstune(*SMALL, *words, f"output_dir={name}").code == 0
    done = fmstune("bisect", "a", "b", "--out", "found")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert "not run, as they cannot reach the result: output_dir, training.logging_steps (2 fields)" in lines
    assert "at most 6 runs of 3 of 3 steps, in found" in lines
    assert "  training.learning_rate: 0.005 → 0.05" in lines
    assert lines[-2].startswith("  ") and "with it alone: " in lines[-1] and lines[-1].endswith("of the difference")
    assert "run 1 of at most 6: A: tuned.eval_loss " in done.err
    again = fmstune("bisect", "a", "b", "--out", "found", "--json")
    assert "run " not in again.err.partition("at most")[2].partition("\n")[2].partition("B less A")[0]
    found = json.loads(again.out)
    assert (found["causes"], found["explained"], found["minimal"]) == (["training.learning_rate"], True, True)
    # the same job on the same machine: what was recorded is what comes out here
    assert found["here"] == pytest.approx(found["recorded"])
    assert found["runs"] == 5
