"""Differences of two jobs as units: what is one unit, what cannot reach the result, and what a mixed job is."""

from typing import Any

import pytest

from fmstune.config import freeze
from fmstune.runs.difference_units import (
    ABSENT,
    Change,
    Differences,
    Unit,
    changed_fields,
    environment_facts,
    find_differences,
    with_units,
)
from tests import composing

LOSS = "tuned.eval_loss"


def tree(*words: str) -> dict[str, Any]:
    return freeze.as_tree(freeze.freeze(composing.composed_tree(*words)).job)


def found(
    a: tuple[str, ...], b: tuple[str, ...], figure: str = LOSS, locks: tuple[dict[str, Any], ...] = ({}, {})
) -> Differences:
    return find_differences(tree(*a), tree(*b), (locks[0], locks[1]), figure)


def names(*b: str, a: tuple[str, ...] = ("peft=lora",)) -> list[str]:
    return [unit.name for unit in found(a, (*a, *b)).units]


def test_equal_jobs_have_no_differences() -> None:
    assert found(("peft=lora",), ("peft=lora",)) == Differences((), (), (), ())


def test_each_field_is_a_unit_and_the_likely_ones_come_first() -> None:
    assert names("training.weight_decay=0.1", "peft.r=4", "training.learning_rate=1e-3", "data.max_length=64") == [
        "training.learning_rate",
        "peft.r",
        "data.max_length",
        "training.weight_decay",
    ]


def test_a_field_that_one_job_does_not_set_is_one() -> None:
    assert [*changed_fields({"a": {"b": 1}}, {"a": {"c": None}})] == [
        Change("a.b", 1, ABSENT),
        Change("a.c", ABSENT, None),
    ]


def test_a_number_is_no_truth_value_and_a_group_that_is_missing_is_one_change() -> None:
    assert [*changed_fields({"a": True, "b": None, "c": 1}, {"a": 1, "b": {"x": 1, "y": 2}, "c": 1.0})] == [
        Change("a", True, 1),
        Change("b", None, {"x": 1, "y": 2}),
    ]


@pytest.mark.parametrize(
    ("words", "name", "fields"),
    [
        (("peft=full",), "peft", {"peft._target_", "peft.r"}),
        (
            ("training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=8"),
            "rows of an update",
            set(),
        ),
        (("training.max_steps=4", "training.num_train_epochs=2"), "training.max_steps", {"training.num_train_epochs"}),
        (("model=tiny_gpt_bigcode",), "model", {"model.path", "model.layer_cls", "peft.target_modules"}),
        (("model.lora_targets=[q_proj]",), "model.lora_targets", {"peft.target_modules"}),
        (("training.optim=adamw_torch", "training.optim_args='x=1'"), "training.optim", {"training.optim_args"}),
    ],
)
def test_fields_that_go_together_are_one_unit(words: tuple[str, ...], name: str, fields: set[str]) -> None:
    unit = next(one for one in found(("peft=lora",), ("peft=lora", *words)).units if one.name == name)
    assert fields <= {change.field for change in unit.changes}
    assert len(unit.changes) > 1
    assert unit.shown()[0].startswith(name) and " and " in unit.shown()[0]


def test_one_of_several_that_go_together_keeps_its_own_name() -> None:
    assert names("training.gradient_accumulation_steps=2") == ["training.gradient_accumulation_steps"]


HARMLESS = (
    *("name=other", "output_dir=x", "compare_by=train_loss", "tracking=tensorboard", "data.row_losses=false"),
    *("training.logging_steps=3", "training.save_total_limit=2", "training.save_strategy=no"),
    *("training.dataloader_num_workers=2", "evaluation.base=false", "evaluation.sample=3"),
    *("evaluation.max_new_tokens=3", "launcher.device_gib=40", "launcher.price_per_hour=1"),
)


def test_fields_that_cannot_reach_the_result_are_counted_and_are_no_units() -> None:
    differences = found(("peft=lora",), ("peft=lora", *HARMLESS))
    assert differences.units == ()
    assert len(differences.harmless) >= len(HARMLESS)
    assert {"name", "output_dir", "compare_by", "training.logging_steps", "evaluation.base"} <= {*differences.harmless}


LOGS, WORKERS = "training.logging_steps", "training.dataloader_num_workers"


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("callbacks.stop_when='loss < 0.1'", f"{LOGS}=3"), LOGS),
        (("callbacks=early_stopping", "training.eval_strategy=epoch", f"{LOGS}=3"), LOGS),
        (("training.lr_scheduler_type=reduce_lr_on_plateau", f"{LOGS}=3"), LOGS),
        (("data.streaming=true", "training.max_steps=4", f"{WORKERS}=2"), WORKERS),
    ],
)
def test_they_are_units_where_something_looks_at_them(words: tuple[str, ...], field: str) -> None:
    assert field in names(*words)


def test_settings_of_answers_are_units_where_runs_are_compared_by_answers() -> None:
    words = ("peft=lora", "evaluation.max_new_tokens=3")
    (unit,) = found(("peft=lora",), words, figure="tuned.exact_match").units
    assert unit.name == "evaluation.max_new_tokens"


def test_evaluating_while_training_draws_random_numbers_and_is_a_unit() -> None:
    assert names("training.eval_strategy=epoch") == ["training.eval_strategy"]


def test_seeds_are_set_apart() -> None:
    differences = found(("peft=lora",), ("peft=lora", "seed=3", "training.data_seed=4"))
    assert differences.seeds == ("seed", "training.data_seed") and differences.units == ()


def test_two_places_with_the_same_bytes_are_no_unit() -> None:
    a, b = ("data.train=a.jsonl", "model.path=/m"), ("data.train=b.jsonl", "model.path=/n")
    lock = {"data_hashes": {"data.train": "1"}, "model_files": {"model.path": {"config.json": "2"}}}
    differences = found(a, b, locks=(lock, lock))
    assert differences.same_content == ("model.path", "data.train") and differences.units == ()
    for other in ({}, {**lock, "data_hashes": {"data.train": "9"}}, {"data_hashes": {"data.train": "listing:1"}}):
        assert "data.train" in [unit.name for unit in found(a, b, locks=(other, lock)).units]


def test_a_mixed_job_has_the_units_of_b_and_is_checked_as_any_other() -> None:
    a, b = tree("peft=lora"), tree("peft=full", "training.learning_rate=3e-3", "callbacks.stop_when='loss < 1'")
    units = find_differences(a, b, ({}, {}), LOSS).units
    assert {unit.name for unit in units} == {"peft", "training.learning_rate", "callbacks.stop_when"}
    for unit in units:
        mixed = freeze.freeze(with_units(a, [unit])).job
        assert find_differences(a, freeze.as_tree(mixed), ({}, {}), LOSS).units == (unit,)
    assert freeze.as_tree(freeze.freeze(with_units(a, units)).job) == b
    assert a == tree("peft=lora")


def test_a_mapping_takes_the_place_of_another_one() -> None:
    unit = Unit("x", (Change("x", {"old": 1}, {"new": 2}),))
    assert with_units({"x": {"old": 1}}, [unit]) == {"x": {"new": 2}}


def test_facts_that_follow_from_fields_are_left_out() -> None:
    facts = ["packages.torch", "tokens.data.train", "seed", "threads", "data_hashes.data.train", "cpu_capability"]
    unit = Unit("data.max_length", (Change("data.max_length", 1, 2),))
    assert environment_facts(facts, [unit], ["seed"]) == ["packages.torch", "threads", "cpu_capability"]
    assert environment_facts(facts, [], []) == facts
