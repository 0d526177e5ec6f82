"""Which checkpoints of ended runs can be removed, and removing them."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fmstune.errors import Problem, UserError
from fmstune.files import read_json
from fmstune.runs import checkpoints, run_folder
from fmstune.runs.listing import Status, bytes_on_disk, run_folders, run_status

BEST, LAST = "best", "last"


@dataclass(frozen=True)
class Removable:
    """What can be removed of one run."""

    run: Path
    status: Status
    folders: tuple[tuple[Path, int], ...]
    """Checkpoints, and their bytes on the disk."""
    kept: tuple[str, ...]
    """Names of the checkpoints that stay."""
    note: str = ""
    """Why more stays than was asked for."""

    @property
    def bytes(self) -> int:
        """On the disk, of all that can be removed."""
        return sum(size for _, size in self.folders)


def read_keep(keep: str) -> str | int:
    """What `--keep` says: best, last or a number; raises UserError for anything else."""
    if keep in (BEST, LAST):
        return keep
    if keep.isdecimal():
        return int(keep)
    raise UserError("--keep", f"must be best, last or a number of checkpoints, got {keep!r}")


def removable(folder: Path, keep: str | int) -> tuple[list[Removable], list[Path]]:
    """What can be removed in the folder, run by run, and the runs that have not ended, of which nothing can be."""
    found, going_on = [], []
    for run in run_folders(folder):
        status = run_status(run)
        if not status.has_ended:
            going_on.append(run)
        elif (one := _of_run(run, status, keep)).folders:
            found.append(one)
    return found, going_on


def _of_run(run: Path, status: Status, keep: str | int) -> Removable:
    made = [path for path in run.glob("checkpoint-*") if path.is_dir() and not path.is_symlink()]
    read = ((checkpoints.read_checkpoint_facts(path), path) for path in made)
    whole = [path for _, path in sorted((facts.step, path) for facts, path in read if facts is not None)]
    kept, note = set(whole[len(whole) - _count(keep) :] if _count(keep) else ()), ""
    if keep == BEST and whole:
        best = _best(whole)
        note = "" if best else "it records no best checkpoint, so the last one stays"
        kept |= {best} if best else set()
    if status is not Status.finished and whole and whole[-1] not in kept:
        kept.add(whole[-1])
        note = f"it is {status}, so the checkpoint that resumes it stays"
    # a run without a complete checkpoint keeps all it has
    gone = [path for path in made if path not in kept] if whole else []
    unfinished = run / checkpoints.SAVING
    gone += [unfinished] if unfinished.is_dir() else []
    names = tuple(path.name for path in whole if path in kept)
    return Removable(run, status, tuple((path, bytes_on_disk(path)) for path in sorted(gone, key=_step)), names, note)


def _count(keep: str | int) -> int:
    return keep if isinstance(keep, int) else 1


def _step(path: Path) -> tuple[int, str]:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0, path.name


def _best(whole: Sequence[Path]) -> Path | None:
    """The checkpoint that the newest one names as the best so far; None where it names none that is whole."""
    with suppress(OSError, ValueError, TypeError):
        named = read_json(whole[-1] / "trainer_state.json").get("best_model_checkpoint")
        return next((path for path in whole if named and path.name == Path(named).name), None)
    return None


def remove_checkpoints(found: Sequence[Removable]) -> Iterator[Problem]:
    """Remove them; yields a problem for each run that a process has taken up meanwhile, and what cannot be removed."""
    for one in found:
        try:
            with run_folder.lock_folder(one.run):
                if not run_status(one.run).has_ended:
                    yield Problem(str(one.run), ": it was started again, so its checkpoints stay")
                    continue
                for path, _ in one.folders:
                    shutil.rmtree(path)
        except UserError as err:
            yield from err.problems
        except OSError as err:
            yield Problem(str(err.filename or one.run), f": cannot be removed ({err.strerror})")
