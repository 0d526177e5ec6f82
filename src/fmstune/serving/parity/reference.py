"""The run's own model, as fmstune loads it → what training's rows and answers are to be compared with."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel

from fmstune.config.choices import Attention, Device, Dtype
from fmstune.models import tuned
from fmstune.models.load import Tokenizer
from fmstune.models.tuned import Place, Tuned
from fmstune.serving.parity import plain
from fmstune.serving.parity.training_rows import TrainedRow
from fmstune.serving.parity.verdict import Cause, Trained

ROOM = 4
"""Tokens that an answer may have beyond the known one, so that one that goes on past its end is seen."""
MOST = 48
"""Tokens of a greedy answer; a longer answer is compared up to there."""
_GROUP, _LEVELS = 32, 15
"""Plain rounding to 5 bits: numbers in a group have one scale, and 15 steps in each direction. It is about as far off
as the usual 4 bits, which round with more care."""


@dataclass(frozen=True)
class Reference:
    """A run's model that is loaded when it is asked for, and let go of then: serving may need the memory."""

    place: Place
    base: Place | None
    """What a whole model was tuned from, where that is known."""
    tokenizer: Tokenizer
    rows: Sequence[TrainedRow]
    stops: Sequence[int]
    """The tokens at which an answer ends in training."""
    device: Device = Device.auto

    @torch.no_grad()
    def measure(self) -> list[Trained]:
        """Every row as the model scores and answers it."""
        model = self._loaded(self.place).model
        return [self._measured(model, row) for row in self.rows]

    def _measured(self, model: torch.nn.Module, row: TrainedRow) -> Trained:
        found = plain.greedy(model, row.prompt_ids, limit(row), list(self.stops))
        alone = None
        if isinstance(model, PeftModel):
            with model.disable_adapter():
                alone = plain.log_probs(model, row.before, row.scored)
        known = plain.log_probs(model, row.before, row.scored)
        return Trained(row.place, row.prompt_ids, row.answer_ids, known, found.ids, found.margins, alone)

    @torch.no_grad()
    def guesses(self) -> dict[Cause, list[list[float]]]:
        """The answers' log-probabilities under faults that only the weights tell."""
        model = self._loaded(self.place).model
        found: dict[Cause, list[list[float]]] = {}
        if (pad := self.tokenizer.tokenizer.pad_token_id) in self.stops:
            found[Cause.end_is_padding] = self._scored(model, without=pad)
        if self.base is not None:
            found[Cause.adapter] = self._scored(self._loaded(self.base).model)
        for weight in (one.weight for one in model.modules() if isinstance(one, torch.nn.Linear)):
            weight.copy_(rounded_to_few_bits(weight))
        found[Cause.precision] = self._scored(model)
        return found

    def _scored(self, model: torch.nn.Module, *, without: int | None = None) -> list[list[float]]:
        return [plain.log_probs(model, row.before, row.scored, without=without) for row in self.rows]

    def _loaded(self, place: Place) -> Tuned:
        return tuned.load_tuned(place, self.tokenizer, dtype=Dtype.auto, attention=Attention.sdpa, device=self.device)


def limit(row: TrainedRow) -> int:
    """The most tokens of a greedy answer to this row."""
    return min(len(row.answer_ids) + ROOM, MOST)


def rounded_to_few_bits(weight: torch.Tensor) -> torch.Tensor:
    """The weights as the coarsest usual quantisation leaves them; a row that does not divide into groups is one."""
    size = _GROUP if weight.shape[-1] % _GROUP == 0 else weight.shape[-1]
    groups = weight.float().reshape(-1, size)
    scale = (groups.abs().amax(1, keepdim=True) / _LEVELS).clamp(min=1e-12)
    return ((groups / scale).round() * scale).reshape(weight.shape).to(weight.dtype)
