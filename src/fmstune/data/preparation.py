"""A mark for jobs whose model and rows were prepared here before, so that their ranks can start at once.

A hint that needs no torch. The ranks find what has changed since: one on each machine tokenises while the others wait.
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
from fmstune.config.job import Job
from fmstune.errors import UserError
from fmstune.files import resolve
from fmstune.flatten import flatten


def mark_prepared(job: Job) -> None:
    """Remember that the job's rows are in the cache and its model can be trained."""
    if (mark := _mark(job)) is not None:
        with suppress(OSError):  # a cache that others filled may be read-only
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


def was_prepared(job: Job) -> bool:
    """Whether the same model and rows were prepared before, from files that have not been touched since."""
    mark = _mark(job)
    return mark is not None and mark.is_file()


def _mark(job: Job) -> Path | None:
    """The mark's file, which is cleared with the tokens; None for a user's own format, whose files are not known."""
    data = dataclasses.asdict(job.data)
    parts = {"model": dataclasses.asdict(job.model), "data": data}
    targets = [value for name, value in flatten(data).items() if name.endswith("_target_")]
    if not all(str(target).startswith("fmstune.") for target in targets):
        return None
    facts = {
        **parts,
        "seed": job.seed,
        "files": [_facts(path) for text in _texts(parts) for path in _named_files(text)],
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


def _named_files(text: str) -> list[Path]:
    """The file that a text names, or the files of a folder or pattern; most texts name none."""
    # a text may be too long for a path or hold characters that no path has
    with suppress(OSError, ValueError, UserError):
        if glob.has_magic(text):
            return sorted(map(Path, glob.glob(text, recursive=True)))
        path = Path(resolve(text)).expanduser()
        return sorted(path.iterdir()) if path.is_dir() else [path]
    return []


def _facts(path: Path) -> tuple[str, int, int] | None:
    """Name, size and time of a file."""
    with suppress(OSError, ValueError):
        found = path.stat()
        return str(path), found.st_size, found.st_mtime_ns
    return None
