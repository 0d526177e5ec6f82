"""Rows of a batch → one line of segments, in which a beginning that several rows share stands once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from fmstune.data.tokens import IGNORED

Numbers = np.ndarray[Any, np.dtype[np.int64]]

LEAST_SAVED = 16
"""Positions that a shared segment saves at least: for a token in common by chance, a segment is not worth its keys."""


class Stretch(NamedTuple):
    """A segment: the tokens `start` to `end` of each of its rows, computed once."""

    start: int
    end: int
    parent: int | None
    """The segment that the same rows go through before; None at the root."""
    rows: tuple[int, ...]

    @property
    def length(self) -> int:
        """Positions that it takes."""
        return self.end - self.start


class Target(NamedTuple):
    """Trained tokens of all rows, in the order of rows and tokens: as many as the same rows have alone."""

    places: Numbers
    """The position of the line that predicts each of them. A position that rows share is listed once a row."""
    tokens: Numbers


@dataclass(frozen=True)
class Layout:
    """The rows of a batch as a trie, of which each node is a segment of the line; a parent stands before its children.

    A segment attends to its path from the root and, causally, to itself. So each position sees the tokens that it
    sees in its row, and no others.
    """

    segments: tuple[Stretch, ...]
    lengths: tuple[int, ...]
    """Tokens of each row."""

    @property
    def positions(self) -> int:
        """Positions of the line."""
        return sum(segment.length for segment in self.segments)

    @property
    def tokens(self) -> int:
        """Tokens of the rows, each counted as often as it stands in a row."""
        return sum(self.lengths)

    @cached_property
    def starts(self) -> Numbers:
        """Where each segment begins on the line, and where the last one ends."""
        return np.cumsum([0, *(segment.length for segment in self.segments)])

    @cached_property
    def places(self) -> tuple[Numbers, ...]:
        """For each row, the positions of the line that hold its tokens."""
        found = [np.empty(length, dtype=np.int64) for length in self.lengths]
        for segment, at in zip(self.segments, self.starts[:-1], strict=True):
            for row in segment.rows:
                found[row][segment.start : segment.end] = np.arange(at, at + segment.length)
        return tuple(found)

    def keys(self) -> Iterator[Numbers]:
        """Yield the positions that each segment attends to: its path from the root, and itself at the end."""
        for segment in self.segments:
            yield self.places[segment.rows[0]][: segment.end]

    def depth(self) -> int:
        """Return the segments of the longest path."""
        depths: list[int] = []
        for segment in self.segments:
            depths.append(1 if segment.parent is None else depths[segment.parent] + 1)
        return max(depths)


def lay_out(rows: Sequence[Mapping[str, Any]], least_saved: int = LEAST_SAVED) -> Layout:
    """Return the trie of rows with `input_ids` and `labels`: neighbours in the order of their tokens share most.

    A position has one token to predict. So where rows part and two branches train their next token, the last shared
    token is not shared: each branch has its own. A token that some rows train and others do not is shared; it counts
    for those that train it. A beginning that would save fewer positions than `least_saved` stands in each branch.

    Segments of equal shape stand together, as a CPU computes them together.
    """
    texts = [_tokens_with_labels(row) for row in rows]
    order = sorted(range(len(rows)), key=lambda number: texts[number].tolist())
    common = [_shared_length(texts[one], texts[other]) for one, other in pairwise(order)]
    segments: list[Stretch] = []
    # a stack: a conversation of a thousand turns is a path of a thousand segments
    open_branches: list[tuple[int, int, int, int | None]] = [(0, len(order), 0, None)]
    while open_branches:
        first, last, start, parent = open_branches.pop()
        branches, length = [], len(texts[order[first]])
        if last - first > 1:
            length = min(common[first : last - 1])
            cuts = [number + 1 for number in range(first, last - 1) if common[number] == length]
            branches = list(pairwise([first, *cuts, last]))
        trained = [any(_trains(rows[order[n]], length) for n in range(*branch)) for branch in branches]
        end = max(start, length - (sum(trained) > 1))
        if branches and (end - start) * (len(branches) - 1) < least_saved:
            end = start
        if end > start:
            segments.append(Stretch(start, end, parent, tuple(sorted(order[first:last]))))
            parent = len(segments) - 1
        open_branches += [(*branch, end, parent) for branch in reversed(branches)]
    return Layout(_by_shape(segments), tuple(len(text) for text in texts))


def _by_shape(segments: Sequence[Stretch]) -> tuple[Stretch, ...]:
    """The same segments by the keys and queries that each has; a parent has fewer keys than its children."""
    order = sorted(range(len(segments)), key=lambda number: segments[number][:2][::-1])
    place = {number: at for at, number in enumerate(order)}
    chosen = (segments[number] for number in order)
    return tuple(one._replace(parent=None if one.parent is None else place[one.parent]) for one in chosen)


def _tokens_with_labels(row: Mapping[str, Any]) -> Numbers:
    """The tokens of a row; one that is trained as another one (rows may bring their labels) is like no other token."""
    tokens, labels = np.asarray(row["input_ids"], dtype=np.int64), np.asarray(row["labels"], dtype=np.int64)
    differs = (labels != IGNORED) & (labels != tokens)
    return np.where(differs, -1 - (tokens * 2**31 + labels), tokens)


def _shared_length(one: Numbers, other: Numbers) -> int:
    shorter = min(len(one), len(other))
    apart = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(apart[0]) if len(apart) else shorter


def _trains(row: Mapping[str, Any], number: int) -> bool:
    labels = row["labels"]
    return number < len(labels) and labels[number] != IGNORED


def find_targets(layout: Layout, rows: Sequence[Mapping[str, Any]]) -> Target:
    """Return what the line predicts; the first token of a row is predicted by none."""
    places, tokens = [], []
    for row, of_row in zip(rows, layout.places, strict=True):
        next_labels = np.asarray(row["labels"], dtype=np.int64)[1:]
        trained = np.flatnonzero(next_labels != IGNORED)
        places.append(of_row[trained])
        tokens.append(next_labels[trained])
    return Target(np.concatenate(places), np.concatenate(tokens))


def line_arguments(layout: Layout, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the line as arrays, by the names of the model's arguments; `targets` are the places of `find_targets`.

    `cu_seq_lens_*` and `max_length_*` are transformers' names for where segments begin and end; `key_index` holds the
    positions whose keys the segments attend to, laid end to end. `shift_labels` is what each position predicts.
    """
    total = layout.positions
    line = {name: np.zeros(total, dtype=np.int64) for name in ("input_ids", "position_ids")}
    shift_labels = np.full(total, IGNORED, dtype=np.int64)
    for row, places in zip(rows, layout.places, strict=True):
        line["input_ids"][places] = row["input_ids"]
        line["position_ids"][places] = np.arange(len(places))
    targets = find_targets(layout, rows)
    shift_labels[targets.places] = targets.tokens
    keys = list(layout.keys())
    return {
        **line,
        "shift_labels": shift_labels,
        "targets": targets.places,
        "cu_seq_lens_q": layout.starts.astype(np.int32),
        "cu_seq_lens_k": np.cumsum([0, *map(len, keys)]).astype(np.int32),
        "max_length_q": max(segment.length for segment in layout.segments),
        "max_length_k": max(map(len, keys)),
        "key_index": np.concatenate(keys),
    }
