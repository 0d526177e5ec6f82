# SPDX-License-Identifier: Apache-2.0
"""Conditions hold where the logged values say so, and are made of a few harmless parts."""

import re

import pytest

from fmstune.config import conditions

LOGGED = {
    "loss": [2.0, 1.0, 0.5, 0.75],
    "eval_loss": [1.5, 1.25],
    "eval_dev-2_loss": [3.0],
    "accuracy": [0.5, 0.75, 0.75],
    "step": [10.0, 20.0, 30.0, 40.0],
    "zero": [0.0],
}


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("loss < 0.8", True),
        ("loss < 0.75", False),
        ("loss <= 0.75", True),
        ("loss > 0.75", False),
        ("loss >= 0.75", True),
        ("0.5 < loss < 1", True),
        ("0.5 < loss < 0.6", False),
        ("loss < 1 and step >= 40", True),
        ("loss < 1 and step >= 41", False),
        ("loss < 0.1 or step >= 40", True),
        ("not loss < 0.1", True),
        ("not (loss < 1 and step >= 40)", False),
        ("loss + 1 > 1.5 * 1", True),
        ("loss - eval_loss < -0.25", True),
        ("loss / eval_loss < 0.5", False),
        ("min(loss) < 0.51", True),
        ("min(loss, 1) < 0.51", False),
        ("max(loss) > 1.9", True),
        ("max(loss, 3) > 1.9", False),
        ("mean(loss, 2) < 0.63", True),
        ("mean(loss) > 1.06", True),
        ("first(loss) >= 2", True),
        ("first(loss, 2) > 0.5", False),
        ("loss > 1.2 * min(loss)", True),
        ("fallen(loss, 2)", True),
        ("fallen(loss, 1)", False),
        ("not fallen(loss, 1)", True),
        ("risen(accuracy, 2)", True),
        ("risen(accuracy, 1)", False),
        ('"eval_dev-2_loss" < 4', True),
        ("  loss < 0.8  ", True),
    ],
)
def test_a_condition_compares_the_last_values_or_those_of_a_while(text: str, truth: bool) -> None:
    assert conditions.read_condition(text).truth(LOGGED) is truth


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("nosuch < 1", None),
        ("not nosuch < 1", None),
        ("not fallen(eval_loss, 2)", None),
        ("mean(loss, 5) < 9", None),
        ("nosuch + 1 < loss", None),
        ("-nosuch < 1", None),
        ("loss / zero > 1", None),
        ("nosuch < 1 or loss < 1", True),
        ("nosuch < 1 or loss < 0", None),
        ("nosuch < 1 and loss < 1", None),
        ("nosuch < 1 and loss < 0", False),
    ],
)
def test_what_is_not_logged_yet_is_neither_true_nor_false(text: str, truth: bool | None) -> None:
    assert conditions.read_condition(text).truth(LOGGED) is truth


def test_it_knows_the_metrics_that_it_looks_at_and_shows_their_values() -> None:
    condition = conditions.read_condition('min(loss, 3) < 1 and "eval_dev-2_loss" < loss * 9 or nosuch > 1')
    assert sorted(condition.names) == ["eval_dev-2_loss", "loss", "nosuch"]
    assert conditions.figures(conditions.read_condition("loss < 1 and step > 3"), LOGGED) == "loss is 0.75, step is 40"
    assert conditions.figures(conditions.read_condition("loss < 1 or nosuch > 3"), LOGGED) == "loss is 0.75"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("loss", "loss is a number; compare it, as in loss < 0.5"),
        ("1 + loss", "1 + loss is a number; compare it, as in 1 + loss < 0.5"),
        ("loss < 1 and step", "step is a number; compare it"),
        ("(loss < 1) + 1 < 2", "loss < 1 has no place in a condition"),
        ("True", "True has no place in a condition"),
        ("loss < True", "True has no place in a condition"),
        ("loss == 1", "loss == 1 has no place in a condition"),
        ("loss ** 9 < 1", "loss ** 9 has no place in a condition"),
        ("loss < 1j", "1j has no place in a condition"),
        ("loss.real < 1", "loss.real has no place in a condition"),
        ("loss[0] < 1", "loss[0] has no place in a condition"),
        ("(lambda: loss)() < 1", "(lambda: loss)() has no place in a condition"),
        ("open('a') < 1", "open('a') has no place in a condition"),
        ("min(loss, step) < 1", "min(loss, step): the function takes METRIC or METRIC, COUNT, a count of at least 1"),
        ("min(loss, 0) < 1", "min(loss, 0): the function takes"),
        ("min(loss, count=2) < 1", "min(loss, count=2): the function takes"),
        ("min() < 1", "min(): the function takes"),
        ("fallen(loss)", "fallen(loss): the function takes METRIC, COUNT, a count of at least 1"),
        ("loss < 1;", "invalid syntax"),
        ("", "invalid syntax"),
        ("loss <", "invalid syntax"),
        ("loss < 1\0", "null bytes"),
        ("loss < " + "1" * 250, "it has 257 characters, and 250 are the most"),
        ("-" * 240 + "f()", "has no place in a condition"),
        ("(" * 120 + "loss" + ")" * 120, "is a number"),
    ],
)
def test_anything_else_is_refused_with_its_place(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        conditions.read_condition(text)


def test_a_long_row_of_signs_is_computed() -> None:
    assert conditions.read_condition("-" * 240 + "loss < 1").truth(LOGGED) is True
