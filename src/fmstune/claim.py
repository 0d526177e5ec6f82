"""A run's folder is claimed before it is used, and given back when nothing came of it."""

import dataclasses
from datetime import datetime
from pathlib import Path

from fmstune import freeze, rules, run_folder
from fmstune.errors import UserError, raise_if_any
from fmstune.job import Job


def claim(job: Job) -> tuple[Job, Path]:
    """Make the run folder by creating its job.yaml, which only one process can do."""
    given = job.output_dir
    for number in range(1, 1000):
        folder = Path(given) if given is not None else _default_folder(job.name, number)
        claimed = dataclasses.replace(job, output_dir=str(folder))
        raise_if_any(rules.folder_problems(folder) if given is not None else ())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            freeze.write(claimed, folder / run_folder.JOB)
        except FileExistsError:
            if given is not None:
                raise UserError(f"output_dir: {folder} was taken by another run just now; choose another") from None
            continue
        except OSError as err:
            raise UserError(f"output_dir: {folder} cannot be made: {err.strerror}; choose another") from err
        return claimed, folder
    raise UserError("output_dir: no free folder under runs/; set output_dir")


def _default_folder(name: str, number: int) -> Path:
    now = datetime.now()
    suffix = f"-{number}" if number > 1 else ""
    return Path("runs") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}-{name}{suffix}"


def release(folder: Path) -> None:
    """Take back what `_claim` made, and the folders above it that this leaves empty."""
    for name in (run_folder.JOB, run_folder.LOCK_FILE):
        (folder / name).unlink(missing_ok=True)
    for empty in (folder, *folder.parents):
        if empty == Path(".") or not empty.is_dir() or any(empty.iterdir()):
            return
        empty.rmdir()


def release_sweep(folder: Path) -> None:
    """Take back Hydra's note on a sweep of which no point left anything."""
    note = folder / "multirun.yaml"
    if note.is_file() and list(folder.iterdir()) == [note]:
        note.unlink()
        release(folder)
