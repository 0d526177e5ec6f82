"""Losses by row and epoch → the rows in the order in which they are suspect, with the reasons."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmstune.data.tokenized import fingerprint
from fmstune.data.tokens import IGNORED
from fmstune.runs.row_losses import Entries, begins, times_forgotten

NEIGHBOURS = 100
"""Rows that were trained about the same time, with whose confidence that of a row is compared."""
LATE = 0.9
"""Share of the rows that are learnt at all after whose epoch the others are learnt late."""
FEW = 0.5
"""Where a smaller share of the rows is ever learnt, answers are too long for it, and `never learnt` tells nothing."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class RowName(NamedTuple):
    """A training row: its source by number, from 0, and its place in it, from 1."""

    source: int
    number: int


@dataclass(frozen=True)
class Suspect:
    """A training row with what its losses say of it."""

    name: RowName
    score: float
    """How far its confidence lies below that of its neighbours, as the mean over the epochs; from -1 to 1."""
    losses: tuple[float, ...]
    """Of each epoch that trained it, in nats a token."""
    learnt_in: int | None
    """The first epoch in which it was learnt, from 1; None for a row that never was."""
    forgotten: int
    reasons: tuple[str, ...]
    """`never learnt`, `learnt late`, `forgotten`, `twin`; none where its confidence alone is low."""
    twins: tuple[RowName, ...] = ()
    """Rows with the same prompt and another answer."""


@dataclass(frozen=True)
class Ranking:
    """All rows of a run, the most suspect first."""

    rows: tuple[Suspect, ...]
    epochs: int
    """The most epochs that trained a row."""
    learnt: int
    """Rows that were learnt in some epoch."""

    def count(self, reason: str) -> int:
        """Return how many rows have this reason."""
        return sum(reason in row.reasons for row in self.rows)

    def notes(self) -> Iterator[str]:
        """Yield what the losses cannot tell."""
        if self.epochs < 2:
            yield (
                "each row was seen once, so nothing tells whether it was learnt late or forgotten: the order says only "
                "how far its probability lay below that of the rows trained about the same time; two epochs say more"
            )
        elif self.learnt < FEW * len(self.rows):
            yield (
                f"only {self.learnt:,} of {len(self.rows):,} rows were ever learnt (each trained token the model's "
                "first choice), as with long answers, so `never learnt` is not given as a reason here; go by the order"
            )


def rank_rows(entries: Entries, twins: Mapping[RowName, tuple[RowName, ...]]) -> Ranking:
    """Return the rows by how far their confidence lies below that of their neighbours, the furthest first.

    The confidence in a row is the probability of its trained tokens, as their geometric mean, so that long answers do
    not stand first for their length. Its mean over the epochs tells wrong labels, which are learnt late or not at all
    (Swayamdipta et al. 2020, arXiv 2009.10795; likewise the area under the margin, Pleiss et al. 2020, arXiv
    2001.10528); at the end it does not, once a wrong label is known by heart. Neighbours are rows of the same epoch,
    because the probability of all rows grows while the model learns.
    """
    entries = entries[entries["tokens"] > 0]
    if not len(entries):
        return Ranking((), 0, 0)
    lacking, forgotten = _below_neighbours(entries), times_forgotten(entries)
    starts = np.flatnonzero(begins(entries))
    ends = np.append(starts[1:], len(entries))
    scores = np.add.reduceat(lacking, starts) / (ends - starts)
    first = _first_learnt(entries, starts)
    known = first[first > 0]
    late = int(np.quantile(known, LATE, method="inverted_cdf")) if len(known) else 0
    is_told = len(known) >= FEW * len(starts)
    loss = entries["loss"] / entries["tokens"]
    rows = []
    for place in np.argsort(-scores, kind="stable"):
        span = slice(starts[place], ends[place])
        name = RowName(int(entries["source"][starts[place]]), int(entries["number"][starts[place]]))
        seen, learnt_in = ends[place] - starts[place], int(first[place]) or None
        times = int(forgotten[ends[place] - 1])
        marks = {
            "never learnt": is_told and seen > 1 and learnt_in is None,
            "learnt late": seen > 1 and learnt_in is not None and learnt_in > late,
            "forgotten": times > 0,
            "twin": name in twins,
        }
        reasons = tuple(reason for reason, holds in marks.items() if holds)
        losses = tuple(map(float, loss[span]))
        rows.append(Suspect(name, float(scores[place]), losses, learnt_in, times, reasons, twins.get(name, ())))
    return Ranking(tuple(rows), int((ends - starts).max()), len(known))


def _first_learnt(entries: Entries, starts: Integers) -> Integers:
    """The first epoch of each row in which it was learnt, from 1; 0 for a row that never was."""
    none = np.iinfo(np.int64).max
    epochs = np.where(entries["correct"] == entries["tokens"], entries["epoch"].astype(np.int64) + 1, none)
    found = np.minimum.reduceat(epochs, starts)
    return np.where(found == none, 0, found)


def _below_neighbours(entries: Entries) -> Floats:
    """How far the confidence of each entry lies below the mean of the entries trained about the same time."""
    order = np.lexsort([entries["step"], entries["epoch"]])
    confidence, epochs = np.exp(-entries["loss"] / entries["tokens"])[order], entries["epoch"][order]
    sums = np.concatenate([[0.0], np.cumsum(confidence)])
    below = np.empty(len(entries))
    bounds = [0, *np.flatnonzero(np.diff(epochs)) + 1, len(epochs)]
    for first, last in pairwise(bounds):
        width = min(NEIGHBOURS, last - first)
        begin = np.clip(np.arange(first, last) - width // 2, first, last - width)
        below[first:last] = (sums[begin + width] - sums[begin]) / width - confidence[first:last]
    found = np.empty(len(entries))
    found[order] = below
    return found


def find_twins(sources: Sequence[Iterable[Mapping[str, Any]]]) -> dict[RowName, tuple[RowName, ...]]:
    """Return for each row that has some the rows with the same prompt and another answer, of all sources.

    The prompt is all that is masked, the answer all that is trained; both are compared by 64 bits of a hash.
    """
    answers: dict[RowName, int] = {}
    prompts: dict[int, list[RowName]] = {}
    for source, rows in enumerate(sources):
        for row in rows:
            ids, labels, name = row["input_ids"], row["labels"], RowName(source, int(row["number"]))
            masked = [one for one, label in zip(ids, labels, strict=True) if label == IGNORED]
            answers[name] = fingerprint([label for label in labels if label != IGNORED])
            prompts.setdefault(fingerprint(masked), []).append(name)
    found = {}
    for names in prompts.values():
        for name in names if len(names) > 1 else ():
            if others := tuple(other for other in names if answers[other] != answers[name]):
                found[name] = others
    return found
