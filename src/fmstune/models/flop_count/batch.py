"""What a batch takes of a model: its positions without padding, those that are scored, and the pairs of its rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fmstune.checks.plan_inputs import Dimensions
from fmstune.data.tokens import IGNORED


@dataclass(frozen=True)
class BatchFlops:
    """The floating-point operations of a training step on a batch."""

    dimensions: Dimensions
    frozen_copies: int = 0
    """Models of the same size that compute a forward pass each, such as a reference."""

    def __call__(self, batch: Mapping[str, Any], padding: int) -> float:
        """Return them; `padding` positions of a batch without a mask hold no token.

        A beginning that rows share is computed once, and counts once; documents of a packed row see themselves alone.
        """
        device = batch["input_ids"].device
        counts = self._counts(batch, max(padding, 0))
        # at once, as a device is waited for
        positions, scored, *pairs = torch.stack([torch.as_tensor(one, device=device) for one in counts]).tolist()
        return self.dimensions.flops.total(positions, scored, pairs, frozen_copies=self.frozen_copies)

    def _counts(self, batch: Mapping[str, Any], padding: int) -> list[int | torch.Tensor]:
        """Positions, those that are scored, and the pairs of each kind of window."""
        d, ids = self.dimensions, batch["input_ids"]
        # those of prefix tuning are keys and values alone
        before = d.virtual_tokens - d.prefix_tokens
        if "position_ids" in batch:
            # a position sees itself and those before it; each of padding is a row of its own
            positions = ids.numel() - padding
            seen = batch["position_ids"] + 1
            pairs = [_within(seen, window).sum() - padding for window in d.flops.windows]
        else:
            mask = batch.get("attention_mask")
            lengths = before + (
                torch.full(ids.shape[:1], ids.shape[1], device=ids.device) if mask is None else mask.sum(1)
            )
            positions = lengths.sum()
            pairs = [_of_rows(lengths, window) + d.prefix_tokens * positions for window in d.flops.windows]
        labels = batch.get("labels")
        if labels is None or labels.dim() < 2:
            # one label of a row, or none, is not a token that the output layer scores
            return [positions, positions, *pairs]
        # a prompt predicts the first token of a row, too
        return [positions, (labels[:, 0 if before else 1 :] != IGNORED).sum(), *pairs]


def _within(seen: torch.Tensor, window: int | None) -> torch.Tensor:
    return seen if window is None else seen.clamp(max=window)


def _of_rows(lengths: torch.Tensor, window: int | None) -> torch.Tensor:
    """The pairs of causal rows, as `pairs_of_row` has them for one."""
    full = _within(lengths, window)
    return (full * (full + 1) // 2 + (lengths - full) * full).sum()
