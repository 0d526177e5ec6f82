"""Two runs side by side: what is the same is counted, what differs is shown."""

import re
from pathlib import Path
from typing import Any

from fmstune.runs.report import comparison_report, render
from fmstune.runs.report.run_data import Run


def run(name: str, losses: list[float], **lock: Any) -> Run:
    metrics = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    job = {"seed": 1, "output_dir": name, "training": {"learning_rate": 0.1}}
    return Run(Path(name), job, {"status": "finished", "train_loss": losses[-1]}, metrics, lock, {}, [], [])


def shown(a: Run, b: Run) -> str:
    return render.render_text(comparison_report.comparison_document(a, b))


def test_versions_commit_and_data_are_compared_each_in_its_place() -> None:
    files = {"model.path": {"model.safetensors": "3"}}
    a = run("a", [1.0], git_commit="abc", packages={"torch": "2.8"}, data_hashes={"data.train": "1"}, command="x")
    b = run("b", [1.0], git_commit="def", packages={"torch": "2.9"}, data_hashes={"data.train": "2"}, model_files=files)
    text = shown(a, b)
    data, code = text.index("Data and model\n"), text.index("Code, versions and devices\n")
    assert "data_hashes.data.train " in text[data:code]
    assert "model_files.model.path.model.safetensors  (not set)  3" in text[data:code]
    # the settings say it already
    assert "command" not in text
    assert "git_commit      abc  def" in text[code:]
    assert "packages.torch  2.8  2.9" in text[code:]
    assert "2 of 2 settings are the same." in text


def test_a_line_break_stays_in_its_line_and_is_the_same_however_it_was_written() -> None:
    a, b = run("a", [1.0]), run("b", [1.0])
    a.job["data"] = {"response_template": "\n### Label:", "text_field": "output"}
    b.job["data"] = {"response_template": r"\n### Label:", "text_field": "a\tb"}
    text = shown(a, b)
    assert "response_template" not in text
    assert "data.text_field  output  a\\tb\n" in text


def test_curves_say_where_they_part_and_how_far() -> None:
    text = shown(run("a", [4.0, 3.0, 2.0]), run("b", [4.0, 3.5, 1.0, 0.5]))
    assert "loss: they differ from step 2 on, most at step 3 (-1); B − A is -0.1667 in the mean over 3 steps" in text
    assert "train_loss  2" in text


def test_runs_without_records_or_steps_in_common_say_so() -> None:
    text = shown(run("a", [1.0]), Run(Path("b"), {}, {}, [], {}, {}, [], []))
    assert "One of the runs has no record of its settings." in text
    assert "The runs have no logged step in common." in text
    assert "Neither run has a record of its facts of data and model." in text


def test_numbers_stand_under_each_other_and_large_differences_are_whole() -> None:
    a, b = (run(name, [1.0]) for name in "ab")
    for one, memory in ((a, 503_123_968), (b, 502_034_432)):
        one.summary["peak_memory_bytes"] = memory
    text = shown(a, b)
    assert "A: finished, B: finished." in text
    assert "train_loss                   1            1          +0" in text
    assert "peak_memory_bytes  503,123,968  502,034,432  -1,089,536" in text


def test_the_speed_of_a_device_and_its_utilisation_are_compared() -> None:
    a, b = (run(name, [1.0]) for name in "ab")
    for one, share in ((a, 0.4), (b, 0.3)):
        one.summary.update({"mfu": share, "tokens_per_second_per_device": 10_000 * share})
    text = shown(a, b)
    assert re.search(r"^ *mfu +0\.4 +0\.3 +-0\.1$", text, re.MULTILINE), text
    assert re.search(r"^ *tokens_per_second_per_device +4,000 +3,000 +-1,000$", text, re.MULTILINE), text
