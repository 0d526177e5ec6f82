"""The figures of rows that share their beginnings, which a plan is made of; imports nothing heavy."""

from dataclasses import dataclass

from fmstune.tables import count_of


@dataclass(frozen=True)
class LargestBatch:
    """The batch with most positions."""

    positions: int
    keys: int
    """Positions that its segments attend to, each segment's counted."""
    trained: int
    """Tokens that it trains."""
    segments: tuple[tuple[int, int], ...] = ()
    """Of each segment, in their order on the line: its positions, and those that it attends to."""


@dataclass(frozen=True)
class Savings:
    """Positions of an epoch, as the rows lie in the first epoch of the run."""

    batch_size: int
    rows: int
    tokens: int
    padded: int
    """Positions where each row of a batch is filled up to the longest."""
    shared: int
    """Positions where a beginning that rows of a batch share stands once."""
    largest: LargestBatch
    packs: int | None = None
    """Packs that the rows fill; None where they are not packed."""
    estimated: bool = False

    @property
    def share(self) -> float:
        """Share of the tokens' positions that is saved."""
        return (self.tokens - self.shared) / max(self.tokens, 1)

    def line(self) -> str:
        """What it says of itself: positions with and without, and when sharing is worth it."""
        about = "about " if self.estimated else ""
        saved = self.share
        packs = f"in {count_of(self.packs, 'pack')}" if self.packs else ""
        padded = f"; {self.padded:,} positions padded"
        text = (
            f"{about}{self.shared:,} positions an epoch for {self.tokens:,} tokens "
            f"{packs or f'in batches of {self.batch_size}'} ({saved:.1%} saved{'' if packs else padded})"
        )
        if saved < LITTLE:
            other = "" if packs else " or training.packing=true"
            return f"{text}; rows share too little: data.prefix_sharing=false{other} is as fast"
        return text


LITTLE = 0.02
"""Below this share the rows have next to nothing in common."""
ENOUGH = 0.1
"""From this share on `data.prefix_sharing=auto` lets rows share.

The time that is saved is then worth batches of rows that are alike, and more than laying them out costs.
"""
