"""Several sources → the rows of one epoch: how many of each, which, and which of them are also held out."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmstune.config.choices import StoppingStrategy
from fmstune.data.tokenized import Part
from fmstune.errors import UserError

MOST_REPEATS = 1000
"""Beyond this a weight is a slip: the epoch would hold little but copies."""


class Share(NamedTuple):
    """The rows of an epoch that one source gives."""

    name: str
    rows: int
    """Rows that it has."""
    taken: int
    """Rows of it in an epoch: more than it has where some are repeated, fewer where some are left out."""
    weight: float | None


class Shared(NamedTuple):
    """Rows of a training source with the same tokens as a held-out row."""

    train: str
    """Name of the training source; "" for the only one."""
    held_out: str
    rows: int
    """Training rows that are also held out."""
    train_number: int
    """The first of them, by its number in its source from 1."""
    held_out_number: int
    """The held-out row that it equals."""

    def message(self) -> str:
        """A sentence with the number of rows and the first pair."""
        train = f"data.train.{self.train}" if self.train else "data.train"
        held_out = f"data.eval.{self.held_out}" if self.held_out else "the held-out rows"
        rows = "1 training row is" if self.rows == 1 else f"{self.rows:,} training rows are"
        pair = f"row {self.train_number:,} of {train} is row {self.held_out_number:,} of {held_out}"
        return f"{rows} also held out: {pair}"


def mixture_shares(
    sizes: Mapping[str, int], weights: Mapping[str, float | None], stopping: StoppingStrategy
) -> tuple[Share, ...]:
    """How many rows of each source make an epoch: all of them once, or in the proportions of the weights.

    `all_exhausted` takes every row at least once, and repeats rows of the sources that have too few;
    `first_exhausted` takes no row twice, and leaves out rows of the sources that have too many.
    """
    given = {name: weight for name, weight in weights.items() if weight is not None}
    if not given:
        return tuple(Share(name, size, size, None) for name, size in sizes.items())
    rows_per_weight = [sizes[name] / weight for name, weight in given.items()]
    scale = (max if stopping is StoppingStrategy.all_exhausted else min)(rows_per_weight)
    found = tuple(Share(name, sizes[name], max(1, round(weight * scale)), weight) for name, weight in given.items())
    for share in found:
        if share.taken > MOST_REPEATS * share.rows:
            times, advice = share.taken // share.rows, "lower it, or set data.stopping_strategy=first_exhausted"
            text = f": weight {share.weight:g} takes each of its {share.rows:,} rows {times:,} times an epoch; {advice}"
            raise UserError(f"data.train.{share.name}", text)
    return found


def chosen_rows(share: Share, seed: int) -> list[int]:
    """The rows of a source in an epoch, by number from 0: whole passes, and a rest that the seed draws."""
    passes, rest = divmod(share.taken, share.rows)
    drawn = random.Random(f"{seed} {share.name}").sample(range(share.rows), rest)
    return [*(list(range(share.rows)) * passes), *sorted(drawn)]


def mixture_lines(mixture: Sequence[Share]) -> list[str]:
    """The mixture as it is printed."""
    total = sum(share.taken for share in mixture)
    width = max(len(share.name) for share in mixture)
    return [
        f"        {share.name:<{width}}  {share.taken:,} of {total:,} rows an epoch ({share.taken / total:.1%})"
        + (f", from {share.rows:,} rows, weight {share.weight:g}" if share.weight is not None else "")
        for share in mixture
    ]


def find_overlap(train: Sequence[Part], held_out: Sequence[Part]) -> tuple[Shared, ...]:
    """The training rows that equal held-out ones, by source."""
    found = []
    for one in train:
        for other in held_out:
            ours, theirs = _column(one, "fingerprint"), _column(other, "fingerprint")
            places = np.flatnonzero(np.isin(ours, theirs))
            if len(places):
                twin = int(np.flatnonzero(theirs == ours[places[0]])[0])
                numbers = int(_column(one, "number")[places[0]]), int(_column(other, "number")[twin])
                found.append(Shared(one.name, other.name, len(places), *numbers))
    return tuple(found)


def without_overlap(part: Part, held_out: Sequence[Part]) -> Part:
    """The training source without the rows that are also held out; its ledger counts those as dropped."""
    taken = np.concatenate([_column(other, "fingerprint") for other in held_out])
    held_out_too = np.isin(_column(part, "fingerprint"), taken)
    if held_out_too.all():
        raise UserError("data.overlap", f"=drop leaves no row of {part.name or 'data.train'}: all are also held out")
    ledger = part.ledger.without(part.rows.select(np.flatnonzero(held_out_too))["labels"])
    return dataclasses.replace(part, rows=part.rows.select(np.flatnonzero(~held_out_too)), ledger=ledger)


def _column(part: Part, name: str) -> NDArray[np.int64]:
    found: NDArray[np.int64] = part.rows.data.column(name).to_numpy()
    return found
