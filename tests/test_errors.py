"""Messages of what a user can mend."""

import pickle

import pytest

from fmstune.errors import Problem, UserError, did_you_mean, raise_if_any, render, without_secrets


def test_one_problem_is_one_line() -> None:
    assert render([Problem("name", ": too long")]) == "fmstune: error: name: too long"


def test_several_problems_are_numbered() -> None:
    assert render([Problem("", "a"), Problem("", "b")]) == "fmstune: 2 errors:\n  1. a\n  2. b"


def test_all_problems_are_raised_together() -> None:
    with pytest.raises(UserError) as caught:
        raise_if_any(Problem(letter, "is wrong") for letter in "aba")
    assert caught.value.problems == (Problem("a", "is wrong"), Problem("b", "is wrong"))
    assert str(caught.value) == "a is wrong\nb is wrong"


def test_no_problem_raises_nothing() -> None:
    raise_if_any([])


@pytest.mark.parametrize(("word", "expected"), [("lerning_rate", "; did you mean 'learning_rate'?"), ("zzz", "")])
def test_a_suggestion_is_made_only_for_what_is_near(word: str, expected: str) -> None:
    assert did_you_mean(word, ["learning_rate", "seed"]) == expected


def test_an_error_survives_the_way_to_another_process() -> None:
    problems = (Problem("a", "is wrong"), Problem("b", ": wrong"))
    assert pickle.loads(pickle.dumps(UserError.of(problems))).problems == problems


@pytest.mark.parametrize(
    ("field", "text", "shown"),
    [
        ("seed", "must be at least 0", "seed must be at least 0"),
        ("data.train", ": no file a.jsonl", "data.train: no file a.jsonl"),
        ("peft", "=lorra: no such choice", "peft=lorra: no such choice"),
        ("", "nothing to ask", "nothing to ask"),
    ],
)
def test_a_problem_reads_as_one_sentence(field: str, text: str, shown: str) -> None:
    assert str(Problem(field, text)) == shown


@pytest.mark.parametrize(
    ("field", "moved"),
    [
        ("data.format", "--format"),
        ("data.format.template", "--format.template"),
        ("data.formats", "data.formats"),
        ("data.train", "data.train"),
    ],
)
def test_a_problem_moves_with_its_group_and_with_no_other(field: str, moved: str) -> None:
    assert Problem(field, "is empty").moved("data.format", "--format") == Problem(moved, "is empty")


@pytest.mark.parametrize(
    ("typed", "recorded"),
    [
        (
            "fmstune tracking.mlflow.tracking_uri=https://me:pw@host/x",
            "fmstune tracking.mlflow.tracking_uri=https://…@host/x",
        ),
        ("fmstune model.path=hf_" + "a" * 30, "fmstune model.path=hf_…"),
        ("fmstune data.train=s3://bucket/a@b", "fmstune data.train=s3://bucket/a@b"),
    ],
)
def test_a_password_that_was_typed_is_left_out(typed: str, recorded: str) -> None:
    assert without_secrets(typed) == recorded
