"""What sharing saves is said before a run: positions with it and without."""

import pytest
from datasets import Dataset

from fmstune.data.prefix_sharing import savings
from fmstune.data.prefix_sharing.saved_positions import LargestBatch, Savings
from fmstune.data.prefix_sharing.savings import Batching, estimate_savings


def rows(count: int, shared: int, own: int) -> Dataset:
    """Rows of a shared beginning and an end of their own, of which the last token is trained."""
    ids = [[*range(shared), *[1000 + number] * own] for number in range(count)]
    labels = [[-100] * (len(row) - 1) + row[-1:] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def test_positions_with_sharing_and_without_are_counted() -> None:
    found = estimate_savings(rows(8, shared=20, own=3), Batching(4, seed=0))
    largest = LargestBatch(32, 4 * 23 + 20, 4, segments=((20, 20), *[(3, 23)] * 4))
    assert found == Savings(batch_size=4, rows=8, tokens=184, padded=184, shared=64, largest=largest)
    assert found.line() == ("64 positions an epoch for 184 tokens in batches of 4 (65.2% saved; 184 positions padded)")


def test_of_many_batches_some_are_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "BATCHES", 3)
    found = estimate_savings(rows(64, shared=20, own=3), Batching(4, seed=0))
    assert found.shared == 16 * (20 + 4 * 3)
    assert found.line().startswith("about 512 positions an epoch for 1,472 tokens in batches of 4")


def test_rows_that_share_nothing_are_said_to() -> None:
    found = estimate_savings(rows(8, shared=0, own=9), Batching(4, seed=0))
    assert (found.shared, found.tokens) == (72, 72)
    assert found.line().endswith("rows share too little: data.prefix_sharing=false or training.packing=true is as fast")


def test_packs_are_counted_as_the_run_fills_them() -> None:
    found = estimate_savings(rows(8, shared=20, own=3), Batching(1, seed=0, pack_length=30))
    assert (found.packs, found.shared, found.largest.positions) == (3, 3 * 20 + 8 * 3, 29)
    assert found.line() == "84 positions an epoch for 184 tokens in 3 packs (54.3% saved)"


def test_packs_of_a_batch_share_what_they_do_in_an_order_of_chance() -> None:
    families = [[family] * 40 + [1000 + 4 * family + number] * 8 for family in range(8) for number in range(4)]
    mixed = Dataset.from_dict({"input_ids": families, "labels": families})
    # a pack has the two rows of a family, and another one the next two
    in_order, by_chance = (
        estimate_savings(mixed, Batching(2, seed=0, pack_length=57, grouped=grouped)) for grouped in (False, True)
    )
    assert in_order.packs == by_chance.packs == 16
    assert in_order.shared < 0.75 * by_chance.shared
    assert in_order.largest.positions < by_chance.largest.positions == 2 * 57


def test_a_single_pack_is_called_one() -> None:
    found = estimate_savings(rows(2, shared=20, own=3), Batching(1, seed=0, pack_length=30))
    assert "in 1 pack (" in found.line()


def test_of_many_packs_the_first_ones_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "BATCHES", 2)
    found = estimate_savings(rows(30, shared=20, own=3), Batching(2, seed=0, pack_length=30))
    assert (found.packs, found.estimated) == (10, True)


def test_rows_in_the_order_of_the_file_share_what_they_happen_to_share() -> None:
    ids = [[family] * 40 + [number] for number in range(1000, 1004) for family in (1, 2)]
    mixed = Dataset.from_dict({"input_ids": ids, "labels": ids})
    assert estimate_savings(mixed, Batching(2, seed=0, grouped=False)).shared == 8 * 41
    assert estimate_savings(mixed, Batching(2, seed=0)).shared < 8 * 41
