"""A run's folder is claimed before it is used, and given back when nothing came of it."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from fmstune.checks.job import folder_problems
from fmstune.config import freeze
from fmstune.config.job import Job
from fmstune.errors import Problem, UserError, raise_if_any
from fmstune.files import write_aside
from fmstune.runs import checkpoints, run_folder
from fmstune.runs.learning_rate import with_chosen_rate
from fmstune.runs.losers import what_stops


@dataclasses.dataclass(frozen=True)
class Claim:
    """A run folder that belongs to this job now."""

    job: Job
    folder: Path
    made: tuple[Path, ...]  # folders that claiming made, deepest first: what `release_folder` may take away
    resumed: bool = False  # the folder held this job already: nothing of it may be taken away


def claim_folder(job: Job) -> Claim:
    """Make the run folder by creating its job.yaml, which one process alone can do; further machines wait for it."""
    given = job.output_dir
    if job.launcher.machine_rank > 0 and given is not None:
        return _joined(job, Path(given))
    for number in range(1, 1000):
        folder = Path(given) if given is not None else _default_folder(job.name, number)
        claimed = dataclasses.replace(with_chosen_rate(job, folder), output_dir=str(folder))
        raise_if_any(folder_problems(folder, job) if given is not None else ())
        if given is not None and (folder / run_folder.JOB).is_file():
            raise_if_any(_trained_problems(folder))
            run_folder.set_damaged_aside(folder)
            # its file says how the run is resumed, with other processes perhaps
            with write_aside(folder / run_folder.JOB) as aside:
                freeze.write(claimed, aside)
            return Claim(claimed, folder, (), resumed=True)
        try:
            made = tuple(path for path in (folder, *folder.parents) if not path.exists())
            folder.mkdir(parents=True, exist_ok=True)
            freeze.write(claimed, folder / run_folder.JOB)
        except FileExistsError:
            if given is not None:
                raise UserError("output_dir", f": {folder} was taken by another run just now; choose another") from None
            continue
        except OSError as err:
            # once: another process may have released the folder above between the two calls
            if isinstance(err, FileNotFoundError) and number == 1:
                continue
            raise UserError("output_dir", f": {folder} cannot be made: {err.strerror}; choose another") from err
        return Claim(claimed, folder, made)
    raise UserError("output_dir", ": no free folder under runs/; set output_dir")


def _trained_problems(folder: Path) -> Iterator[Problem]:
    """Yield a problem where a damaged summary would let a run that had finished be trained from the start."""
    faults = run_folder.summary_faults(folder)
    if faults and (folder / run_folder.MODEL).is_dir() and checkpoints.newest_checkpoint(folder) is None:
        hint = f"{folder} holds a trained model and no checkpoint; remove the file to train again from the start"
        what = f"{folder / run_folder.SUMMARY}: {faults[0]}"
        yield Problem("output_dir", f": {what}, and {hint}, or choose another output_dir")


def _joined(job: Job, folder: Path) -> Claim:
    """The folder that machine 0 has made for this job; raises UserError when it does not come, or is another job's."""
    seconds = job.launcher.rdzv_timeout
    end = time.monotonic() + seconds
    while not (folder / run_folder.JOB).is_file():
        if time.monotonic() > end:
            hint = "start machine 0, and give a folder that all machines share"
            text = f": no job came into {folder} within launcher.rdzv_timeout={seconds} seconds; {hint}"
            raise UserError("output_dir", text)
        time.sleep(0.2)
    raise_if_any(folder_problems(folder, job))
    return Claim(job, folder, (), resumed=True)


def is_finished(claimed: Claim) -> bool:
    """Whether there is nothing left to do in the folder: the run has finished, or lost in a sweep that stops losers."""
    sweep = claimed.job.sweep
    lost = what_stops(sweep) is not None and sweep.points is not None and run_folder.was_stopped(claimed.folder)
    return claimed.resumed and (lost or run_folder.has_finished(claimed.folder))


def free_folder(name: str) -> Path:
    """A default folder that does not exist yet."""
    return next(folder for number in range(1, 1000) if not (folder := _default_folder(name, number)).exists())


def _default_folder(name: str, number: int) -> Path:
    suffix = f"-{number}" if number > 1 else ""
    return Path(run_folder.RUNS) / f"{datetime.now():%Y-%m-%d/%H-%M-%S}-{name}{suffix}"


def release_folder(claimed: Claim) -> None:
    """Remove what `claim_folder` made, unless it holds something else."""
    if claimed.resumed:
        return
    for name in run_folder.UNBEGUN:
        (claimed.folder / name).unlink(missing_ok=True)
    for folder in claimed.made:
        with suppress(OSError):  # not empty, or gone: another process uses it
            folder.rmdir()
