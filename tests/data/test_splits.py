"""A share of the rows is held out, exactly and by the seed; each row falls into one split."""

import pytest

from fmstune.data import splits
from tests.data.test_dataset import GOOD, prepare, problems_of, text, texts_of, write


@pytest.mark.parametrize(("count", "fraction", "held_out"), [(10, 0.2, 2), (7, 0.5, 4), (101, 0.1, 10)])
def test_a_fraction_holds_out_exactly_its_share(count: int, fraction: float, held_out: int) -> None:
    write([text(f"r{number}", " yes") for number in range(count)])
    prepared = prepare(eval_fraction=fraction)
    (part,) = prepared.held_out
    assert (len(part.rows), len(prepared.train)) == (held_out, count - held_out)
    assert sorted(texts_of(part.rows) + texts_of(prepared.train)) == sorted(f"r{n}" for n in range(count))


def test_the_rows_held_out_are_fixed_by_the_seed() -> None:
    assert splits.held_out_numbers(10, 0.3, seed=42) == {0, 1, 4}
    assert splits.held_out_numbers(10, 0.3, seed=43) == {0, 2, 4}


@pytest.mark.parametrize(("count", "fraction", "share"), [(3, 0.1, 0), (3, 0.9, 3)])
def test_a_fraction_that_leaves_a_split_empty_is_a_problem(count: int, fraction: float, share: int) -> None:
    write(GOOD[:count])
    assert problems_of(eval_fraction=fraction) == (
        f"data.eval_fraction={fraction} holds {share} of {count} rows out, and both splits need one; "
        "change it or set data.eval",
    )


def test_max_rows_limits_training_rows_before_some_are_held_out() -> None:
    write([text(f"r{number}", " yes") for number in range(9)])
    prepared = prepare(max_rows=4, eval_fraction=0.5)
    (part,) = prepared.held_out
    assert sorted(texts_of(part.rows) + texts_of(prepared.train)) == ["r0", "r1", "r2", "r3"]


def test_max_rows_does_not_limit_rows_that_were_held_out_by_the_user() -> None:
    write(GOOD)
    write(GOOD[::-1], "eval.jsonl")
    prepared = prepare(max_rows=1, eval="eval.jsonl")
    assert (len(prepared.train), len(prepared.held_out[0].rows)) == (1, 3)
