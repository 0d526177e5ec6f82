"""Which rows are suspect, and why, from losses that are given as literals."""

import numpy as np
import pytest

from fmstune.runs.row_losses import ENTRY, Entries
from fmstune.training.suspects.ranking import Ranking, RowName, find_twins, rank_rows


def run(rows: dict[int, list[float]], *, tokens: int = 1) -> Entries:
    """Rows by number with their loss in each epoch; a row is learnt where it is under 0.7. A step trains one row."""
    made = [
        (0, number, epoch, place, tokens, tokens if loss < 0.7 else 0, loss * tokens)
        for place, (number, losses) in enumerate(sorted(rows.items()), start=1)
        for epoch, loss in enumerate(losses)
    ]
    return np.array(made, ENTRY)


def ranked(rows: dict[int, list[float]], **more: int) -> Ranking:
    return rank_rows(run(rows, **more), {})


def of(ranking: Ranking, number: int) -> tuple[str, ...]:
    return next(row.reasons for row in ranking.rows if row.name.number == number)


EASY = {number: [1.0, 0.1, 0.1, 0.1] for number in range(10, 50)}


def test_the_row_that_stays_high_comes_first_and_one_that_was_high_at_first_alone_does_not() -> None:
    found = ranked({**EASY, 1: [3.0, 3.0, 2.0, 1.0], 2: [4.0, 0.1, 0.1, 0.1]})
    assert [row.name.number for row in found.rows[:2]] == [1, 2]
    assert found.rows[0].losses == (3.0, 3.0, 2.0, 1.0)
    assert (found.epochs, found.learnt, len(found.rows)) == (4, 41, 42)


def test_each_reason_is_told() -> None:
    found = ranked({**EASY, 1: [3.0] * 4, 2: [3.0, 3.0, 3.0, 0.2], 3: [1.0, 0.2, 0.9, 0.2]})
    assert [of(found, number) for number in (1, 2, 3, 10)] == [("never learnt",), ("learnt late",), ("forgotten",), ()]
    assert {row.name.number: row.forgotten for row in found.rows if row.forgotten} == {3: 1}
    assert {row.name.number: row.learnt_in for row in found.rows}[2] == 4
    assert [found.count(one) for one in ("never learnt", "learnt late", "forgotten", "twin")] == [1, 1, 1, 0]
    assert not list(found.notes())


def test_of_one_epoch_only_the_height_of_the_loss_is_told() -> None:
    """The loss of all rows falls in an epoch: the row that is high for its time comes first, not the first row."""
    falling = {number: [5.0 - 0.01 * number] for number in range(1, 401)}
    found = ranked({**falling, 390: [3.0]})
    assert found.rows[0].name.number == 390
    assert {row.reasons for row in found.rows} == {()}
    assert "each row was seen once" in next(found.notes())


def test_where_answers_are_long_that_a_row_never_was_learnt_is_no_reason() -> None:
    found = ranked({number: [2.0, 1.0] for number in range(1, 50)}, tokens=200)
    assert found.count("never learnt") == 0
    assert "only 0 of 49 rows were ever learnt" in next(found.notes())


def test_a_long_answer_is_not_suspect_for_its_length() -> None:
    """A sum over 400 tokens is large; the tokens of the short row are less probable."""
    entries = np.concatenate(
        [run({n: [1.0, 1.0] for n in range(1, 40)}, tokens=4), run({90: [1.02, 1.02]}, tokens=400)]
    )
    entries = np.concatenate([entries, run({91: [3.0, 3.0]}, tokens=4)])
    assert rank_rows(entries, {}).rows[0].name.number == 91


def test_rows_without_a_trained_token_and_runs_without_rows_are_left_out() -> None:
    assert ranked({1: [1.0]}, tokens=0).rows == ()
    assert rank_rows(np.empty(0, ENTRY), {}) == Ranking((), 0, 0)


def row(number: int, prompt: list[int], answer: list[int]) -> dict[str, object]:
    return {"number": number, "input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def test_twins_have_one_prompt_and_other_answers() -> None:
    one = [row(1, [5, 6], [7]), row(2, [5, 6], [8]), row(3, [5, 6], [7]), row(4, [5], [7])]
    other = [row(1, [5, 6], [9])]
    found = find_twins([one, other])
    first, second, third, far = RowName(0, 1), RowName(0, 2), RowName(0, 3), RowName(1, 1)
    assert found == {
        first: (second, far),
        second: (first, third, far),
        third: (second, far),
        far: (first, second, third),
    }
    assert find_twins([[row(1, [5], [7]), row(2, [5], [7])]]) == {}


@pytest.mark.parametrize("name", [RowName(0, 1)])
def test_a_twin_is_a_reason(name: RowName) -> None:
    found = rank_rows(run({1: [0.1, 0.1], **EASY}), {name: (RowName(0, 10),)})
    assert of(found, 1) == ("twin",)
