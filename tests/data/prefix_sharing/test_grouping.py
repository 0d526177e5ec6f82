"""The order of an epoch: rows that begin alike in one batch, by the seed, from the Arrow column."""

import random
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets

from fmstune.data.prefix_sharing import grouping
from fmstune.data.prefix_sharing.grouping import batches_of, find_groups, grouped_order, token_column

HEADER = list(range(100, 120))
"""A beginning of all rows, of more than one step."""


def families(count: int, members: int, shared: int) -> list[list[int]]:
    """Families of rows that share so many tokens after the header, shuffled; a row ends with a number of its own."""
    rows = [
        [*HEADER, *[1000 + family] * shared, 5000 + family * members + member]
        for family in range(count)
        for member in range(members)
    ]
    random.Random(0).shuffle(rows)
    return rows


def dataset(rows: list[list[int]]) -> Dataset:
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


def order(rows: list[list[int]], batch_size: int = 4, seed: tuple[int, ...] = (0, 0)) -> list[int]:
    return grouped_order(find_groups(*token_column(dataset(rows))), len(rows), batch_size, seed).tolist()


def test_a_batch_holds_rows_of_the_longest_shared_beginning() -> None:
    rows = families(count=10, members=4, shared=40)
    for batch in batches_of(np.array(order(rows)), 4):
        assert len({tuple(rows[number][:-1]) for number in batch}) == 1


def test_families_of_a_family_stand_together_within_it() -> None:
    rows = [[*[family] * 32, *[child] * 16, member] for family in range(3) for child in (50, 51) for member in range(2)]
    random.Random(1).shuffle(rows)
    batches = [[rows[number] for number in batch] for batch in batches_of(np.array(order(rows)), 4)]
    for batch in batches:
        assert len({row[0] for row in batch}) == 1
        assert [row[32] for row in batch] in ([50, 50, 51, 51], [51, 51, 50, 50])


def test_every_row_is_taken_once_and_a_batch_that_is_not_full_comes_last() -> None:
    rows = families(count=5, members=3, shared=20)
    assert sorted(order(rows)) == list(range(15))
    assert [len(batch) for batch in batches_of(np.array(order(rows)), 4)] == [4, 4, 4, 3]


def test_the_seed_and_the_epoch_decide_the_order() -> None:
    rows = families(count=8, members=4, shared=20)
    assert order(rows, seed=(1, 2)) == order(rows, seed=(1, 2))
    assert len({tuple(order(rows, seed=seed)) for seed in ((1, 2), (1, 3), (2, 2))}) == 3


def test_rows_that_share_only_the_header_are_mixed() -> None:
    """Else an epoch would go through the instructions by the alphabet."""
    rows = [[*HEADER, 2000 + number] for number in range(64)]
    distances = np.abs(np.diff(order(rows, batch_size=8)))
    assert Counter((distances == 1).tolist())[True] < 10


def test_rows_shorter_than_a_step_and_empty_ones_are_in_the_order() -> None:
    rows = [[1], [], [1, 2], [3] * 16, [3] * 17]
    assert sorted(order(rows, batch_size=2)) == [0, 1, 2, 3, 4]
    assert sorted(order([[1]], batch_size=2)) == [0]


@pytest.mark.parametrize("at_a_time", [1, 3, 2**20])
def test_groups_are_those_that_a_comparison_of_the_tokens_finds(
    at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "AT_A_TIME", at_a_time)
    draw = random.Random(2)
    rows = [sum(([draw.randint(0, 1)] * 16 for _ in range(draw.randint(0, 5))), [9]) for _ in range(60)]
    for number, group in enumerate(find_groups(*token_column(dataset(rows))), start=1):
        beginnings: dict[tuple[int, ...], set[int]] = {}
        for place, row in enumerate(rows):
            if len(row) >= number * 16:
                beginnings.setdefault(tuple(row[: number * 16]), set()).add(place)
        wanted = {frozenset(members) for members in beginnings.values() if len(members) > 1}
        found: dict[int, set[int]] = {}
        for place, of in zip(group.rows.tolist(), group.groups.tolist(), strict=True):
            found.setdefault(of, set()).add(place)
        assert {frozenset(members) for members in found.values()} == wanted


def test_tokens_come_from_the_arrow_column_also_of_a_part_of_it() -> None:
    rows = [[1, 2, 3], [4], [5, 6]]
    whole = concatenate_datasets([dataset(rows), dataset(rows)])
    tokens, bounds = token_column(whole.select([1, 2, 3]))
    assert tokens.tolist() == [4, 5, 6, 1, 2, 3]
    assert bounds.tolist() == [0, 1, 3, 6]
