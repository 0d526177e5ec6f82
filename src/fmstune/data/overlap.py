"""Training rows that are held out, too: memory would pass for skill."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmstune.data.tokenized import Part


class Shared(NamedTuple):
    """Rows of a training source whose tokens are those of a held-out row."""

    train: str
    """Name of the training source; "" for the only one."""
    held_out: str
    rows: int
    """Training rows that are held out, too."""
    train_number: int
    """The first of them, by its place in its split, counted from 1."""
    held_out_number: int
    """The held-out row that it equals."""


def find(train: Sequence[Part], held_out: Sequence[Part]) -> tuple[Shared, ...]:
    """Which training rows equal held-out ones, by source."""
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


class Divided(NamedTuple):
    """The rows of a training source by number from 0."""

    kept: NDArray[np.int64]
    held_out_too: NDArray[np.int64]


def divided(part: Part, held_out: Sequence[Part]) -> Divided:
    """The rows of a training source that no held-out row equals, and the others."""
    taken = np.concatenate([_column(other, "fingerprint") for other in held_out])
    held_out_too = np.isin(_column(part, "fingerprint"), taken)
    return Divided(np.flatnonzero(~held_out_too), np.flatnonzero(held_out_too))


def message(shared: Shared) -> str:
    """What was found, in a sentence."""
    train = f"data.train.{shared.train}" if shared.train else "data.train"
    held_out = f"data.eval.{shared.held_out}" if shared.held_out else "the held-out rows"
    rows = "1 training row is" if shared.rows == 1 else f"{shared.rows:,} training rows are"
    return (
        f"{rows} held out, too: row {shared.train_number:,} of {train} is row {shared.held_out_number:,} of {held_out}"
    )


def _column(part: Part, name: str) -> NDArray[np.int64]:
    found: NDArray[np.int64] = part.rows.data.column(name).to_numpy()
    return found
