"""Ends a training before its last step. Rules look at what was logged, which a checkpoint holds."""

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState

from fmstune.config import conditions
from fmstune.config.conditions import Condition, Logged
from fmstune.config.job import Callbacks, EarlyStopping, Job
from fmstune.errors import UserError
from fmstune.runs import looks
from fmstune.runs.looks import Curve, Look, RowLosses
from fmstune.runs.losers import find_better, rule_of
from fmstune.runs.pruning import is_pruned


class Stopping(TrainerCallback):
    """Stops where a rule of the job says so, on every process alike: all of them log the same values."""

    def __init__(self, callbacks: Callbacks) -> None:
        self._early = callbacks.early_stopping
        self._conditions = [conditions.read_condition(text) for text in conditions.stop_rules(callbacks.stop_when)]
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


class LoserStopping(TrainerCallback):
    """Looks at each held-out row at each evaluation, and stops with a checkpoint where another point is better."""

    def __init__(self, job: Job, measure: Callable[[], RowLosses], rows: str, last: str | None = None) -> None:
        """`last` is a metric of the set that is evaluated last; None where there is one set."""
        self._sweep, self._folder, self._rows, self._measure = job.sweep, Path(str(job.output_dir)), rows, measure
        self._last = last
        self._seen = -1
        self.reason: str | None = None
        """Why the point was stopped; None where it was not."""

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look once a step, after the last of several sets."""
        if self._last is None or self._last in kwargs["metrics"]:
            self._look(args, state, control)

    def _look(self, args: Any, state: TrainerState, control: TrainerControl) -> None:
        """Measure, on every process."""
        if state.global_step == self._seen:
            return
        self._seen = state.global_step
        losses = self._measure()
        told: list[str | None] = [None]
        if state.is_world_process_zero:
            look = looks.make_look(state.global_step, state.max_steps, self._rows, losses)
            looks.write_look(self._folder, look)
            told = [self._find_reason(look, args, state)]
        broadcast_object_list(told)
        self.reason = told[0]
        if self.reason is not None:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Trainer takes the stop for the end of the epoch, where it would evaluate and save once more."""
        if self.reason is not None:
            control.should_save = control.should_evaluate = False

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the end too, where no evaluation was due: the report compares the points there."""
        if state.global_step >= state.max_steps:
            self._look(args, state, control)

    def _find_reason(self, look: Look, args: Any, state: TrainerState) -> str | None:
        curves = looks.read_curves(self._folder.parent)
        reason = self._pruned(look, curves) if look.share < 1 else None
        if reason is None and self._sweep.stop_losers:
            reason = self._lost(look, curves, _evaluations(args, state))
        if reason is not None:
            print(f"stopped after step {state.global_step:,}: {reason}", file=sys.stderr, flush=True)
        return reason

    def _pruned(self, look: Look, curves: Mapping[str, Curve]) -> str | None:
        pruner, fields = self._sweep.pruner, self._sweep.pruner_fields
        if pruner is None or not is_pruned(pruner, fields, self._folder.name, curves):
            return None
        return f"{pruner} of Optuna pruned it, with a held-out loss of {look.loss:.4g}"

    def _lost(self, look: Look, curves: Mapping[str, Curve], evaluations: int) -> str | None:
        rule = rule_of(self._sweep, rivals=(self._sweep.points or 1) - 1, evaluations=evaluations)
        if len(look.losses) < rule.least_rows:
            where = f"{len(look.losses)} held-out rows are too few for sweep.risk={rule.risk:g}"
            text = f"=true: {where} over {rule.rivals + 1} points; hold out at least {rule.least_rows}"
            raise UserError("sweep.stop_losers", text)
        others = {name: curve for name, curve in curves.items() if name != self._folder.name}
        if (better := find_better(rule, curves[self._folder.name], others)) is None:
            return None
        losses = f"{better.loss:.4g} against {better.own:.4g} at {better.share:.0%} of the steps"
        return f"{better.point} has the lower held-out loss ({losses})"


def _evaluations(args: Any, state: TrainerState) -> int:
    """Evaluations of the whole training."""
    if args.eval_strategy == "epoch":
        return math.ceil(float(state.num_train_epochs))
    return int(state.max_steps // max(state.eval_steps, 1))


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
