"""Callbacks of every run: metrics.jsonl, progress on the terminal, time of steps, and the stop at a notice."""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState

from fmstune.config.metrics import Table
from fmstune.files import write_aside
from fmstune.runs import run_folder
from fmstune.tables import show_clock

Logs = dict[str, Any] | None


class MetricsFile(TrainerCallback):
    """One JSON object a logged step, with Trainer's own keys; flushed, so that it can be followed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Logs = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        line = run_folder.metrics_fields({"step": state.global_step, "epoch": state.epoch, **(logs or {})})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class StepClock(TrainerCallback):
    """Seconds spent in optimizer steps, gradient accumulation included, and in all of the training."""

    def __init__(self) -> None:
        self.seconds, self.steps, self._begun = 0.0, 0, 0.0
        self._training: float | None = None
        self._trained: float | None = None

    @property
    def train_seconds(self) -> float:
        """Seconds from the start of the training until now, or until its end."""
        until = time.perf_counter() if self._trained is None else self._trained
        return 0.0 if self._training is None else until - self._training

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._training, self._trained = time.perf_counter(), None

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._trained = time.perf_counter()

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._begun = time.perf_counter()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.seconds += time.perf_counter() - self._begun
        self.steps += 1


class AtBegin(TrainerCallback):
    """Do something when the training begins, after Trainer has set its own counts."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._action()


class SaveAndStop(TrainerCallback):
    """Save a checkpoint after the step in which `asked` becomes true, and end training there."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._asked():
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Trainer takes the stop for the end of the epoch, where it would evaluate and save once more."""
        if self._asked():
            control.should_save = control.should_evaluate = False


class LossPlot(TrainerCallback):
    """Draw `loss.png` now and then while the run trains, for at most a hundredth of its time."""

    FIRST_AFTER_SECONDS = 120.0
    SHARE = 0.01

    def __init__(self, metrics: Path, picture: Path) -> None:
        self._metrics, self._picture, self._next = metrics, picture, math.inf

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._next = time.monotonic() + self.FIRST_AFTER_SECONDS

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Logs = None, **kwargs: Any) -> None:
        begun = time.monotonic()
        if begun < self._next:
            return
        try:
            draw_loss(self._metrics, self._picture)
            self._next = time.monotonic() + (time.monotonic() - begun) / self.SHARE
        except OSError as err:
            self._next = math.inf
            print(f"fmstune: note: {self._picture.name} cannot be drawn during training ({err})", file=sys.stderr)


def draw_loss(metrics: Path, picture: Path) -> None:
    """Draw the training and held-out loss by step, from the metrics file, into a PNG file."""
    from fmstune.runs.report import charts  # matplotlib takes a second to import

    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    with write_aside(picture) as aside:
        charts.save_curves(charts.loss_lines(lines), charts.LOSS, aside)


class Progress(TrainerCallback):
    """Loss, learning rate, tokens/s and time left: a bar on a terminal, else a line now and then."""

    LINE_EVERY_SECONDS = 5.0

    def __init__(self, table: Table) -> None:
        self._table = table
        self._bar: tqdm[Any] | None = None
        self._begun = self._printed = 0.0
        self._first = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._begun = self._printed = time.monotonic()
        self._first = state.global_step
        if sys.stderr.isatty() and state.is_world_process_zero:
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Logs = None, **kwargs: Any) -> None:
        logs = logs or {}
        forms = {name: metric.progress for name, metric in self._table.items() if metric.progress and name in logs}
        figures = "  ".join(form.format(float(logs[name])) for name, form in forms.items())
        if not figures or not state.is_world_process_zero:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(figures)
            return
        now, last = time.monotonic(), state.global_step >= state.max_steps
        if last or "eval" in figures or now - self._printed >= self.LINE_EVERY_SECONDS or state.global_step == 1:
            self._printed = now
            done = state.global_step - self._first
            left = (now - self._begun) / done * (state.max_steps - state.global_step) if done else 0.0
            line = f"step {state.global_step:,}/{state.max_steps:,}  {figures}  {show_clock(left)} left"
            print(line, file=sys.stderr, flush=True)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
