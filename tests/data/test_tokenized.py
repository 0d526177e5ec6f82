"""Rows are tokenised by threads, batch after batch, and nobody can tell from the result."""

from pathlib import Path

import pytest

from fmstune.config.job import OverLength
from fmstune.data import dataset, tokenized
from fmstune.data.ledger import Ledger
from fmstune.data.read import Problems
from fmstune.data.splits import TRAIN, splits
from fmstune.data.tokenized import Recipe
from tests.data.test_dataset import job_data, problems_of, text, write
from tests.tokenizers_for_tests import gpt2_style

ROWS = [text(f"{number} " + "far " * (number % 7), f" answer {number}") for number in range(50)]


def recipe() -> Recipe:
    (found,) = dataset.formats(job_data(over_length=OverLength.drop, max_length=30), None)
    return Recipe(found[0], job_data(over_length=OverLength.drop, max_length=30), found[1], gpt2_style())


@pytest.mark.parametrize("ahead", [1, 2, 20])
def test_rows_tokenised_ahead_are_the_same_in_the_same_order(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    monkeypatch.setattr(tokenized, "BATCH", 7)
    write(ROWS)

    def made(ahead: int) -> tuple[list[list[tokenized.Tokenised]], Ledger]:
        ledger, one = Ledger(), recipe()
        rows = splits(one.place, one.data, 42)[TRAIN]
        return list(tokenized.batches(rows, one, ledger, Problems(), ahead=ahead)), ledger

    expected, ledger = made(0)
    assert len(expected) == 8
    assert 0 < ledger.rows_trained < 50 == ledger.rows_read
    assert made(ahead) == (expected, ledger)


def test_what_cannot_be_read_hides_no_problem_of_rows_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenized, "BATCH", 2)
    with Path(write([text("long " * 80, " x"), "no template", *ROWS[:6]])).open("a") as rows:
        rows.write("{broken\n")
    found = problems_of(over_length=OverLength.error)
    assert [problem.split(":")[0] for problem in found] == [
        "train.jsonl, row 2",
        "train.jsonl, row 1",
        "train.jsonl",
    ]
