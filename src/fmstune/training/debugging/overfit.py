"""`debug=overfit`: one batch until its loss is small, or what keeps it from that."""

import math
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from fmstune.data.tokens import IGNORED
from fmstune.errors import Problem, raise_if_any

_NAMED = 3
"""Names of weights in a message."""


class Overfit(TrainerCallback):
    """Stops the run when the loss is below `until`; at the end of a run that did not get there, says why."""

    def __init__(self, until: float = 0.01) -> None:
        self._until = until
        self._losses: list[float] = []
        self._without_gradient: set[str] | None = None
        self._reached = False

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """See which trained weights have had no gradient at any step."""
        idle = {
            name
            for name, weight in kwargs["model"].named_parameters()
            if weight.requires_grad and (weight.grad is None or not weight.grad.any())
        }
        self._without_gradient = idle if self._without_gradient is None else self._without_gradient & idle

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        """Stop when the loss is small enough."""
        if isinstance(loss := (logs or {}).get("loss"), float):
            self._losses.append(loss)
            if loss < self._until:
                self._reached = control.should_training_stop = True

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Raises UserError with all that keeps the loss up."""
        loss = self._losses[-1] if self._losses else math.nan
        if self._reached:
            said = f"overfit after step {state.global_step:,}: loss {loss:.4g} is below {self._until:g}"
            if state.is_world_process_zero:
                print(f"{said}, so rows, masks, rate and weights work together", file=sys.stderr, flush=True)
            return
        if not self._losses or state.global_step < state.max_steps:
            return  # it was stopped for another reason, such as a notice
        data = kwargs["train_dataloader"].dataset
        why = [
            *_row_problems(data["input_ids"], data["labels"], self._until),
            *_weight_problems(kwargs["model"], self._without_gradient or set()),
            *_rate_problems(self._losses, args),
        ]
        head = f"after {state.global_step:,} steps the loss of one batch is {loss:.4g}, not below {self._until:g}"
        raise_if_any([Problem("debug=overfit", f": {head}"), *why])


def _row_problems(ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], until: float) -> Iterator[Problem]:
    """Yield what of the rows keeps the loss up: too few trained tokens, and answers that contradict each other."""
    without = [number for number, row in enumerate(labels) if all(label == IGNORED for label in row[1:])]
    if without:
        rows = ", ".join(map(str, without[:10]))
        yield Problem("data", f": rows {rows} train no token; fmstune show-data shows their masks")
    if (floor := loss_floor(ids, labels)) >= until:
        text = f": equal beginnings are followed by different answers, so the loss cannot fall below {floor:.4g}"
        yield Problem("data", f"{text}; remove the rows that contradict each other")


def loss_floor(ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> float:
    """The least mean loss that any model can reach: the entropy of trained tokens after equal beginnings."""
    following: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for row, trained in zip(ids, labels, strict=True):
        for place in range(1, len(row)):
            if trained[place] != IGNORED:
                following[tuple(row[:place])][trained[place]] += 1
    total = sum(sum(counts.values()) for counts in following.values())
    bits = sum(
        -count * math.log(count / sum(counts.values())) for counts in following.values() for count in counts.values()
    )
    return bits / total if total else 0.0


def _weight_problems(model: torch.nn.Module, idle: set[str]) -> Iterator[Problem]:
    """Yield what of the weights keeps the loss up: frozen or idle ones, dropout, and numbers that are too coarse."""
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    total, own = sum(p.numel() for p in model.parameters()), sum(p.numel() for p in trained.values())
    if own < total:
        yield Problem("peft", f": {own:,} of {total:,} parameters are trained; try more of them, or peft=full")
    if idle:
        names = ", ".join(sorted(idle)[:_NAMED]) + (f" and {len(idle) - _NAMED} more" if len(idle) > _NAMED else "")
        yield Problem("peft", f": no gradient ever reached {names}; they are trained and not used")
    noisy = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    if noisy := {name: p for name, p in noisy.items() if p > 0}:
        name, p = next(iter(noisy.items()))
        yield Problem("", f"dropout is on in {len(noisy)} modules (p={p:g} in {name}); set it to 0 for this test")
    coarse = {str(weight.dtype).removeprefix("torch.") for weight in trained.values() if weight.element_size() < 4}
    if coarse:
        text = f": trained weights are {', '.join(sorted(coarse))}, which rounds small updates away"
        yield Problem("model.dtype", f"{text}; set model.dtype=float32")


def _rate_problems(losses: Sequence[float], args: Any) -> Iterator[Problem]:
    """Yield what the course of the loss says of the learning rate."""
    quarter = max(len(losses) // 4, 1)
    before, last = losses[-2 * quarter : -quarter] or losses[:1], losses[-quarter:]
    first, was, now = losses[0], statistics.fmean(before), statistics.fmean(last)
    rate = f"training.learning_rate (now {args.learning_rate:g})"
    if now > first or statistics.pstdev(last) > max(now, 1e-9) / 2:
        yield Problem("", f"the loss jumps or rises ({first:.4g} first, {now:.4g} lately); lower {rate}")
    elif now < 0.98 * was:
        yield Problem("", f"the loss is still falling ({was:.4g}, then {now:.4g}); raise {rate} or training.max_steps")
    else:
        yield Problem("", f"the loss falls no more ({was:.4g}, then {now:.4g}); raise {rate} if it never fell fast")
