"""Trackers, each in a thread of its own: an error or a delay of one neither ends nor slows the training."""

import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from fmstune.config.job import Job
from fmstune.config.metrics import Table, metrics_of
from fmstune.errors import Preempted, without_secrets
from fmstune.files import read_json, write_json
from fmstune.launch import parent
from fmstune.runs import run_folder
from fmstune.runs.report import terminal_summary
from fmstune.training.named_classes import make_trackers
from fmstune.training.trackers.base import Outcome, Subject, Tracker, is_trackable

LONGEST_WAIT = 30.0
"""Seconds that a run waits, when it begins and when it ends, for a tracker that does not answer."""
MOST_WAITING = 10_000
"""Calls that may wait for a tracker that is slower than the training."""
_NOT_TRACKED = ("plan", "tracking", "error", "status", "name")
"""Parts of the summary that are not results."""


class Guarded:
    """A tracker whose calls are made one after the other in a thread; after the first error, no more."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name, self.tracker = name, tracker
        self.run: str | None = None
        self.error: str | None = None
        """Why it is off, None where it works."""
        self.begun = threading.Event()
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def do(self, call: Callable[[], None]) -> None:
        """Queue a call behind the earlier ones; do nothing where the tracker is off."""
        if self.error is None and self._calls.qsize() > MOST_WAITING:
            self._turn_off(f"{MOST_WAITING:,} calls are waiting for it")
        if self.error is None:
            self._calls.put(call)

    def end(self) -> None:
        """Wait until all is done, for `LONGEST_WAIT` seconds at most."""
        self._calls.put(None)
        self._thread.join(LONGEST_WAIT)
        if self._thread.is_alive() and self.error is None:
            self._turn_off(f"it has not answered for {LONGEST_WAIT:g} seconds")

    def _work(self) -> None:
        while self.error is None and (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as err:  # a tracker can fail in any way, and none is worth the training
                self._turn_off(f"{type(err).__name__}: {err}")

    def _turn_off(self, why: str) -> None:
        # a client may show the address that it was given, password and all
        self.error = why = without_secrets(why)
        parent.leave_at_once()
        text = (
            f"fmstune: note: tracking.{self.name} failed and is off for the rest of this run "
            f"({run_folder.METRICS} is unaffected): {why}"
        )
        print(text, file=sys.stderr, flush=True)


class Trackers(TrainerCallback):
    """All trackers of a run; none where the job asks for none, or another process writes."""

    def __init__(self, given: Mapping[str, Tracker], folder: Path, table: Table) -> None:
        self._folder, self._table = folder, table
        self._lock = threading.Lock()
        self._all = [Guarded(name, tracker) for name, tracker in given.items()]
        former = run_folder.read_or_set_aside(folder / run_folder.TRACKING)
        for one in self._all:
            one.do(partial(self._start, one, former.get(one.name, {})))
        for one in self._all:
            # importing it must not count as time and memory of the training
            one.begun.wait(LONGEST_WAIT)

    def _start(self, one: Guarded, known: Mapping[str, str]) -> None:
        try:
            one.run = one.tracker.start(known.get("run") if known.get("place") == one.tracker.place else None)
        finally:
            one.begun.set()
        with self._lock:
            entry = {"run": one.run, "place": one.tracker.place}
            known = run_folder.read_or_set_aside(self._folder / run_folder.TRACKING)
            write_json(self._folder / run_folder.TRACKING, {**known, one.name: entry})

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """What `metrics.jsonl` gets, under the same names."""
        self.log(logs or {}, state.global_step, state.epoch or 0.0)

    def log(self, values: Mapping[str, Any], step: int, epoch: float = 0.0) -> None:
        """Send the numbers to every tracker."""
        metrics = {key: float(value) for key, value in values.items() if key != "epoch" and is_trackable(value)}
        for one in self._all:
            one.do(partial(one.tracker.log, metrics, step, epoch))

    def close(self, status: str) -> None:
        """Send the results, and note in the summary how each tracker did."""
        summary = run_folder.read_summary(self._folder)
        tuned = summary.get("tuned")
        lines = terminal_summary.comparison_lines(summary.get("base"), tuned, self._table) if tuned else ()
        kept = {key: value for key, value in summary.items() if key not in _NOT_TRACKED}
        outcome = Outcome(status, {"status": status, **kept}, "\n".join(lines))
        for one in self._all:
            one.do(partial(one.tracker.close, outcome))
        for one in self._all:
            one.end()
        if self._all:
            found = {one.name: {"run": one.run, "place": one.tracker.place, "error": one.error} for one in self._all}
            run_folder.update_summary(self._folder, {"tracking": found})


@contextmanager
def tracked(job: Job, folder: Path, step: int, *, writes: bool) -> Iterator[Trackers]:
    """The trackers of a run from `step` to its end, however it ends; one process `writes`."""
    given: dict[str, Tracker] = {}
    if writes:
        given = make_trackers(job, Subject(job, folder, read_json(folder / run_folder.PROVENANCE), step))
    every = Trackers(given, folder, metrics_of(job))
    try:
        yield every
    except BaseException as err:
        every.close(run_folder.INTERRUPTED if isinstance(err, KeyboardInterrupt | Preempted) else run_folder.FAILED)
        raise
    every.close(run_folder.FINISHED)
