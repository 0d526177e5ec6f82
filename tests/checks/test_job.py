"""What cannot work is found without torch; tests/bad_inputs has the messages as a user sees them."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from fmstune.checks.job import folder_problems, job_notes, job_problems
from fmstune.config import freeze
from fmstune.config.job import Job, Quantization
from tests.config.test_freeze import tree

GOOD = {
    "data__train": "package:complaints/train.jsonl",
    "data__text_field": "text",
    "training": {"learning_rate": 1e-4, "num_train_epochs": 1.0},
}


def job(**changes: Any) -> Job:
    return freeze.freeze(tree(**copy.deepcopy(GOOD), **changes)).job


def test_a_good_job_has_no_problem() -> None:
    assert list(job_problems(job())) == []


def test_every_problem_is_found_not_only_the_first() -> None:
    found = job_problems(job(seed=-1, data__max_length=1, evaluation={"batch_size": 0}, launcher={"threads": 0}))
    assert [problem.field for problem in found] == [
        "seed",
        "data.max_length",
        "launcher.threads",
        "evaluation.batch_size",
    ]


@pytest.mark.parametrize("method", ["PromptTuning", "PromptEncoder", "PrefixTuning"])
def test_packing_with_a_learnt_prompt_is_refused_with_the_reason(method: str) -> None:
    (problem,) = map(str, job_problems(job(peft={"_target_": f"peft.{method}Config"}, training__packing=True)))
    assert problem == (
        f"training.packing lets documents with virtual tokens ({method}) see each other; set training.packing=false"
    )


@pytest.mark.parametrize(("method", "learns"), [("PromptEncoder", True), ("PrefixTuning", True), ("IA3", False)])
def test_packing_is_refused_with_every_method_of_virtual_tokens_and_no_other(method: str, learns: bool) -> None:
    peft = {"_target_": f"peft.{method}Config", **({"num_virtual_tokens": 4} if learns else {})}
    assert len(list(job_problems(job(peft=peft, training__packing=True)))) == learns


def test_packing_with_other_methods_is_not_refused() -> None:
    for peft in ({"_target_": "peft.LoraConfig"}, {"_target_": "fmstune.models.adapters.full"}):
        assert list(job_problems(job(peft=peft, training__packing=True))) == []


def test_rows_that_are_packed_and_grouped_by_length_are_noted() -> None:
    grouped = {"training__train_sampling_strategy": "group_by_length"}
    both = list(job_notes(job(training__packing=True, **grouped)))
    assert any("group_by_length has no effect" in note for note in both)
    assert not any("group_by_length" in note for note in job_notes(job(**grouped)))


def test_dropout_under_shared_beginnings_is_noted() -> None:
    peft = {"_target_": "peft.LoraConfig", "lora_dropout": 0.05}
    (note,) = [note for note in job_notes(job(peft=peft, data__prefix_sharing=True)) if "dropout" in note]
    assert note.startswith("peft.lora_dropout=0.05: a shared beginning draws its dropout once")
    assert not any("dropout" in note for note in job_notes(job(peft=peft)))


def test_a_rate_for_full_tuning_is_noted_with_an_adapter() -> None:
    assert any("adapters usually want 1e-4 or more" in note for note in job_notes(job(training__learning_rate=1e-5)))
    assert not any("adapters usually" in note for note in job_notes(job()))


def test_nothing_held_out_is_noted() -> None:
    assert any(note.startswith("no held-out rows") for note in job_notes(job()))
    assert list(job_notes(job(data__eval_fraction=0.1))) == []


@pytest.mark.parametrize("name", ["job.yaml", "summary.json", "model"])
def test_a_folder_with_any_file_of_a_run_is_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (problem,) = map(str, folder_problems(tmp_path, job()))
    assert f"holds another run ({name})" in problem


def test_an_empty_or_new_folder_is_free(tmp_path: Path) -> None:
    assert list(folder_problems(tmp_path, job())) == []
    assert list(folder_problems(tmp_path / "new", job())) == []


FOUR_BITS = Quantization(load_in_4bit=True)


@pytest.mark.parametrize(
    ("peft", "wrong"),
    [
        ({"_target_": "peft.LoraConfig", "r": 8}, False),
        ({"_target_": "peft.IA3Config"}, False),
        ({"_target_": "peft.PromptTuningConfig", "num_virtual_tokens": 4}, False),
        ({"_target_": "peft.LoHaConfig", "r": 8}, True),
    ],
)
def test_a_method_without_layers_of_bitsandbytes_is_refused_on_a_quantised_base(
    peft: dict[str, object], wrong: bool
) -> None:
    lora = job(peft=peft)
    quantised = dataclasses.replace(lora, model=dataclasses.replace(lora.model, quantization=FOUR_BITS))
    assert [problem.partition(" adapts")[0] for problem in map(str, job_problems(quantised))] == (
        ["model.quantization: peft.LoHaConfig"] if wrong else []
    )


def test_multitask_prompt_tuning_is_refused_because_rows_have_no_task() -> None:
    peft = {"_target_": "peft.MultitaskPromptTuningConfig", "num_virtual_tokens": 4}
    assert any("needs a task_id in every row" in problem for problem in map(str, job_problems(job(peft=peft))))
