"""Write checkpoints so that each is complete or absent, and find the one to resume from."""

import errno
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from fmstune.errors import Problem, UserError
from fmstune.runs import manifest, run_folder

SAVING = ".saving"
"""Folder in the run folder where a checkpoint is written before it is renamed."""
MARKER = manifest.MARKER
"""File that is written last into a checkpoint; it holds its CheckpointFacts, and checksums of the other files."""


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
    run_folder.share_weights(made)
    manifest.seal_folder(made, asdict(facts))
    if place.exists():
        # of a run that was killed after this step and resumed from an earlier one
        shutil.rmtree(place)
    made.rename(place)
    manifest.flush(place.parent)


def newest_checkpoint(run: Path) -> Path | None:
    """Return the complete checkpoint with the most steps; None if there is none."""
    made = {path: read_checkpoint_facts(path) for path in run.glob("checkpoint-*")}
    return max(((facts.step, path) for path, facts in made.items() if facts), default=(0, None))[1]


def read_checkpoint_facts(checkpoint: Path) -> CheckpointFacts | None:
    """Read how a checkpoint was made; None if it is not complete."""
    try:
        return CheckpointFacts(**manifest.read_facts(checkpoint))
    except (OSError, ValueError, TypeError):
        return None


class Chosen(NamedTuple):
    """The checkpoint that a run is resumed from."""

    checkpoint: Path | None
    """None where the run starts at step 0."""
    notes: tuple[str, ...]
    """Why newer ones are passed over, and what could not be compared."""


def choose_whole(run: Path) -> Chosen:
    """Return the newest checkpoint whose files are as they were saved; raises UserError where all are damaged."""
    notes, damaged = [], []
    for checkpoint in sorted(filter(Path.is_dir, run.glob("checkpoint-*")), key=_order, reverse=True):
        if not (checkpoint / MARKER).exists():
            notes.append(f"{checkpoint} is passed over: it has no {MARKER}, so it is not complete")
            continue
        if manifest.holds_only_model(checkpoint):
            notes.append(f"{checkpoint} is passed over: training.save_only_model left out optimizer and schedule")
            continue
        damage = manifest.find_damage(checkpoint)
        if not damage:
            return Chosen(checkpoint, (*notes, *unverified(checkpoint)))
        notes.append(f"{checkpoint} is damaged and passed over: {_listing(damage)}")
        damaged.append(f"{checkpoint.name}: {_listing(damage)}")
    if damaged:
        text = f": no checkpoint in {run} is whole, so the run cannot be resumed ({'; '.join(damaged)})"
        change = "remove these folders to start again at step 0, or choose another output_dir"
        raise UserError("output_dir", f"{text}; {change}")
    return Chosen(None, tuple(notes))


def check_whole(checkpoint: Path) -> Chosen:
    """Return the checkpoint that a job names; raises UserError where it is damaged."""
    if damage := manifest.find_damage(checkpoint):
        raise UserError("training.resume", f": {checkpoint} is damaged: {_listing(damage)}; give another checkpoint")
    return Chosen(checkpoint, unverified(checkpoint))


def unverified(checkpoint: Path) -> tuple[str, ...]:
    """Return a note where the files of a checkpoint can be opened, but not compared with what was saved."""
    if manifest.has_checksums(checkpoint):
        return ()
    return (f"{checkpoint} has no checksums, so its files were opened and not compared",)


def _order(checkpoint: Path) -> tuple[int, str]:
    """By the step that the checkpoint was saved at; of a damaged one, the step in its name."""
    facts, named = read_checkpoint_facts(checkpoint), checkpoint.name.rpartition("-")[2]
    return facts.step if facts else int(named) if named.isdecimal() else 0, checkpoint.name


def _listing(damage: list[str]) -> str:
    """Return the first things that are wrong, and how many more there are."""
    return ", ".join(damage[:3]) + (f" and {len(damage) - 3} more" if len(damage) > 3 else "")


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
