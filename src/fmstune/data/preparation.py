"""Whether the model and the rows of a job were prepared here before, so that its ranks can start at once.

A hint without torch, and no promise: what has changed meanwhile is found by the ranks, of which one on each machine
tokenises while the others wait.
"""

import dataclasses
import glob
import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fmstune import __version__, cache
from fmstune import files as package_files
from fmstune.config.job import Job
from fmstune.errors import UserError

_OWN_FORMATS = "fmstune."
"""Functions of fmstune; a user's own is code, whose files only its import can tell."""


def mark(job: Job) -> None:
    """Remember that its rows are in the cache and its model can be trained."""
    name = _name(job)
    if name is None:
        return
    with suppress(OSError):  # a cache that others filled, and nobody may write into
        name.parent.mkdir(parents=True, exist_ok=True)
        name.touch()


def is_known(job: Job) -> bool:
    """Whether the same model and rows were prepared before, from files that have not been touched since."""
    name = _name(job)
    return name is not None and name.is_file()


def _name(job: Job) -> Path | None:
    """The file that says so; beside the tokens, to go when they go. None where nobody can tell."""
    data = dataclasses.asdict(job.data)
    parts = {"model": dataclasses.asdict(job.model), "data": data}
    if any(not text.startswith(_OWN_FORMATS) for text in _targets(data)):
        return None
    files = [path for text in _texts(parts) for path in _named(text)]
    files += [path for text in _texts([data["train"], data["eval"]]) for path in _matching(text)]
    facts = {
        **parts,
        "seed": job.seed,
        "files": [_facts(path) for path in files],
        "versions": [__version__, version("transformers"), version("tokenizers")],
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    return cache.place() / "tokenized" / f".prepared-{key}"


def _texts(value: Any) -> Iterator[str]:
    """Every text in the fields: any of them may name a file."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("_target_"), str):
            yield value["_target_"]
        for inner in value.values():
            yield from _targets(inner)


def _named(text: str) -> list[Path]:
    """The file that a text names, or those of the folder; most texts name none."""
    # some are too long for a path, or hold what none can
    with suppress(OSError, ValueError, UserError):
        path = Path(package_files.resolve(text)).expanduser()
        return sorted(path.iterdir()) if path.is_dir() else [path]
    return []


def _matching(text: str) -> list[Path]:
    """The files of a pattern."""
    return [Path(name) for name in sorted(glob.glob(text, recursive=True))] if glob.has_magic(text) else []


def _facts(path: Path) -> tuple[str, int, int] | None:
    """Name, size and time of a file."""
    with suppress(OSError, ValueError):
        found = path.stat()
        return str(path), found.st_size, found.st_mtime_ns
    return None
