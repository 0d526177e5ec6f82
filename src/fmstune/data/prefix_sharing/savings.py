"""Rows → what sharing their beginnings saves: the positions of an epoch with it and without."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fmstune.data.prefix_sharing.grouping import batches_of, find_groups, grouped_order, token_column
from fmstune.data.prefix_sharing.layout import lay_out

if TYPE_CHECKING:
    from datasets import Dataset

BATCHES = 256
"""Batches that are laid out; of more, as many are taken at even distances, and the saving is estimated from them."""


@dataclass(frozen=True)
class Savings:
    """Positions of an epoch in batches of one size, as the rows lie in the first epoch of the run."""

    batch_size: int
    rows: int
    tokens: int
    padded: int
    """Positions where each row of a batch is filled up to the longest."""
    shared: int
    """Positions where a beginning that rows of a batch share stands once."""
    estimated: bool = False

    def line(self) -> str:
        """What it says of itself: positions with and without, and when sharing is worth it."""
        about = "about " if self.estimated else ""
        saved = 1 - self.shared / max(self.tokens, 1)
        text = (
            f"{about}{self.shared:,} positions an epoch for {self.tokens:,} tokens in batches of {self.batch_size} "
            f"({saved:.1%} saved; {self.padded:,} positions padded)"
        )
        if saved < LITTLE:
            return f"{text}; rows share too little: data.prefix_sharing=false or training.packing=true is as fast"
        return text


LITTLE = 0.02
"""Below this share the rows have next to nothing in common."""


def estimate_savings(rows: "Dataset", batch_size: int, seed: int) -> Savings:
    """Lay out the batches of the first epoch, or some of them; rows that are not read cost a few numbers each."""
    tokens, bounds = token_column(rows)
    order = grouped_order(find_groups(tokens, bounds), len(rows), batch_size, (seed, 0))
    batches = list(batches_of(order, batch_size))
    chosen = [batches[place] for place in _spread(len(batches))]
    lengths = np.diff(bounds)
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in chosen)
    laid_out = [lay_out([rows[int(number)] for number in batch]) for batch in chosen]
    seen = sum(layout.tokens for layout in laid_out)
    share = int(lengths.sum()) / max(seen, 1)
    return Savings(
        batch_size=batch_size,
        rows=len(rows),
        tokens=int(lengths.sum()),
        padded=round(padded * share),
        shared=round(sum(layout.positions for layout in laid_out) * share),
        estimated=len(chosen) < len(batches),
    )


def _spread(count: int) -> Sequence[int]:
    """Return the numbers of at most `BATCHES` of so many batches."""
    if count <= BATCHES:
        return range(count)
    return [int(place) for place in np.linspace(0, count - 1, BATCHES)]
