"""Ends a training before its last step. Rules look at what was logged, which a checkpoint holds, and count nothing."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fmstune.job import Callbacks, EarlyStopping, StopWhen


class Stopping(TrainerCallback):
    """Stops where a rule of the job says so, on every process alike: all of them log the same values."""

    def __init__(self, callbacks: Callbacks) -> None:
        self._callbacks = callbacks
        self.reason: str | None = None
        """Why the training was stopped; None where it was not."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A run that is gone on with may have been about to stop."""
        self._look(state, control)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look after each log, the evaluations' included."""
        self._look(state, control)

    def _look(self, state: TrainerState, control: TrainerControl) -> None:
        if self.reason is not None or state.global_step >= state.max_steps:
            return
        self.reason = why(self._callbacks, state.log_history)
        if self.reason is not None:
            control.should_training_stop = True
            if state.is_world_process_zero:
                print(f"stopped after step {state.global_step:,}: {self.reason}", file=sys.stderr, flush=True)


def why(callbacks: Callbacks, history: Sequence[Mapping[str, Any]]) -> str | None:
    """Why to stop after these logs, oldest first; None where the training goes on."""
    reasons: list[str | None] = []
    if (early := callbacks.early_stopping) is not None:
        reasons.append(stalled(early, _values(early.metric, history)))
    if (limit := callbacks.stop_when) is not None:
        reasons.append(reached(limit, _values(limit.metric, history)))
    return next(filter(None, reasons), None)


def _values(metric: str, history: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(log[metric]) for log in history if metric in log]


def stalled(rule: EarlyStopping, values: Sequence[float]) -> str | None:
    """Whether none of the last `patience` values is better than the best before them by more than `threshold`."""
    before, last = values[: -rule.patience], values[-rule.patience :]
    if not before:
        return None
    best, latest = (max(before), max(last)) if rule.greater_is_better else (min(before), min(last))
    gained = latest - best if rule.greater_is_better else best - latest
    if gained > rule.threshold:
        return None
    changed = "risen" if rule.greater_is_better else "fallen"
    by = f" by more than {rule.threshold:g}" if rule.threshold else ""
    return f"{rule.metric} has not {changed}{by} since it was {best:.6g}, {rule.patience} values ago"


def reached(rule: StopWhen, values: Sequence[float]) -> str | None:
    """Whether the last value is beyond the limit."""
    if values and rule.below is not None and values[-1] < rule.below:
        return f"{rule.metric} is {values[-1]:.6g}, below {rule.below:g}"
    if values and rule.above is not None and values[-1] > rule.above:
        return f"{rule.metric} is {values[-1]:.6g}, above {rule.above:g}"
    return None
