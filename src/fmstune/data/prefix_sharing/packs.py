"""Rows → packs of as many positions as fit, each distinct token counted once; rows that begin alike share a pack."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fmstune.data.prefix_sharing.grouping import Numbers, find_groups, grouped_order, token_column
from fmstune.data.prefix_sharing.layout import LEAST_SAVED, lay_out
from fmstune.data.tokenized import IDENTITY

if TYPE_CHECKING:
    from datasets import Dataset

DOCUMENTS = "seq_lengths"
"""Column of packed rows, TRL's name: the lengths of the documents in a row."""
COLUMNS = ("input_ids", "labels")


@dataclass(frozen=True)
class SharedPack:
    """Rows that are laid out on one line."""

    rows: Numbers
    positions: int
    """Of the line; at most the length of a pack."""


def fill_packs(dataset: "Dataset", max_length: int, seed: int) -> Iterator[SharedPack]:
    """Yield packs that hold each row once, whole; `max_length` is at least the length of the longest row.

    Rows are taken in the order of their groups, one after the other: a pack ends where the next row does not fit.
    """
    tokens, bounds = token_column(dataset)
    order = grouped_order(find_groups(tokens, bounds), len(dataset), max(len(dataset), 1), (seed, 0))
    texts = [tokens[bounds[number] : bounds[number + 1]] for number in order]
    rows = dataset.select_columns(list(COLUMNS)).with_format("numpy")
    first = 0
    while first < len(order):
        last = _first_beyond(texts, first, max_length)
        examples: list[Mapping[str, Any]] = [rows[int(number)] for number in order[first:last]]
        # where two rows train the token after it, each has the last shared one; a short beginning is in each branch
        while (positions := lay_out(examples).positions) > max_length:
            examples.pop()
        yield SharedPack(order[first : first + len(examples)], positions)
        first += len(examples)


def _first_beyond(texts: Sequence[Numbers], first: int, max_length: int) -> int:
    """The first text that a pack has no room for."""
    room = max_length - len(texts[first])
    for number in range(first + 1, len(texts)):
        room -= _added(texts[number - 1], texts[number])
        if room < 0:
            return number
    return len(texts)


def _added(before: Numbers, text: Numbers) -> int:
    """Positions that a row adds to those of the row before it, at least."""
    shorter = min(len(before), len(text))
    apart = np.flatnonzero(before[:shorter] != text[:shorter])
    shared = int(apart[0]) if len(apart) else shorter
    return len(text) - (shared if shared >= LEAST_SAVED else 0)


def pack_shared(dataset: "Dataset", max_length: int, seed: int) -> "Dataset":
    """Return a row for each pack: its documents end to end, and their lengths. No token is lost or cut.

    Columns of `IDENTITY`, where the rows have them, become lists with a value for each document.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import Dataset

    packs = [pack.rows for pack in fill_packs(dataset, max_length, seed)]
    named = [name for name in IDENTITY if name in dataset.column_names]
    taken = dataset.select_columns([*COLUMNS, *named]).select(np.concatenate(packs)).with_format("arrow")[:]
    columns = {name: taken[name].combine_chunks() for name in COLUMNS}
    lengths = np.asarray(pc.list_value_length(columns["input_ids"]), dtype=np.int64)
    # where each pack begins and ends, in documents and in tokens
    documents = np.cumsum([0, *map(len, packs)])
    ends = pa.array(np.cumsum([0, *lengths])[documents])
    packed = {name: pa.LargeListArray.from_arrays(ends, pc.list_flatten(column)) for name, column in columns.items()}
    by_document = {DOCUMENTS: pa.array(lengths), **{name: taken[name].combine_chunks() for name in named}}
    for name, column in by_document.items():
        packed[name] = pa.LargeListArray.from_arrays(pa.array(documents), column)
    return Dataset(pa.table(packed))
