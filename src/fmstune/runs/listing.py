"""The runs and sweeps of a folder, a row each: what their folders record, and whether their processes live."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import filelock

from fmstune.config.compare_by import USUAL, figure
from fmstune.config.renamed_fields import with_compare_by
from fmstune.errors import Problem, UserError, collect_problems
from fmstune.runs import processes, run_folder, sweep_folder
from fmstune.runs.report.run_data import is_run, read_job_tree

_TAIL = 1 << 16
"""Bytes at the end of a metrics file in which its last line is looked for."""


class Status(StrEnum):
    """How a run stands: its status in `summary.json`, and how it ended where no word of its own was written."""

    running = "running"
    queued = "queued"
    finished = "finished"
    failed = "failed"
    interrupted = "interrupted"
    """Ended by Ctrl-C or a signal."""
    killed = "killed"
    """Its process was killed, or is gone without a word."""
    stopped = "stopped"
    """It saved a checkpoint and stopped: at a notice, or as a loser of its sweep."""
    damaged = "damaged"
    """Its folder cannot be read."""

    @property
    def has_ended(self) -> bool:
        """Whether no process writes into the folder, nor will by itself."""
        return self not in (Status.running, Status.queued)


@dataclass(frozen=True)
class ListedRun:
    """One run or sweep of a folder."""

    folder: str
    kind: Literal["run", "sweep"]
    status: Status
    compare_by: str
    """Path in `summary.json` of the number that the run is compared by; of a sweep, that of its points."""
    objective: float | None
    """That number; of a sweep, the best of its finished points. None before a run has finished."""
    steps: int
    """Optimizer steps so far; of a sweep, finished points."""
    total_steps: int | None
    """Steps that the plan has; of a sweep, points that have begun. None where it is not known."""
    seconds: float
    """From the start of the last leg to its end, or until now; of a finished run, of all legs."""
    bytes: int
    """On the disk, everything in the folder."""
    begun: float
    """Seconds since 1970 when the last leg began."""
    host: str | None = None
    """The machine that it runs on, if that is another one: whether it lives is not known here."""
    damage: str | None = None
    """Why the folder cannot be read."""


def list_runs(folder: Path) -> list[ListedRun]:
    """The runs and sweeps in the folder and below, newest last; a run folder is listed itself, a sweep by its points.

    Raises UserError if the folder does not exist. A damaged run is listed as `damaged`.
    """
    if not folder.is_dir():
        raise UserError(str(folder), ": no such folder; give a folder of runs, of a sweep or of one run")
    if is_run(folder) or _has_marks(folder):
        return [list_run(folder)]
    inner = _folders_of(folder)
    found = (_list_sweep(one) if _is_sweep(one) else list_run(one) for one in inner)
    return sorted(found, key=lambda row: (row.begun, row.folder))


def run_folders(folder: Path) -> list[Path]:
    """The folders of all runs in the folder and below: of its sweeps, their points; the folder itself, if it is one."""
    if is_run(folder) or _has_marks(folder):
        return [folder]
    return [run for one in _folders_of(folder) for run in (run_folders(one) if _is_sweep(one) else [one])]


def _folders_of(folder: Path) -> Iterator[Path]:
    """The folders of runs and of sweeps below, without those inside of them."""
    with os.scandir(folder) as entries:
        inner = sorted(Path(one.path) for one in entries if one.is_dir() and not one.name.startswith("."))
    for one in inner:
        if is_run(one) or _is_sweep(one) or _has_marks(one):
            yield one
        elif not one.is_symlink() and os.access(one, os.R_OK | os.X_OK):
            yield from _folders_of(one)


def _is_sweep(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (sweep_folder.FILE, sweep_folder.COMMAND))


def _has_marks(folder: Path) -> bool:
    """Whether two files or more say that this is a run folder, though its job is gone."""
    return sum((folder / name).is_file() for name in run_folder.MARKS) > 1


def list_run(folder: Path) -> ListedRun:
    """The row of one run folder."""
    problems: list[Problem] = []
    summary: dict[str, Any] = {}
    if not is_run(folder):
        problems.append(Problem(str(folder), f": no {run_folder.JOB}"))
    job = read_job_tree(folder, problems)
    with collect_problems(problems):
        summary = run_folder.read_summary(folder)
    status, process = run_status(folder, summary), processes.read_process(folder)
    by, objective = _objective(with_compare_by(job)[0], summary)
    begun = _modified(folder / run_folder.JOB) or _modified(folder)
    step, written = _last_step(folder / run_folder.METRICS)
    steps, total = figure(summary, "steps"), figure(summary, "plan.total_steps")
    ended = max(written, _modified(folder / run_folder.SUMMARY), begun) if status.has_ended else time.time()
    named = ("train_seconds", "preparation_seconds", "load_seconds")
    seconds = sum(figure(summary, name) or 0.0 for name in named) if status is Status.finished else ended - begun
    return ListedRun(
        folder=str(folder),
        kind="run",
        status=Status.damaged if problems else status,
        compare_by=by,
        objective=objective if status is Status.finished else None,
        steps=int(steps if status is Status.finished and steps is not None else step),
        total_steps=None if total is None else int(total),
        seconds=round(seconds, 1),
        bytes=bytes_on_disk(folder),
        begun=begun,
        host=process.host if process and not process.is_here and not status.has_ended else None,
        damage="; ".join(map(str, problems)) or None,
    )


def run_status(folder: Path, summary: Mapping[str, Any] | None = None) -> Status:
    """How the run in the folder stands; what its summary says where that is not given."""
    if summary is None:
        summary = {} if run_folder.summary_faults(folder) else run_folder.read_summary(folder)
    recorded, kind = summary.get("status"), (summary.get("error") or {}).get("kind")
    if recorded == run_folder.FINISHED:
        return Status.finished
    process = processes.read_process(folder)
    if process is not None and (process.lives if process.is_here else recorded == run_folder.RUNNING):
        return Status.running
    if recorded in (None, run_folder.RUNNING):
        # of a run without a record, that of an earlier fmstune or of another machine: the lock tells
        return Status.running if process is None and _is_locked(folder) else Status.killed
    if kind in (run_folder.PREEMPTED, "signal") and recorded != run_folder.QUEUED:
        return Status.stopped if kind == run_folder.PREEMPTED else Status.killed
    return Status(recorded) if recorded in [*Status] else Status.failed


def _is_locked(folder: Path) -> bool:
    """Whether a process holds the folder's lock, or has just claimed the folder."""
    if time.time() - _modified(folder / run_folder.JOB) < _CLAIMING:
        return True
    if not (folder / run_folder.LOCK_FILE).is_file():
        return False
    try:
        with filelock.FileLock(folder / run_folder.LOCK_FILE, timeout=0):
            return False
    except (filelock.Timeout, OSError):
        return True


