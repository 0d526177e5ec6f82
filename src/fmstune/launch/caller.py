"""A program that has started a command, such as a notebook: what it asked for is told to it in files."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fmstune.errors import Problem
from fmstune.files import write_json

FOLDER = "FMSTUNE_CALLER"
"""Environment variable: the folder in which the program looks for the files, and leaves what it knows of the job."""
JOB, SOURCES, PLAN, PROBLEMS, PLACE = "job.yaml", "sources.json", "plan.json", "problems.json", "folder.json"
"""Files: the job as YAML; what set its fields; its plan; what is wrong with it; the folder of the run or the sweep."""

_folders: list[Path] = []
"""The folder, where a program has named one to this process."""


def listen() -> None:
    """Take note of a program that is to be told; other commands that this process may start have no part in it."""
    if (place := os.environ.pop(FOLDER, None)) is not None:
        _folders[:] = [Path(place)]


def listens() -> bool:
    """Whether a program has started this command."""
    return bool(_folders)


def handed_on() -> dict[str, str]:
    """The environment in which a runner tells the same program."""
    return {FOLDER: str(_folders[0])} if _folders else {}


def tell(name: str, value: Any) -> None:
    """Write one of the files; nothing where no program waits for it."""
    for folder in _folders:
        write_json(folder / name, value)


def tell_yaml(text: str) -> None:
    """Tell the composed job, as YAML."""
    for folder in _folders:
        (folder / JOB).write_text(text, encoding="utf-8")


def tell_problems(problems: Iterable[Problem]) -> bool:
    """Tell what is wrong; False where no program listens, and it must be printed."""
    tell(PROBLEMS, [[problem.field, problem.text] for problem in problems])
    return listens()


def known_job() -> str | None:
    """The job that the program has composed before, as YAML."""
    files = (folder / JOB for folder in _folders)
    return next((file.read_text(encoding="utf-8") for file in files if file.is_file()), None)
