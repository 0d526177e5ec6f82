"""What a run shows and writes while it trains: progress on the terminal, metrics.jsonl."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fmstune.config.metrics import Table
from fmstune.runs.report import plots


class MetricsFile(TrainerCallback):
    """One JSON object a logged step, with Trainer's own keys; flushed, so that it can be followed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        line = {"step": state.global_step, "epoch": state.epoch, **(logs or {})}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({key: _finite(value) for key, value in line.items()}) + "\n")


def _finite(value: Any) -> Any:
    """JSON has no NaN; a string keeps what was there."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class LossPlot(TrainerCallback):
    """`loss.png` while the run goes on, by a process of its own: no step waits, and none of our memory is taken."""

    FIRST_AFTER_SECONDS = 30.0
    SHARE = 0.01
    """Of the time at most; the process computes for a second or two beside the training."""

    def __init__(self, metrics: Path, picture: Path) -> None:
        self._metrics, self._picture = metrics, picture
        self._drawing: subprocess.Popen[bytes] | None = None
        self._begun = self._next = 0.0
        self._failed = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._next = time.time() + self.FIRST_AFTER_SECONDS

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or self._failed:
            return
        if self._drawing is not None and self._drawing.poll() is not None:
            self._ended(self._drawing.returncode)
        if self._drawing is None and time.time() >= self._next:
            self._begun = time.time()
            argv = plots.command(self._metrics, self._picture)
            self._drawing = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The picture of the whole run is drawn by the run itself; an older one must not come after it."""
        if self._drawing is not None:
            self._drawing.kill()
            self._drawing.wait()
            plots.aside(self._picture, self._drawing.pid).unlink(missing_ok=True)

    def _ended(self, code: int) -> None:
        """Wait until the drawing was a small part of the time; after a failure there is none any more."""
        self._drawing = None
        if code != 0 or not self._picture.is_file():
            self._failed = True
            print(f"fmstune: note: {self._picture.name} cannot be drawn while training", file=sys.stderr, flush=True)
            return
        # its own time: we may see its end much later
        took = max(self._picture.stat().st_mtime - self._begun, 0.0)
        self._next = self._begun + took / self.SHARE


class Progress(TrainerCallback):
    """Loss, learning rate, tokens/s and time left: a bar on a terminal, else a line now and then."""

    LINE_EVERY_SECONDS = 5.0

    def __init__(self, table: Table) -> None:
        self._table = table
        self._bar: tqdm[Any] | None = None
        self._begun = self._printed = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._begun = self._printed = time.monotonic()
        if sys.stderr.isatty() and state.is_world_process_zero:
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        figures = _figures(logs or {}, self._table)
        if not figures or not state.is_world_process_zero:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(figures)
            return
        now, last = time.monotonic(), state.global_step >= state.max_steps
        if last or "eval" in figures or now - self._printed >= self.LINE_EVERY_SECONDS or state.global_step == 1:
            self._printed = now
            done = state.global_step / max(state.max_steps, 1)
            left = (now - self._begun) / done * (1 - done) if done else 0.0
            print(
                f"step {state.global_step:,}/{state.max_steps:,}  {figures}  {_minutes(left)} left",
                file=sys.stderr,
                flush=True,
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def _figures(logs: dict[str, Any], table: Table) -> str:
    shown = ((metric.progress, logs[name]) for name, metric in table.items() if metric.progress and name in logs)
    return "  ".join(form.format(float(value)) for form, value in shown)


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