_CLAIMING = 3.0
"""Seconds in which a process records itself after the folder was made."""


def _list_sweep(folder: Path) -> ListedRun:
    """The row of a sweep's folder, from those of its points."""
    points = [list_run(run) for run in run_folders(folder)]
    damage, recorded = None, []
    try:
        recorded = sweep_folder.read_points(folder)
    except UserError as err:
        damage = str(err)
    objective = next((point.metrics[point.compare_by] for point in [sweep_folder.best_point(recorded)] if point), None)
    names = {point.compare_by for point in points} or {point.compare_by for point in recorded}
    done = [point for point in points if point.status is Status.finished]
    # a sweep that stopped its losers has finished
    states = [Status.finished if run_folder.was_stopped(Path(one.folder)) else one.status for one in points]
    refused = sum(not is_run(folder / point.folder) for point in recorded)
    begun = min((point.begun for point in points), default=_modified(folder))
    return ListedRun(
        folder=str(folder),
        kind="sweep",
        status=Status.damaged if damage else sweep_status(folder, states, refused=refused),
        compare_by=names.pop() if len(names) == 1 else "",
        objective=objective,
        steps=len(done),
        total_steps=len(points) + refused,
        seconds=round(sum(point.seconds for point in points), 1),
        bytes=bytes_on_disk(folder),
        begun=begun,
        host=next((point.host for point in points if point.host), None),
        damage=damage,
    )


def sweep_status(folder: Path, points: Sequence[Status], *, refused: int = 0) -> Status:
    """How a sweep stands: running while its process or a point lives, else as the worst of its points."""
    process = processes.read_process(folder)
    if Status.running in points or (process is not None and process.is_here and process.lives):
        return Status.running
    worst = (Status.queued, Status.failed, Status.damaged, Status.killed, Status.interrupted, Status.stopped)
    if refused and Status.queued not in points:
        return Status.failed
    return next((status for status in worst if status in points), Status.finished if points else Status.killed)


def _objective(job: Mapping[str, Any], summary: Mapping[str, Any]) -> tuple[str, float | None]:
    """The name of the number that compares runs, and its value."""
    data, evaluation = _part(job, "data"), _part(job, "evaluation")
    evaluated = evaluation.get("enabled", True) and (data.get("eval") is not None or data.get("eval_fraction"))
    name = str(job.get("compare_by") or USUAL[0 if evaluated else 1])
    return name, figure(summary, name)


def _part(job: Mapping[str, Any], group: str) -> Mapping[str, Any]:
    """A group of a job as its file holds it; empty where the file holds none."""
    found = job.get(group)
    return found if isinstance(found, Mapping) else {}


def _last_step(metrics: Path) -> tuple[int, float]:
    """The step of the last whole line of a metrics file, 0 without one; and when it was written."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - _TAIL, 0))
            lines = file.read().splitlines(keepends=True)
    except OSError:
        return 0, 0.0
    for line in reversed(lines):
        try:
            step = json.loads(line)["step"] if line.endswith(b"\n") else None
        except (ValueError, TypeError, LookupError, RecursionError):
            continue
        if isinstance(step, int):
            return step, _modified(metrics)
    return 0, _modified(metrics)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def bytes_on_disk(folder: Path) -> int:
    """Bytes of all files below; a link counts as itself, and what is removed meanwhile as nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total
