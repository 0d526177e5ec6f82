"""Rows → what sharing their beginnings saves: the positions of an epoch with it and without."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from fmstune.config.job import Job, order_seed
from fmstune.data.prefix_sharing.grouping import Numbers, batches_of, find_groups, grouped_order, token_column
from fmstune.data.prefix_sharing.layout import lay_out
from fmstune.data.prefix_sharing.packs import fill_packs
from fmstune.data.prefix_sharing.saved_positions import LargestBatch, Savings
from fmstune.data.tokens import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset

BATCHES = 256
"""Batches that are laid out; of more, as many are taken at even distances, and the saving is estimated from them."""


@dataclass(frozen=True)
class Batching:
    """How an epoch puts rows into batches."""

    size: int
    """Rows of a batch, or packs."""
    seed: int
    pack_length: int | None = None
    """Positions of a pack; None where rows are not packed."""
    grouped: bool = True
    """Rows that begin alike are brought together; else they keep the order of the file."""


def batching_of(job: Job) -> Batching:
    """How the run of this job puts rows that share into batches."""
    training = job.training
    return Batching(
        size=training.get("per_device_train_batch_size", 8),
        seed=order_seed(job),
        pack_length=job.data.max_length if training.get("packing") else None,
        grouped=training.get("train_sampling_strategy", "random") == "random",
    )


def estimate_savings(rows: "Dataset", batching: Batching) -> Savings:
    """Lay out the batches of the first epoch, or some of them; rows that are not read cost a few numbers each."""
    tokens, bounds = token_column(rows)
    lengths = np.diff(bounds)
    chosen, packs = _packed(rows, batching) if batching.pack_length else (_batches(tokens, bounds, batching), None)
    padded, shared, taken, largest = 0, 0, 0, LargestBatch(0, 0, 0)
    for batch in chosen:
        examples = [rows[int(number)] for number in batch]
        layout = lay_out(examples)
        padded += int(lengths[batch].max()) * len(batch)
        shared += layout.positions
        taken += len(batch)
        if layout.positions > largest.positions:
            # a segment attends to its path from the root
            segments = tuple((segment.length, segment.end) for segment in layout.segments)
            keys = sum(end for _, end in segments)
            trained = sum(label != IGNORED for example in examples for label in example["labels"])
            largest = LargestBatch(layout.positions, keys, trained, segments)
    whole = int(lengths.sum()) / max(int(lengths[np.concatenate(chosen)].sum()), 1)
    return Savings(
        batch_size=batching.size,
        rows=len(rows),
        tokens=int(lengths.sum()),
        padded=round(padded * whole),
        shared=round(shared * whole),
        largest=largest,
        packs=None if packs is None else round(packs * len(rows) / taken),
        estimated=taken < len(rows),
    )


def first_batch(rows: "Dataset", batching: Batching) -> Numbers:
    """Return the numbers of the rows of the first batch of the first epoch; of packs, of the first that are filled."""
    if batching.pack_length is not None:
        packs = islice(fill_packs(rows, batching.pack_length, batching.seed), batching.size)
        return np.concatenate([pack.rows for pack in packs])
    return next(batches_of(_order(*token_column(rows), batching), batching.size))


def _order(tokens: Numbers, bounds: Numbers, batching: Batching) -> Numbers:
    """The rows in the order of the first epoch."""
    if not batching.grouped:
        return np.arange(len(bounds) - 1)
    return grouped_order(find_groups(tokens, bounds), len(bounds) - 1, batching.size, (batching.seed, 0))


def _batches(tokens: Numbers, bounds: Numbers, batching: Batching) -> list[Numbers]:
    """The rows of some batches of the first epoch."""
    batches = list(batches_of(_order(tokens, bounds, batching), batching.size))
    return [batches[place] for place in _spread(len(batches))]


def _packed(rows: "Dataset", batching: Batching) -> tuple[list[Numbers], int]:
    """The rows of batches of the packs that are filled first, and how many packs these are.

    A run takes packs in an order of chance, and some time the fullest together.
    """
    assert batching.pack_length is not None
    packs = list(islice(fill_packs(rows, batching.pack_length, batching.seed), BATCHES))
    if batching.grouped:
        by_chance = [packs[place] for place in np.random.default_rng(batching.seed).permutation(len(packs))]
        fullest = sorted(by_chance, key=lambda pack: -pack.positions)[: batching.size]
        packs = [*fullest, *(pack for pack in by_chance if not any(pack is one for one in fullest))]
    taken = [pack.rows for pack in packs]
    return [np.concatenate(taken[n : n + batching.size]) for n in range(0, len(taken), batching.size)], len(taken)


def _spread(count: int) -> Sequence[int]:
    """Return the numbers of at most `BATCHES` of so many batches."""
    if count <= BATCHES:
        return range(count)
    return [int(place) for place in np.linspace(0, count - 1, BATCHES)]
