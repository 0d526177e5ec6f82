"""The run folder: names of its files, and the status of the run in `summary.json`."""

import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from fmstune.errors import Problem, UserError, first_line, raise_if_any
from fmstune.exit_codes import INTERRUPTING
from fmstune.files import write_aside, write_json
from fmstune.runs import contents, log, processes

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
TRACKING = "tracking.json"
"""The id and the place of each tracker's run, to continue it after a resume."""
LEARNING_RATE = "learning_rate.json"
"""What `training.learning_rate=auto` became, with the probes that chose it."""
SUMMARY = "summary.json"
MODEL = "model"

CHAT = "fmstune.data.formats.chat"
"""`_target_` of the format of turns."""
ASKED_ALIKE = {"template_kwargs": "chat_template_kwargs", "reasoning": "chat_reasoning"}
"""Its settings that decide how a model is asked, each with its key in the model's `tokenizer_config.json`."""

UNBEGUN = (JOB, SOURCES, LOCK_FILE, LEARNING_RATE, log.LOG, processes.FILE)
"""What is in the folder of a run that has not begun; it is removed when the run is refused."""
MARKS = (JOB, PROVENANCE, METRICS, SUMMARY, MODEL)
"""Any of these files makes a folder a run folder."""

_CORRECT = "correct or remove the file"

FINISHED, FAILED, INTERRUPTED, RUNNING, QUEUED = "finished", "failed", "interrupted", "running", "queued"
STOPPED = "stopped"
"""Status of a point that a sweep stopped early, as a loser or by a pruner of Optuna; it keeps a checkpoint."""
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
    """Read `summary.json`; it is empty before the run has written one. Raises UserError for a damaged file."""
    return read_own(folder / SUMMARY)


def read_own(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run folder; empty where there is none. Raises UserError for one that no run writes."""
    found, faults = _read_with_faults(path)
    raise_if_any(Problem(str(path), f": {text}; {_CORRECT}") for text in faults)
    return found


def read_or_set_aside(path: Path) -> dict[str, Any]:
    """Read a JSON file that a run changes; a damaged one is renamed, with a note, and is empty."""
    found, faults = _read_with_faults(path)
    if faults:
        set_aside(path, "; ".join(faults))
    return found


def _read_with_faults(path: Path) -> tuple[dict[str, Any], list[str]]:
    """What the file holds, and what is wrong with it; of a damaged file, nothing is given."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if os.path.lexists(path) else {}
    except (OSError, ValueError, RecursionError) as err:
        return {}, [f"cannot be read ({first_line(err)})"]
    faults = list(contents.faults(path.name, found))
    return ({}, faults) if faults else (dict(found), [])


def summary_faults(folder: Path) -> list[str]:
    """What is wrong with `summary.json`; nothing where it is whole, or not there."""
    return _read_with_faults(folder / SUMMARY)[1]


def set_damaged_aside(folder: Path) -> None:
    """Rename what would keep a run from being resumed in its folder, with a note on each: the run writes it anew."""
    for name in (SUMMARY, PROVENANCE, SOURCES, SAMPLES, TRACKING):
        read_or_set_aside(folder / name)
    for name in (METRICS, LOSS_PLOT, LOCK_FILE):
        if (folder / name).is_dir():
            set_aside(folder / name, "a folder is in its place")
    if os.path.lexists(folder / MODEL) and not (folder / MODEL).is_dir():
        set_aside(folder / MODEL, "a file is in its place")


def set_aside(path: Path, why: str) -> None:
    """Rename a damaged file, so that it can be written anew and nothing is lost; a note says so."""
    names = (path.with_name(f"{path.name}.damaged{number}") for number in ("", *range(2, 1000)))
    aside = next(name for name in names if not os.path.lexists(name))
    path.rename(aside)
    print(f"fmstune: note: {path} was renamed to {aside.name}, and is written anew: {why}", file=sys.stderr, flush=True)


def update_summary(folder: Path, values: Mapping[str, Any]) -> None:
    """Set keys of the summary and keep the others."""
    write_json(folder / SUMMARY, {**read_or_set_aside(folder / SUMMARY), **values})


def has_finished(folder: Path) -> bool:
    """Whether the run in the folder has come to its end; not where its summary is damaged."""
    return _read_with_faults(folder / SUMMARY)[0].get("status") == FINISHED


def was_stopped(folder: Path) -> bool:
    """Whether the run in the folder was stopped early by its sweep."""
    return _read_with_faults(folder / SUMMARY)[0].get("status") == STOPPED


def mark_begun(folder: Path) -> None:
    """Change the status of a queued run to running."""
    if read_or_set_aside(folder / SUMMARY).get("status") == QUEUED:
        update_summary(folder, {"status": RUNNING, "error": None})


def is_preempted(folder: Path) -> bool:
    """Whether the run was preempted after it had saved a checkpoint."""
    summary = read_summary(folder)
    return summary.get("status") == INTERRUPTED and summary["error"]["kind"] == PREEMPTED


def restore_metrics(folder: Path, history: Sequence[Mapping[str, Any]], step: int) -> list[str]:
    """Leave in `metrics.jsonl` the lines up to the step of a checkpoint, as a resumed run takes later steps again.

    Lines that the checkpoint's history has and the file has lost are written anew. Returns a note on each kind.
    """
    path = folder / METRICS
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = text.splitlines(keepends=True)
    read = [_fields(line) for line in lines]
    # the end of the run is logged again; what Trainer logged after it had saved is in no history
    kept = [line for line in read if line is not None and line["step"] <= step and "train_runtime" not in line]
    known = {json.dumps(line, sort_keys=True) for line in kept}
    logged = [metrics_fields(log) for log in history]
    lost = [line for line in logged if json.dumps(line, sort_keys=True) not in known]
    # of a killed process, the last line may be unfinished
    broken = sum(fields is None and line.endswith("\n") for fields, line in zip(read, lines, strict=True))
    if path.is_file() or logged:
        both = sorted([*kept, *lost], key=lambda line: line["step"])
        with write_aside(path) as aside:
            aside.write_text("".join(json.dumps(line) + "\n" for line in both), encoding="utf-8")
    notes = [f"{path}: {broken:,} lines that hold no metrics were removed"] if broken else []
    if lost:
        how = "the history of the checkpoint has restored them"
        notes.append(f"{path}: {len(lost):,} of {len(logged):,} lines up to step {step:,} were lost; {how}")
    return notes


def metrics_fields(log: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a line of `metrics.jsonl`: step and epoch first, then what was logged."""
    line = {"step": log["step"], "epoch": log.get("epoch"), **log}
    # JSON has no NaN; a string keeps what was there
    return {key: str(one) if isinstance(one, float) and not math.isfinite(one) else one for key, one in line.items()}


def _fields(line: str) -> dict[str, Any] | None:
    """Return the fields of a finished line; None for any other text."""
    try:
        found = json.loads(line) if line.endswith("\n") else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("step"), int) else None


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
        for name in UNBEGUN:
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # the folder holds other files
            folder.rmdir()
