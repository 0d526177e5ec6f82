"""Messages of what a user can mend."""

import pickle

import pytest

from fmstune.errors import UserError, did_you_mean, raise_if_any, render


def test_one_problem_is_one_line() -> None:
    assert render(["name: too long"]) == "fmstune: error: name: too long"


def test_several_problems_are_numbered() -> None:
    assert render(["a", "b"]) == "fmstune: 2 errors:\n  1. a\n  2. b"


def test_all_problems_are_raised_together() -> None:
    with pytest.raises(UserError) as caught:
        raise_if_any(letter for letter in "ab")
    assert caught.value.problems == ("a", "b")


def test_no_problem_raises_nothing() -> None:
    raise_if_any([])


@pytest.mark.parametrize(("word", "expected"), [("lerning_rate", "; did you mean 'learning_rate'?"), ("zzz", "")])
def test_a_suggestion_is_made_only_for_what_is_near(word: str, expected: str) -> None:
    assert did_you_mean(word, ["learning_rate", "seed"]) == expected


def test_an_error_survives_the_way_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(UserError("a", "b"))).problems == ("a", "b")
