"""What sharing saves is said before a run: positions with it and without."""

import pytest
from datasets import Dataset

from fmstune.data.prefix_sharing import savings
from fmstune.data.prefix_sharing.savings import Savings, estimate_savings


def rows(count: int, shared: int, own: int) -> Dataset:
    """Rows of a shared beginning and an end of their own, of which the last token is trained."""
    ids = [[*range(shared), *[1000 + number] * own] for number in range(count)]
    labels = [[-100] * (len(row) - 1) + row[-1:] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def test_positions_with_sharing_and_without_are_counted() -> None:
    found = estimate_savings(rows(8, shared=20, own=3), batch_size=4, seed=0)
    assert found == Savings(batch_size=4, rows=8, tokens=184, padded=184, shared=2 * (20 + 4 * 3))
    assert found.line() == ("64 positions an epoch for 184 tokens in batches of 4 (65.2% saved; 184 positions padded)")


def test_of_many_batches_some_are_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "BATCHES", 3)
    found = estimate_savings(rows(64, shared=20, own=3), batch_size=4, seed=0)
    assert found.shared == 16 * (20 + 4 * 3)
    assert found.line().startswith("about 512 positions an epoch for 1,472 tokens in batches of 4")


def test_rows_that_share_nothing_are_said_to() -> None:
    found = estimate_savings(rows(8, shared=0, own=9), batch_size=4, seed=0)
    assert (found.shared, found.tokens) == (72, 72)
    assert found.line().endswith("rows share too little: data.prefix_sharing=false or training.packing=true is as fast")
