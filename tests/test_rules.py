"""What cannot work is found without torch; tests/test_bad_inputs.py has the messages as a user sees them."""

import copy
from pathlib import Path
from typing import Any

import pytest

from fmstune import freeze, rules
from fmstune.job import Job
from tests.test_freeze import tree

GOOD = {
    "data__train": "package:complaints/train.jsonl",
    "data__text_field": "text",
    "training": {"learning_rate": 1e-4, "num_train_epochs": 1.0},
}


def job(**changes: Any) -> Job:
    return freeze.freeze(tree(**copy.deepcopy(GOOD), **changes)).job


def test_a_good_job_has_no_problem() -> None:
    assert list(rules.problems(job())) == []


def test_every_problem_is_found_not_only_the_first() -> None:
    found = list(
        rules.problems(job(seed=-1, data__max_length=1, evaluation={"batch_size": 0}, launcher={"threads": 0}))
    )
    assert [problem.split()[0] for problem in found] == [
        "seed",
        "data.max_length",
        "launcher.threads",
        "evaluation.batch_size",
    ]


def test_packing_with_prompt_tuning_is_refused_with_the_reason() -> None:
    prompt = {"_target_": "peft.PromptTuningConfig", "num_virtual_tokens": 4}
    (problem,) = rules.problems(job(peft=prompt, training__packing=True))
    assert problem == "training.packing mixes documents up with prompt tuning; set training.packing=false"


def test_a_rate_for_full_tuning_is_noted_with_an_adapter() -> None:
    assert any("adapters usually want 1e-4 or more" in note for note in rules.notes(job(training__learning_rate=1e-5)))
    assert not any("adapters usually" in note for note in rules.notes(job()))


def test_nothing_held_out_is_noted() -> None:
    assert any(note.startswith("no held-out rows") for note in rules.notes(job()))
    assert list(rules.notes(job(data__eval_fraction=0.1))) == []


@pytest.mark.parametrize("name", ["job.yaml", "summary.json", "model"])
def test_a_folder_with_any_file_of_a_run_is_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (problem,) = rules.folder_problems(tmp_path, job())
    assert f"holds another run ({name})" in problem


def test_an_empty_or_new_folder_is_free(tmp_path: Path) -> None:
    assert list(rules.folder_problems(tmp_path, job())) == []
    assert list(rules.folder_problems(tmp_path / "new", job())) == []


def test_multitask_prompt_tuning_is_refused_because_rows_have_no_task() -> None:
    peft = {"_target_": "peft.MultitaskPromptTuningConfig", "num_virtual_tokens": 4}
    assert any("needs a task_id with every row" in problem for problem in rules.problems(job(peft=peft)))
