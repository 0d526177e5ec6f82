"""One batch of rows that share their beginnings as a tree, to be looked at."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fmstune.data.prefix_sharing.grouping import Numbers
from fmstune.data.prefix_sharing.layout import Layout, lay_out
from fmstune.data.tokens import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset

CONTEXT = 8
"""Tokens that tell how the next one is written: a character takes four at most."""


@dataclass(frozen=True)
class Node:
    """A segment: tokens that its rows have in common, computed once."""

    depth: int
    """Segments before it on the path from the root."""
    rows: tuple[int, ...]
    """Numbers of its rows among the training rows, from 0, ascending."""
    before: tuple[int, ...]
    """The last tokens of its rows before it, which say how its own are written."""
    tokens: tuple[int, ...]
    trained_by: tuple[int, ...]
    """For each of its own tokens, how many of its rows train it."""
    ends: tuple[int, ...]
    """Those of its rows that end with it, while others go on."""

    @property
    def length(self) -> int:
        """Positions that it takes."""
        return len(self.tokens)

    @property
    def saved(self) -> int:
        """Positions that its rows would take more if each had its own."""
        return self.length * (len(self.rows) - 1)


@dataclass(frozen=True)
class BatchTree:
    """A batch: its nodes in the order of a walk that goes down first, and what the batch takes."""

    nodes: tuple[Node, ...]
    rows: int
    tokens: int
    padded: int
    """Positions if each row were filled up to the longest."""
    positions: int

    @property
    def title(self) -> str:
        """What the batch takes, with sharing and without."""
        saved = f"{1 - self.positions / max(self.tokens, 1):.1%} saved"
        return (
            f"{self.rows:,} rows of {self.tokens:,} tokens in {self.positions:,} positions "
            f"({saved}; {self.padded:,} positions padded)"
        )


def batch_tree(rows: "Dataset", batch: Numbers) -> BatchTree:
    """Return the tree of the rows of these numbers; the nodes of a parent are in the order of their first rows."""
    numbers = sorted(int(number) for number in batch)
    examples = [rows[number] for number in numbers]
    layout = lay_out(examples)
    labels = [np.asarray(example["labels"], dtype=np.int64) for example in examples]
    children: dict[int | None, list[int]] = {}
    for place, segment in enumerate(layout.segments):
        children.setdefault(segment.parent, []).append(place)
    nodes, stack = list[Node](), [(0, place) for place in _reversed(layout, children.get(None, []))]
    # a stack: a conversation of a thousand turns is a path of a thousand segments
    while stack:
        depth, place = stack.pop()
        segment = layout.segments[place]
        below, ids = children.get(place, []), examples[segment.rows[0]]["input_ids"]
        own = np.stack([labels[row][segment.start : segment.end] for row in segment.rows])
        ends = [row for row in segment.rows if below and layout.lengths[row] == segment.end]
        nodes.append(
            Node(
                depth=depth,
                rows=tuple(numbers[row] for row in segment.rows),
                before=tuple(ids[max(segment.start - CONTEXT, 0) : segment.start]),
                tokens=tuple(ids[segment.start : segment.end]),
                trained_by=tuple((own != IGNORED).sum(axis=0).tolist()),
                ends=tuple(numbers[row] for row in ends),
            )
        )
        stack += [(depth + 1, child) for child in _reversed(layout, below)]
    padded = max(layout.lengths) * len(numbers)
    return BatchTree(tuple(nodes), len(numbers), layout.tokens, padded, layout.positions)


def _reversed(layout: Layout, places: list[int]) -> list[int]:
    return sorted(places, key=lambda place: layout.segments[place].rows[0], reverse=True)
