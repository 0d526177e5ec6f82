"""The number that compares runs: where it comes from, which way is better, and what is refused."""

import pytest

from fmstune.checks.callbacks import callback_problems
from fmstune.config import compare_by, freeze
from fmstune.config.choices import Direction
from fmstune.config.renamed_fields import with_compare_by_words
from tests.checks.test_job import job
from tests.config.test_freeze import tree

HELD_OUT = {"data__eval_fraction": 0.25}
SOURCES = {"a": "package:complaints/train.jsonl", "b": "package:complaints/held_out.jsonl"}


@pytest.mark.parametrize(
    ("fields", "path", "direction"),
    [
        (HELD_OUT, "tuned.eval_loss", Direction.minimize),
        ({}, "train_loss", Direction.minimize),
        ({**HELD_OUT, "evaluation__enabled": False}, "train_loss", Direction.minimize),
        ({**HELD_OUT, "compare_by": "tuned.exact_match"}, "tuned.exact_match", Direction.maximize),
        ({"compare_by": "tokens_per_second"}, "tokens_per_second", Direction.maximize),
        ({"compare_by": "train_seconds"}, "train_seconds", Direction.minimize),
        ({"compare_by": "train_seconds", "direction": "maximize"}, "train_seconds", Direction.maximize),
        (
            {"data__eval": {"one": "package:complaints/test.jsonl"}, "compare_by": "tuned.sets.one.exact_match"},
            "tuned.sets.one.exact_match",
            Direction.maximize,
        ),
    ],
)
def test_what_is_compared_and_which_way(fields: dict[str, object], path: str, direction: Direction) -> None:
    one = job(**fields)
    assert (compare_by.path(one), compare_by.direction(one)) == (path, direction)
    assert list(compare_by.compare_by_problems(one)) == []


def test_the_loss_of_a_source_is_logged_where_there_are_several_and_losses_of_rows_are_kept() -> None:
    several = freeze.freeze(tree(data__train=SOURCES, callbacks={"stop_when": "loss_b < 0.1"}, compare_by="loss_b")).job
    assert compare_by.losses_of_sources(several) == ["loss_a", "loss_b"]
    assert [*callback_problems(several), *compare_by.compare_by_problems(several)] == []
    assert compare_by.direction(several) is Direction.minimize
    assert compare_by.losses_of_sources(freeze.freeze(tree(data__train=SOURCES, data__row_losses=False)).job) == []
    assert compare_by.losses_of_sources(job()) == []
    (problem,) = callback_problems(job(callbacks={"stop_when": "loss_b < 0.1"}))
    assert "loss_b is never logged by this job" in str(problem)


def test_a_number_is_found_by_its_path_and_nothing_else_is_one() -> None:
    summary = {"train_loss": 0.5, "tuned": {"exact_match": 1, "sets": {"one": {"eval_loss": float("nan")}}}, "x": True}
    names = ("train_loss", "tuned.exact_match", "tuned", "x", "tuned.y", "tuned.sets.one.eval_loss")
    assert [compare_by.value(summary, name) for name in names] == [0.5, 1.0, None, None, None, None]


def test_a_number_that_the_summary_will_not_hold_is_refused() -> None:
    assert list(map(str, compare_by.compare_by_problems(job(compare_by="tuned.exact_match")))) == [
        "compare_by: tuned.exact_match is measured on held-out rows, and this job measures none; set data.eval or "
        "data.eval_fraction, and an evaluation group that is not none"
    ]
    (unknown,) = map(str, compare_by.compare_by_problems(job(**HELD_OUT, compare_by="tuned.exact_mach")))
    assert "compare_by: tuned.exact_mach is not a number of summary.json; did you mean 'tuned.exact_match'? (" in (
        unknown
    )


def test_the_early_name_is_translated_with_a_note_in_a_job_and_on_the_command_line() -> None:
    early = freeze.freeze(tree(objective="tuned.exact_match", data__eval_fraction=0.25))
    assert early.job.compare_by == "tuned.exact_match"
    assert early.notes == (
        "objective=tuned.exact_match is compare_by=tuned.exact_match now; objective says what a model is trained for",
    )
    assert freeze.freeze(tree(objective=None)) == freeze.freeze(tree())
    words, notes = with_compare_by_words(["-m", "objective=train_loss", "++objective=tuned.eval_loss", "seed=1,2"])
    assert words == ["-m", "compare_by=train_loss", "++compare_by=tuned.eval_loss", "seed=1,2"]
    assert len(notes) == 2


@pytest.mark.parametrize("word", ["objective=sft", "objective=mine", "objective.frozen_copies=1", "objective="])
def test_a_choice_or_a_field_of_the_objective_is_no_early_name(word: str) -> None:
    assert with_compare_by_words([word]) == ([word], [])
