"""Write checkpoints so that each is complete or absent, and find the one to resume from."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fmstune.errors import Problem
from fmstune.runs import run_folder

SAVING = ".saving"
"""Folder in the run folder where a checkpoint is written before it is renamed."""
MARKER = "complete.json"
"""File that is written last into a checkpoint; it holds its CheckpointFacts."""


@dataclass(frozen=True)
class CheckpointFacts:
    """How a checkpoint was made, as far as resuming depends on it."""

    step: int
    processes: int
    rows_per_step: int
    """Rows of an update over all processes, accumulation included: the position in the data is counted in updates."""
    sharded: bool
    """Optimizer and weights are kept as FSDP has them, by parameter names."""


def publish_checkpoint(made: Path, place: Path, facts: CheckpointFacts) -> None:
    """Mark a checkpoint as complete, then rename it, so that a reader sees a complete one or none."""
    state_file = made / "trainer_state.json"
    state = json.loads(state_file.read_text(encoding="utf-8"))
    if best := state.get("best_model_checkpoint"):
        # Trainer wrote the place where checkpoints are made, not where they are kept
        state["best_model_checkpoint"] = str(place.parent / Path(best).name)
        state_file.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (made / MARKER).write_text(json.dumps(asdict(facts)) + "\n", encoding="utf-8")
    run_folder.share_weights(made)
    for path in (*made.rglob("*"), made):
        _to_disk(path)
    if place.exists():
        # of a run that was killed after this step and resumed from an earlier one
        shutil.rmtree(place)
    made.rename(place)
    _to_disk(place.parent)


def _to_disk(path: Path) -> None:
    """Flush to the disk; otherwise a rename may reach the disk before the renamed content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def newest_checkpoint(run: Path) -> Path | None:
    """Return the complete checkpoint with the most steps; None if there is none."""
    made = {path: read_checkpoint_facts(path) for path in run.glob("checkpoint-*")}
    return max(((facts.step, path) for path, facts in made.items() if facts), default=(0, None))[1]


def read_checkpoint_facts(checkpoint: Path) -> CheckpointFacts | None:
    """Read how a checkpoint was made; None if it is not complete."""
    try:
        return CheckpointFacts(**json.loads((checkpoint / MARKER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def checkpoint_mismatches(checkpoint: Path, made: CheckpointFacts, here: CheckpointFacts) -> Iterator[Problem]:
    """Yield why these processes cannot resume from the checkpoint; another number can, with as many rows a step."""
    if made.sharded != here.sharded:
        kind, choice = ("with", "launcher=fsdp") if made.sharded else ("without", "launcher=local or launcher=ddp")
        text = f": {checkpoint} was made {kind} FSDP, and its optimizer state has another form; resume with {choice}"
        yield Problem("launcher", text)
    if made.rows_per_step != here.rows_per_step:
        was = f"{checkpoint} was made with {made.rows_per_step} rows a step on {made.processes} processes"
        now = f"this job has {here.rows_per_step} on {here.processes}, so the position in the data would differ"
        fields = "training.per_device_train_batch_size and training.gradient_accumulation_steps"
        yield Problem("", f"{was}, and {now}; set {fields} for as many rows a step")


def remove_unfinished(run: Path) -> None:
    """Remove the unfinished checkpoint of a killed process."""
    shutil.rmtree(run / SAVING, ignore_errors=True)


def disk_is_full(err: BaseException, run: Path) -> bool:
    """Whether a write failed because the disk is full; torch's writer does not say so, so less than 1 MiB counts."""
    said = getattr(err, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(err)
    return said or shutil.disk_usage(run).free < 2**20


def name_newest(run: Path) -> str:
    """Return the newest checkpoint as the beginning of a sentence; empty if there is none."""
    former = newest_checkpoint(run)
    return f"{former.name} is whole; " if former is not None else ""
