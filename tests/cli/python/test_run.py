"""A run folder as an object."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import fmstune
from fmstune.cli.python import run as runs
from fmstune.cli.python.command import Answer
from fmstune.evaluation.prompts import json_prompts_in
from fmstune.launch import caller


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that was stopped after its second step."""
    place = tmp_path / "runs" / "first"
    place.mkdir(parents=True)
    (place / "job.yaml").write_text("name: first\ntraining: {learning_rate: 0.005}\n")
    error = {"kind": "interrupted", "message": "stopped by a signal before the end"}
    (place / "summary.json").write_text(json.dumps({"status": "interrupted", "error": error}))
    (place / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n{"step": 3, "lo')
    return place


def test_a_run_shows_what_its_folder_holds(folder: Path) -> None:
    run = fmstune.run("runs/first")
    assert run.folder == folder and run.model == folder / "model"
    assert run.status == run.summary["status"] == "interrupted"
    assert run.job.training.learning_rate == 0.005
    assert repr(run) == "Run('runs/first', interrupted)"
    assert run == fmstune.run(folder) and Path(run) == folder


def test_metrics_are_a_table_of_pandas(folder: Path) -> None:
    table = fmstune.run(folder).metrics()
    assert table.to_dict("records") == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def test_metrics_are_a_list_where_pandas_is_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert fmstune.run(folder).metrics() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def test_a_folder_without_a_run_is_refused_with_the_name_that_is_near(folder: Path) -> None:
    with pytest.raises(fmstune.UserError, match="runs/frist: no such folder; did you mean 'first'\\?"):
        fmstune.run("runs/frist")
    with pytest.raises(fmstune.UserError, match="runs is not the folder of a run: it has no job.yaml"):
        fmstune.run("runs")


def test_a_run_that_is_stopped_raises_an_error_that_names_its_folder_and_how_to_resume(folder: Path) -> None:
    with pytest.raises(fmstune.RunError) as raised:
        runs.run_of(Answer(130, "", {caller.PLACE: str(folder)}))
    assert raised.value.run == fmstune.run(folder)
    said = "the run in runs/first was stopped: stopped by a signal before the end"
    hint = "its log is runs/first/log.txt; fmstune.run('runs/first').resume() resumes it"
    assert str(raised.value) == f"{said}\n{hint}"


def test_a_run_that_fails_raises_an_error_with_the_cause(folder: Path) -> None:
    error = {"kind": "internal", "message": "ZeroDivisionError: division by zero"}
    (folder / "summary.json").write_text(json.dumps({"status": "failed", "error": error}))
    with pytest.raises(fmstune.RunError, match="the run in runs/first failed: ZeroDivisionError: division by zero"):
        runs.run_of(Answer(1, "", {caller.PLACE: str(folder)}))


def test_a_run_that_is_refused_before_it_begins_raises_its_problems(tmp_path: Path) -> None:
    told = {caller.PROBLEMS: [["data.train", ": no file rows.jsonl"]], caller.PLACE: str(tmp_path / "released")}
    with pytest.raises(fmstune.UserError, match="fmstune: error: data.train: no file rows.jsonl"):
        runs.run_of(Answer(2, "", told))


def test_runs_lists_a_folder_though_a_package_has_its_name(folder: Path) -> None:
    from fmstune.runs import run_folder

    assert run_folder.RUNS == "runs"
    (row,) = fmstune.runs().to_dict("records")
    assert (row["folder"], row["kind"], row["status"], row["steps"]) == ("runs/first", "run", "interrupted", 2)
    with pytest.raises(fmstune.UserError, match="nowhere: no such folder"):
        fmstune.runs("nowhere")


def test_several_texts_are_handed_over_as_they_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def call(words: Sequence[str], **_: object) -> Answer:
        given = dict(word.removeprefix("--").partition("=")[::2] for word in words)
        asked.extend(json_prompts_in(Path(given["text_file"]).read_text()))
        Path(given["out_file"]).write_text(json.dumps([{"output": one.upper()} for one in asked]))
        return Answer(0, "")

    monkeypatch.setattr(runs, "call_command", call)
    run = fmstune.run(folder)
    assert run.generate_all(["a\n\nb ", "", "ü"]) == ["A\n\nB ", "", "Ü"]
    assert asked == ["a\n\nb ", "", "ü"]
    assert run.generate_all([]) == []
    with pytest.raises(fmstune.UserError, match="generate_all takes a list of texts, got 'abc'"):
        run.generate_all("abc")


def test_arguments_become_the_flags_of_the_command() -> None:
    given = {"max_new_tokens": 5, "do_sample": True, "stop": ["a", "b"], "top_k": None, "force": False}
    assert runs._flags(given) == ["--max_new_tokens=5", "--do_sample", "--stop=a", "--stop=b"]


@pytest.mark.parametrize(("file", "text"), [("a.json", '[{"output": "A"}]'), ("a.jsonl", '{"output": "A\u2028"}\n')])
def test_answers_are_also_kept_in_the_file_that_is_asked_for(
    file: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(words: Sequence[str], **_: object) -> Answer:
        (given,) = (word.partition("=")[2] for word in words if word.startswith("--out_file"))
        Path(given).write_text(text)
        return Answer(0, "")

    monkeypatch.setattr(runs, "call_command", call)
    assert fmstune.run(folder).generate("a", out_file=file).strip() == "A"
    assert Path(file).read_text() == text


def test_a_run_is_pushed_by_the_command_with_its_flags(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str]] = []
    monkeypatch.setattr(runs, "call_command", lambda words: (asked.append(words), Answer(0, ""))[1])
    fmstune.run(folder).push("me/tuned", dry_run=True, public=True, parity_rows=0)
    assert asked == [["push", str(folder), "--repo=me/tuned", "--dry-run", "--public", "--parity_rows=0"]]
