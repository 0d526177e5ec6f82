"""`rows.parquet`: the loss of each training row in each epoch, and how often the row was forgotten."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmstune.errors import UserError, one_line
from fmstune.files import write_aside

FILE = "rows.parquet"
"""File of a run folder."""
STATE = "row_losses.npz"
"""File of a checkpoint: the sums until then, so that a resumed run's file is that of the whole run."""
ENTRY = np.dtype(
    [
        *(("source", "i2"), ("number", "i8"), ("epoch", "i4"), ("step", "i4")),
        *(("tokens", "i8"), ("correct", "i8"), ("loss", "f8")),
    ]
)
"""Sums of a row in an epoch: `source` and `epoch` count from 0, `number` and `step` from 1, `loss` is in nats.

`tokens` are those that were trained, `correct` those of them that the model gave the highest probability, and `step`
is the first of the epoch that trained the row.
"""
Entries = NDArray[Any]
"""An array of `ENTRY`."""
ROW = ("source", "number")
"""Fields of an entry that tell its row."""
_KEY = (*ROW, "epoch")


def begins(entries: Entries, keys: Sequence[str] = ROW) -> NDArray[np.bool_]:
    """Which entries begin another row, or what else `keys` tell apart, than the one before; the first always does."""
    found = np.ones(len(entries), bool)
    same = [entries[name][1:] == entries[name][:-1] for name in keys]
    found[1:] = ~np.logical_and.reduce(same)
    return found


def merge(parts: Sequence[Entries]) -> Entries:
    """Return one entry for each row and epoch, by source, number and epoch; those of one row in an epoch are added."""
    entries = np.concatenate([np.empty(0, ENTRY), *parts])
    if not len(entries):
        return entries
    entries = entries[np.lexsort([entries[name] for name in reversed(_KEY)])]
    first = np.flatnonzero(begins(entries, _KEY))
    merged = entries[first]
    for name in ("tokens", "correct", "loss"):
        merged[name] = np.add.reduceat(entries[name], first)
    merged["step"] = np.minimum.reduceat(entries["step"], first)
    return merged


def times_forgotten(entries: Entries) -> NDArray[np.int32]:
    """How often each row was forgotten up to each of its epochs: learnt in one epoch, and not in the next.

    A row is learnt where the model gives each of its trained tokens the highest probability. This is the event of
    Toneva et al. 2019 (arXiv 1812.05159), who count it at each presentation of an example. `entries` are merged.
    """
    learnt = entries["correct"] == entries["tokens"]
    begun = begins(entries)
    events = np.zeros(len(entries), np.int32)
    events[1:] = ~begun[1:] & learnt[:-1] & ~learnt[1:]
    total = np.cumsum(events)
    starts = np.flatnonzero(begun)
    before = np.repeat((total - events)[starts], np.diff([*starts, len(entries)]))
    return (total - before).astype(np.int32)


def loss_by_source(entries: Entries, sources: Sequence[str]) -> dict[str, float]:
    """The loss a token of each source over all epochs; of a source without a trained token, nothing."""
    sums = np.zeros((len(sources), 2))
    np.add.at(sums, entries["source"], np.stack([entries["loss"], entries["tokens"]], axis=1))
    return {name: float(loss / tokens) for name, (loss, tokens) in zip(sources, sums, strict=True) if tokens}


def write_row_losses(folder: Path, sources: Sequence[str], entries: Entries) -> None:
    """Write `rows.parquet`: a line for each row and epoch, by source, row and epoch; `entries` are merged."""
    import pyarrow as pa
    from pyarrow import parquet

    tokens = entries["tokens"]
    loss = entries["loss"] / np.maximum(tokens, 1)
    columns = {
        "source": pa.array(np.array([*sources, ""], object)[entries["source"]], pa.string()),
        "row": pa.array(entries["number"]),
        "epoch": pa.array(entries["epoch"] + 1),
        "step": pa.array(entries["step"]),
        "loss": pa.array(loss.astype(np.float32), mask=tokens == 0),
        "tokens": pa.array(tokens.astype(np.int32)),
        "correct": pa.array(entries["correct"].astype(np.int32)),
        "forgotten": pa.array(times_forgotten(entries)),
    }
    with write_aside(folder / FILE) as aside:
        parquet.write_table(pa.table(columns), aside, compression="zstd")


def read_row_losses(folder: Path, sources: Sequence[str]) -> Entries:
    """Return the entries that `write_row_losses` wrote; raises UserError for a file that no run writes."""
    import pyarrow as pa
    from pyarrow import parquet

    path = folder / FILE
    try:
        table = parquet.read_table(path).to_pydict()
        entries = np.empty(len(table["row"]), ENTRY)
        places = {name: number for number, name in enumerate(sources)}
        entries["source"] = [places[name] for name in table["source"]]
        entries["number"], entries["epoch"] = table["row"], np.array(table["epoch"], "i4") - 1
        for name in ("step", "tokens", "correct"):
            entries[name] = table[name]
        losses = np.array([0.0 if loss is None else loss for loss in table["loss"]])
        entries["loss"] = losses * entries["tokens"]
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as err:
        text = f": cannot be read as the rows of this run ({type(err).__name__}: {one_line(err)}); train again"
        raise UserError(str(path), text) from err
    return entries
