"""Tokens of an Arrow column → an order of the rows in which those that begin alike stand together."""

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

Numbers = np.ndarray[Any, np.dtype[np.int64]]

STEP = 16
"""Rows belong together by this many tokens, and multiples of it: a shorter beginning is not worth their order."""
AT_A_TIME = 2**20
"""Steps of tokens that are hashed at a time: 128 MiB."""


class Group(NamedTuple):
    """Rows that share a beginning of one length, group after group."""

    rows: Numbers
    groups: Numbers
    """The number of the group of each of the rows, from 0."""


def token_column(dataset: "Dataset") -> tuple[Numbers, Numbers]:
    """Return the tokens of all rows end to end, and where each row begins and the last one ends: no row is read."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = dataset.select_columns(["input_ids"]).with_format("arrow")[:]["input_ids"]
    lengths = np.asarray(pc.list_value_length(column), dtype=np.int64)
    tokens = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.asarray(pc.list_flatten(tokens), dtype=np.int64), np.cumsum([0, *lengths])


def find_groups(tokens: Numbers, bounds: Numbers) -> tuple[Group, ...]:
    """Return the groups of two rows and more that share 16 tokens, those that share 32, and so on.

    A beginning is told by a 64-bit hash. Two that have one hash would only share a batch: the layout compares tokens.
    """
    steps = np.diff(bounds) // STEP
    hashes, firsts = _hash_beginnings(tokens, bounds[:-1], steps), np.cumsum([0, *steps])
    found, rows, number = [], np.flatnonzero(steps > 0), 0
    while len(rows):
        _, groups, sizes = np.unique(hashes[firsts[rows] + number], return_inverse=True, return_counts=True)
        many = sizes[groups] > 1
        rows, groups = rows[many], np.unique(groups[many], return_inverse=True)[1]
        if len(rows):
            found.append(Group(rows, groups))
        number += 1
        rows = rows[steps[rows] > number]
    return tuple(found)


def _hash_beginnings(tokens: Numbers, begins: Numbers, steps: Numbers) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The hash of each row's first step of tokens, of its first two, and so on, row after row."""
    draw = np.random.default_rng(0)
    odd = draw.integers(0, 2**63, size=STEP, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    row = np.repeat(np.arange(len(steps)), steps)
    number = np.arange(len(row)) - np.repeat(np.cumsum(steps) - steps, steps)
    hashes = np.empty(len(row), dtype=np.uint64)
    for first in range(0, len(row), AT_A_TIME):
        part = slice(first, first + AT_A_TIME)
        at = (begins[row[part]] + number[part] * STEP)[:, None] + np.arange(STEP)
        hashes[part] = _mix((_mix(tokens[at].astype(np.uint64)) * odd).sum(axis=1) + number[part].astype(np.uint64))
    if not len(row):
        return hashes
    # a beginning is the sum of its steps, each mixed with its number; sums wrap around
    sums = np.cumsum(hashes, dtype=np.uint64)
    before = np.concatenate([np.zeros(1, dtype=np.uint64), sums])[np.cumsum(steps) - steps]
    return _mix(sums - np.repeat(before, steps))


def _mix(numbers: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): each bit of the result hangs on all bits."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def grouped_order(groups: tuple[Group, ...], rows: int, batch_size: int, seed: tuple[int, ...]) -> Numbers:
    """Return the numbers of the rows so that batches hold rows that begin alike, in an order that the seed decides.

    Groups stand in random order, and within each the groups that share more, and so on; rows that share nothing stand
    anywhere. Then the batches are shuffled, but for a last one that is not full.
    """
    draw = np.random.default_rng(seed)
    place = draw.permutation(rows)
    keys = [place]
    for group in reversed(groups):
        first = np.full(int(group.groups.max()) + 1, rows)
        np.minimum.at(first, group.groups, place[group.rows])
        key = place.copy()
        key[group.rows] = first[group.groups]
        keys.append(key)
    order = np.lexsort(keys)
    whole = len(order) // batch_size * batch_size
    batches = draw.permutation(order[:whole].reshape(-1, batch_size))
    return np.concatenate([batches.reshape(-1), order[whole:]])


def batches_of(order: Numbers, batch_size: int) -> Iterator[Numbers]:
    """Yield the rows of each batch."""
    for first, last in pairwise([*range(0, len(order), batch_size), len(order)]):
        yield order[first:last]
