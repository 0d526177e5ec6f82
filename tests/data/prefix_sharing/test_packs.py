"""Packs of rows that share: whole rows, as many positions as fit, the same ones from the same seed."""

import random
from itertools import pairwise

import pytest
from datasets import Dataset

from fmstune.data.prefix_sharing.layout import lay_out
from fmstune.data.prefix_sharing.packs import DOCUMENTS, fill_packs, pack_shared

Rows = list[dict[str, list[int]]]


def families(count: int, members: int, shared: int, own: int) -> Rows:
    """Families of rows with a beginning in common, in random order; the last token is trained."""
    draw = random.Random(0)
    rows = []
    for family in range(count):
        for _ in range(members):
            ids = [family] * shared + [draw.randrange(1000, 9000) for _ in range(own)]
            rows.append({"input_ids": ids, "labels": [-100] * (len(ids) - 1) + ids[-1:]})
    draw.shuffle(rows)
    return rows


def random_rows(seed: int) -> Rows:
    """Rows that share at many depths, some of them too little to be shared."""
    draw = random.Random(seed)
    rows = []
    for _ in range(draw.randint(1, 60)):
        ids = [letter for _ in range(draw.randint(1, 4)) for letter in [draw.randint(0, 1)] * draw.randint(1, 20)]
        rows.append({"input_ids": ids, "labels": [i if draw.random() < 0.5 else -100 for i in ids]})
    return rows


def documents(packed: Dataset) -> list[Rows]:
    """The documents of each pack."""
    found = []
    for row in packed:
        ends = [sum(row[DOCUMENTS][:number]) for number in range(len(row[DOCUMENTS]) + 1)]
        spans = list(pairwise(ends))
        found.append([{name: row[name][one:other] for name in ("input_ids", "labels")} for one, other in spans])
    return found


@pytest.mark.sampled(4)
@pytest.mark.parametrize("seed", range(20))
def test_each_row_is_in_one_pack_whole_and_no_pack_has_more_positions_than_fit(seed: int) -> None:
    rows = random_rows(seed)
    packs = documents(pack_shared(Dataset.from_list(rows), 80, seed))
    assert sorted(str(row) for pack in packs for row in pack) == sorted(map(str, rows))
    assert max(lay_out(pack).positions for pack in packs) <= 80
    told = [pack.positions for pack in fill_packs(Dataset.from_list(rows), 80, seed)]
    assert told == [lay_out(pack).positions for pack in packs]


def test_packs_are_filled_by_distinct_tokens() -> None:
    """A family takes 100 + 8 * 10 positions and not 880; packs of their tokens would be nine."""
    rows = Dataset.from_list(families(count=2, members=8, shared=100, own=10))
    assert [len(row[DOCUMENTS]) for row in pack_shared(rows, 200, seed=0)] == [8, 8]
    assert [len(row[DOCUMENTS]) for row in pack_shared(rows, 400, seed=0)] == [16]
    assert all(len({row["input_ids"][0] for row in pack}) == 1 for pack in documents(pack_shared(rows, 200, seed=0)))


def test_rows_that_share_nothing_are_packed_too() -> None:
    rows = Dataset.from_list(families(count=12, members=1, shared=0, own=20))
    assert [sum(row[DOCUMENTS]) for row in pack_shared(rows, 64, seed=0)] == [60, 60, 60, 60]


def test_the_seed_decides_the_packs() -> None:
    rows = Dataset.from_list(families(count=12, members=4, shared=40, own=10))
    first, again, other = (documents(pack_shared(rows, 100, seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_a_part_of_a_data_set_is_packed_as_it_is() -> None:
    rows = families(count=3, members=4, shared=40, own=10)
    part = Dataset.from_list([*rows[:2], *rows]).select(range(2, 14))
    assert documents(pack_shared(part, 100, 0)) == documents(pack_shared(Dataset.from_list(rows), 100, 0))
