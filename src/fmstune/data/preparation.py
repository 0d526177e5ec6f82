"""A mark for jobs whose model and rows were prepared here before, so that their ranks can start at once."""

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
from fmstune.files import resolve, user_path
from fmstune.flatten import flatten


def mark_prepared(job: Job) -> None:
    """Remember that the job's rows are in the cache and its model can be trained."""
    if (mark := _mark(job)) is not None:
        with suppress(OSError):  # a cache that others filled may be read-only
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


def was_prepared(job: Job) -> bool:
    """Whether the same model and rows were prepared from files not touched since; a hint, as the ranks check again."""
    return (mark := _mark(job)) is not None and mark.is_file()


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
        "files": [facts for text in _texts(parts) for facts in _file_facts(text)],
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


def _file_facts(text: str) -> list[tuple[str, int, int]]:
    """Name, size and time of the file that a text names, or of each file in its folder or pattern; most name none."""
    # a text may be too long for a path or hold characters that no path has
    with suppress(OSError, ValueError, UserError):
        path = user_path(resolve(text))
        matching = map(Path, glob.glob(str(path), recursive=True))
        files = [path] if path.is_file() else path.iterdir() if path.is_dir() else matching
        found = [(str(file), file.stat()) for file in sorted(files) if file.exists()]
        return [(name, facts.st_size, facts.st_mtime_ns) for name, facts in found]
    return []
