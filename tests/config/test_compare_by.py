"""The number that compares runs: where it comes from, which way is better, and what is refused."""

import pytest

from fmstune.config import compare_by
from fmstune.config.job import Direction
from tests.checks.test_job import job

HELD_OUT = {"data__eval_fraction": 0.25}


@pytest.mark.parametrize(
    ("fields", "path", "direction"),
    [
        (HELD_OUT, "tuned.eval_loss", Direction.minimize),
        ({}, "train_loss", Direction.minimize),
        ({**HELD_OUT, "evaluation__enabled": False}, "train_loss", Direction.minimize),
        ({**HELD_OUT, "objective": "tuned.exact_match"}, "tuned.exact_match", Direction.maximize),
        ({"objective": "tokens_per_second"}, "tokens_per_second", Direction.maximize),
        ({"objective": "train_seconds"}, "train_seconds", Direction.minimize),
        ({"objective": "train_seconds", "direction": "maximize"}, "train_seconds", Direction.maximize),
        (
            {"data__eval": {"one": "package:complaints/test.jsonl"}, "objective": "tuned.sets.one.exact_match"},
            "tuned.sets.one.exact_match",
            Direction.maximize,
        ),
    ],
)
def test_what_is_compared_and_which_way(fields: dict[str, object], path: str, direction: Direction) -> None:
    one = job(**fields)
    assert (compare_by.path(one), compare_by.direction(one)) == (path, direction)
    assert list(compare_by.problems(one)) == []


def test_a_number_is_found_by_its_path_and_nothing_else_is_one() -> None:
    summary = {"train_loss": 0.5, "tuned": {"exact_match": 1, "sets": {"one": {"eval_loss": float("nan")}}}, "x": True}
    names = ("train_loss", "tuned.exact_match", "tuned", "x", "tuned.y", "tuned.sets.one.eval_loss")
    assert [compare_by.value(summary, name) for name in names] == [0.5, 1.0, None, None, None, None]


def test_an_objective_that_the_summary_will_not_hold_is_refused() -> None:
    assert list(map(str, compare_by.problems(job(objective="tuned.exact_match")))) == [
        "objective: tuned.exact_match is measured on held-out rows, and this job measures none; set data.eval or "
        "data.eval_fraction, and an evaluation group that is not none"
    ]
    (unknown,) = map(str, compare_by.problems(job(**HELD_OUT, objective="tuned.exact_mach")))
    assert "objective: tuned.exact_mach is no number of summary.json; did you mean 'tuned.exact_match'? (" in unknown
