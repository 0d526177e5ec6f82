"""The loss of all held-out tokens, and of each row, from Trainer's own evaluation: no row is scored twice for it."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from datasets import Dataset

from fmstune.data.tokenized import IDENTITY
from fmstune.data.tokens import IGNORED
from fmstune.runs.looks import RowLosses
from fmstune.training.objectives.loss_recorder import LossRecorder


def name_by_place(rows: Dataset, number: int) -> Dataset:
    """Return the rows of a held-out set with `IDENTITY`: the set's number, from 0, and their places, from 1."""
    rows = rows.remove_columns([name for name in IDENTITY if name in rows.column_names])
    names = (np.full(len(rows), number, np.int16), np.arange(1, len(rows) + 1, dtype=np.int32))
    for column, values in zip(IDENTITY, names, strict=True):
        rows = rows.add_column(column, values)
    return rows


class TokenMean:
    """The mean loss over the trained tokens of all batches; that of a batch is a mean over its own."""

    def __init__(self) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64)

    def add(self, loss: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch; nothing predicts the first of its labels."""
        tokens = (labels[:, 1:] != IGNORED).sum()
        self._sums += torch.stack([loss.detach() * tokens, tokens.to(loss.dtype)]).cpu().double()

    def mean(self, add_up: Callable[[torch.Tensor], torch.Tensor]) -> float:
        """Return the mean over the batches of all processes, whose sums `add_up` adds; every process must ask."""
        loss, tokens = add_up(self._sums.float()).tolist()
        return float(loss / max(tokens, 1))


class HeldOutLosses:
    """What an evaluation of all sets has seen of their rows, which `name_by_place` has named."""

    def __init__(self, held_out: Sequence[Dataset]) -> None:
        self._ends = np.cumsum([0, *map(len, held_out)])
        # nothing predicts the first token but virtual tokens, which a base has not
        trained = [sum(label != IGNORED for label in labels[1:]) for rows in held_out for labels in rows["labels"]]
        self._tokens = np.array(trained)
        self._step: int | None = None
        self._sets = [str(number) for number in range(len(held_out))]
        self.recorder = LossRecorder(self._sets)
        """Sees the batches of the evaluation."""

    def begin(self, step: int) -> None:
        """Forget what was seen before: an evaluation at this step begins."""
        self._step, self.recorder = step, LossRecorder(self._sets)

    def read(self, step: int, max_rows: int | None) -> RowLosses | None:
        """Return the losses of the first rows of each set at this step; None where not all of them were evaluated.

        Every process must ask. The mean counts of a row that is seen again; what fills up a batch trains no token.
        """
        if step != self._step:
            return None
        self.recorder.collect()
        entries, losses = self.recorder.entries, np.full(len(self._tokens), np.nan)
        places = self._ends[entries["source"]] + entries["number"] - 1
        losses[places] = entries["loss"] * self._tokens[places] / np.maximum(entries["tokens"], 1)
        firsts = [np.arange(begin, end)[:max_rows] for begin, end in pairwise(self._ends.tolist())]
        chosen = np.concatenate(firsts)
        if np.isnan(losses[chosen]).any():
            return None
        return RowLosses(losses[chosen].tolist(), self._tokens[chosen].tolist())
