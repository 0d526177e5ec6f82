"""The run folder: names of its files, and the status of the run in `summary.json`."""

import json
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from fmstune.errors import UserError
from fmstune.exit_codes import INTERRUPTING
from fmstune.files import read_json, write_aside, write_json

RUNS = "runs"
"""Parent of run folders without an output_dir."""
JOB = "job.yaml"
LOCK_FILE = ".lock"
"""Held by the runner while it writes into the folder."""
PROVENANCE = "lock.json"
METRICS = "metrics.jsonl"
LOSS_PLOT = "loss.png"
SOURCES = "sources.json"
"""Words of the command, and the source of each field of the job."""
SAMPLES = "samples.json"
"""The first held-out rows, with the answers of base and tuned model."""
SUMMARY = "summary.json"
MODEL = "model"

MARKS = (JOB, PROVENANCE, METRICS, SUMMARY, MODEL)
"""Any of these files makes a folder a run folder."""

FINISHED, FAILED, INTERRUPTED, RUNNING, QUEUED = "finished", "failed", "interrupted", "running", "queued"
PREEMPTED = "preempted"
"""Kind of an interruption after which a checkpoint was saved."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into the folder; raises UserError if another process does."""
    import filelock  # training and submitting alone need it

    with ExitStack() as held:
        try:
            held.enter_context(filelock.FileLock(folder / LOCK_FILE, timeout=0))
        except filelock.Timeout:
            text = f"{folder}: another process runs this job; wait for it, or choose another output_dir"
            raise UserError("", text) from None
        yield


def share_weights(folder: Path) -> None:
    """Give weight files the folder's read permissions: safetensors 0.8 lets only the owner read them."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*.safetensors"):
        path.chmod(mode)


def read_summary(folder: Path) -> dict[str, Any]:
    """Read `summary.json`; it is empty before the run has written one."""
    return read_json(folder / SUMMARY)


def update_summary(folder: Path, values: Mapping[str, Any]) -> None:
    """Set keys of the summary and keep the others."""
    write_json(folder / SUMMARY, {**read_summary(folder), **values})


def mark_begun(folder: Path) -> None:
    """Change the status of a queued run to running."""
    if read_summary(folder).get("status") == QUEUED:
        update_summary(folder, {"status": RUNNING, "error": None})


def is_preempted(folder: Path) -> bool:
    """Whether the run was preempted after it had saved a checkpoint."""
    summary = read_summary(folder)
    return summary.get("status") == INTERRUPTED and summary["error"]["kind"] == PREEMPTED


def drop_metrics_after(folder: Path, step: int) -> None:
    """Remove the lines of later steps, which a resumed run takes again."""
    path = folder / METRICS
    if not path.is_file():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if _until(line, step)]
    with write_aside(path) as aside:
        aside.write_text("".join(kept), encoding="utf-8")


def _until(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError):
        return False  # an unfinished line of a killed process


def mark_ended(folder: Path, status: str, kind: str, message: str) -> None:
    """Record how a run ended early, and remove an unfinished model."""
    update_summary(folder, {"status": status, "error": {"kind": kind, "message": message}})
    for unfinished in folder.glob(f".{MODEL}.*"):
        shutil.rmtree(unfinished, ignore_errors=True)


def mark_killed(folder: Path, number: int) -> None:
    """Record the signal that killed the runner."""
    status = INTERRUPTED if number in INTERRUPTING else FAILED
    mark_ended(folder, status, "signal", f"the runner died of {signal.Signals(number).name}")


def mark_orphaned(folder: Path) -> None:
    """Record that the parent of a run has died; remove the files of a run that has not begun."""
    status = read_summary(folder).get("status")
    if status == RUNNING:
        mark_ended(folder, INTERRUPTED, "interrupted", "the process that started this run has died")
    elif status is None:
        for name in (JOB, SOURCES, LOCK_FILE):
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # the folder holds other files
            folder.rmdir()
