"""The loss of each row in each epoch, kept while a run trains: on the device until a log, then in memory."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object

from fmstune.runs.row_losses import ENTRY, STATE, Entries, merge
from fmstune.training.collate import Whose


class _Waiting(NamedTuple):
    """A batch whose sums are still on the device."""

    epoch: int
    step: int
    rows: torch.Tensor
    """Source and number of each document."""
    sums: torch.Tensor
    """Of each document: trained tokens, those that were the model's first choice, and the negative log-probability."""


class LossRecorder:
    """Sums of the loss by row and epoch. Only the main process holds those of all, from `collect` on."""

    def __init__(self, sources: Sequence[str]) -> None:
        self.sources = tuple(sources)
        self.entries: Entries = np.empty(0, ENTRY)
        """The merged entries of all processes up to the last `collect`, in the main process."""
        self._waiting: list[_Waiting] = []
        self._new: list[Entries] = []
        self._since_log = np.zeros((len(self.sources), 2))
        self._of_all_since_log = self._since_log
        """That of all processes up to the last `collect`, in the main process."""

    def watch(self, model: Callable[..., Any], whose: Whose, epoch: int, step: int) -> Callable[..., Any]:
        """Return the model so that the log-probabilities that TRL's fused LM head returns are summed by row.

        No sum is read here, as the device would have to wait for it.
        """

        def watched(**arguments: Any) -> Any:
            outputs = model(**arguments)
            if arguments.get("fused_lm_head"):
                self._add(outputs, whose, epoch, step)
            return outputs

        return watched

    @torch.no_grad()
    def _add(self, outputs: Any, whose: Whose, epoch: int, step: int) -> None:
        log_probs = outputs.log_probs.detach()
        # virtual tokens stand before a row, and where there are none its first token is predicted by nothing
        last = min(log_probs.shape[1], whose.documents.shape[1])
        counts = [outputs.label_mask, outputs.is_top1, -log_probs]
        values = torch.stack([count[:, -last:].reshape(-1).double() for count in counts], dim=1)
        documents = whose.documents[:, -last:].reshape(-1).to(values.device, non_blocking=True)
        sums = values.new_zeros(len(whose.rows), values.shape[1]).index_add_(0, documents, values)
        self._waiting.append(_Waiting(epoch, step, whose.rows, sums))

    def settle(self) -> None:
        """Bring the sums that wait from the device, all at once."""
        if not self._waiting:
            return
        sums = torch.cat([one.sums for one in self._waiting]).cpu().numpy()
        rows = torch.cat([one.rows for one in self._waiting]).cpu().numpy()
        counts = [len(one.rows) for one in self._waiting]
        entries = np.empty(len(rows), ENTRY)
        entries["source"], entries["number"] = rows.T
        entries["tokens"], entries["correct"], entries["loss"] = sums.T
        for name in ("epoch", "step"):
            entries[name] = np.repeat([getattr(one, name) for one in self._waiting], counts)
        np.add.at(self._since_log, entries["source"], sums[:, [2, 0]])
        self._new.append(merge([entries]))
        self._waiting.clear()

    def losses_since_log(self, add_up: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Return the loss a token of each source since this was last asked; every process must ask.

        `add_up` gives the sum of all processes. A source that trained no token since has no loss.
        """
        self.settle()
        sums = add_up(torch.from_numpy(self._since_log.copy())).tolist()
        self._since_log[:] = 0
        return {name: loss / tokens for name, (loss, tokens) in zip(self.sources, sums, strict=True) if tokens}

    def collect(self) -> None:
        """Bring the sums of all processes into the main one; every process must call this."""
        self.settle()
        told: list[Any] = gather_object([(merge(self._new), self._since_log)])
        self._new.clear()
        self.entries = merge([self.entries, *(entries for entries, _ in told)])
        self._of_all_since_log = sum(since for _, since in told)

    def save(self, checkpoint: Path) -> None:
        """Write what was collected into a checkpoint."""
        np.savez(
            checkpoint / STATE, entries=self.entries, sources=np.array(self.sources), since_log=self._of_all_since_log
        )

    def resume(self, checkpoint: Path, *, is_main: bool) -> bool:
        """Take over what a checkpoint holds, in the main process; False where it holds none.

        Rows are known by the name of their source and their number, so that a job may resume on other rows.
        """
        path = checkpoint / STATE
        if not path.is_file():
            return False
        if is_main:
            with np.load(path) as state:
                names, entries, since_log = state["sources"].tolist(), state["entries"], state["since_log"]
            places = _places(names, self.sources)
            known = places[entries["source"]] >= 0
            self.entries = entries[known]
            self.entries["source"] = places[self.entries["source"]]
            self.entries = merge([self.entries])
            np.add.at(self._since_log, places[places >= 0], since_log[places >= 0])
        return True


def _places(names: Sequence[str], sources: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The number of each name among the sources; -1 for a source that the job no longer has."""
    known: Mapping[str, int] = {name: number for number, name in enumerate(sources)}
    return np.array([known.get(name, -1) for name in names], dtype=np.int64)
