"""Ends a training before its last step. Rules look at what was logged, which a checkpoint holds."""

import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from fmstune.config import conditions
from fmstune.config.conditions import Condition, Logged
from fmstune.config.job import Callbacks, EarlyStopping, stop_rules


class Stopping(TrainerCallback):
    """Stops where a rule of the job says so, on every process alike: all of them log the same values."""

    def __init__(self, callbacks: Callbacks) -> None:
        self._early = callbacks.early_stopping
        self._conditions = [conditions.read_condition(text) for text in stop_rules(callbacks)]
        self._logged: dict[str, list[float]] = defaultdict(list)
        self._seen = 0
        self.reason: str | None = None
        """Why the training was stopped; None where it was not."""

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look after each log, the evaluations' included."""
        if self.reason is not None or state.global_step >= state.max_steps:
            return
        # the new ones only: reading all of them again would take longer with each step
        for name, value in (pair for log in state.log_history[self._seen :] for pair in log.items()):
            if isinstance(value, int | float):
                self._logged[name].append(float(value))
        self._seen = len(state.log_history)
        self.reason = find_stop_reason(self._early, self._conditions, self._logged)
        if self.reason is not None:
            control.should_training_stop = True
            if state.is_world_process_zero:
                print(f"stopped after step {state.global_step:,}: {self.reason}", file=sys.stderr, flush=True)

    # a resumed run may have been about to stop
    on_train_begin = on_log


def find_stop_reason(early: EarlyStopping | None, rules: Sequence[Condition], logged: Logged) -> str | None:
    """Return why to stop after these values, or None."""
    if early is not None and (reason := stalled(early, logged.get(early.metric, ()))) is not None:
        return reason
    holds = next((rule for rule in rules if rule.truth(logged)), None)
    return None if holds is None else f"{holds.text} ({conditions.figures(holds, logged)})"


def stalled(rule: EarlyStopping, values: Sequence[float]) -> str | None:
    """Whether none of the last `patience` values is better than the best before them by more than `threshold`."""
    before, last = values[: -rule.patience], values[-rule.patience :]
    if not before:
        return None
    pick, sign, changed = (max, 1, "risen") if rule.greater_is_better else (min, -1, "fallen")
    best, latest = pick(before), pick(last)
    if sign * (latest - best) > rule.threshold:
        return None
    by = f" by more than {rule.threshold:g}" if rule.threshold else ""
    return f"{rule.metric} has not {changed}{by} since it was {best:.6g}, {rule.patience} values ago"
