"""`debug=profile`: torch's profiler over some steps; a table in the terminal and a trace in the run folder."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule
from transformers import TrainerCallback, TrainerControl, TrainerState

from fmstune import ranks

PLACE = "profile"
"""Folder of the traces, in the run folder."""


class Profile(TrainerCallback):
    """Leaves out `skip_first` steps, in which caches fill, and profiles the next `active` ones."""

    def __init__(self, skip_first: int = 2, active: int = 3, row_limit: int = 15) -> None:
        if min(skip_first, active - 1, row_limit - 1) < 0:
            raise ValueError("skip_first must be at least 0, active and row_limit at least 1")
        self._skip_first, self._active, self._row_limit = skip_first, active, row_limit
        self._profiler: profile | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the profiler; what it does at each step is its own schedule."""
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        warmup = min(self._skip_first, 1)
        steps = schedule(wait=self._skip_first - warmup, warmup=warmup, active=self._active, repeat=1)
        folder = Path(args.output_dir)

        def show(done: profile) -> None:
            self._show(done, folder)

        self._profiler = profile(
            activities=activities, schedule=steps, on_trace_ready=show, record_shapes=True, profile_memory=True
        )
        self._profiler.start()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._profiler is not None:
            self._profiler.step()

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the profiler, also where the training was too short for its schedule."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None
        if not list((Path(args.output_dir) / PLACE).glob("*.json")):
            needed = self._skip_first + self._active
            text = f"debug=profile needs {needed} steps, and the run took {state.global_step}; nothing was profiled"
            print(f"fmstune: note: {text}", file=sys.stderr, flush=True)

    def _show(self, done: profile, folder: Path) -> None:
        rank = ranks.here()
        place = folder / PLACE / f"rank{rank.number}.json"
        place.parent.mkdir(exist_ok=True)
        done.export_chrome_trace(str(place))
        if rank.is_main:
            order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
            print(done.key_averages().table(sort_by=order, row_limit=self._row_limit, max_name_column_width=40))
            print(f"trace   {place} (open it in https://ui.perfetto.dev or chrome://tracing)", flush=True)
