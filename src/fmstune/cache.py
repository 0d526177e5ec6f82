"""The folder of prepared data: where it is, how large, how it is cleared, and how an entry appears in it."""

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fmstune.files import user_path


def place() -> Path:
    """Where prepared data is kept: FMSTUNE_CACHE, or fmstune's folder in the user's cache."""
    users = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fmstune"
    return user_path(os.environ.get("FMSTUNE_CACHE") or users)


def size() -> int:
    """Bytes that prepared data takes in the cache."""
    return sum(path.stat().st_size for path in (place() / "tokenized").rglob("*") if path.is_file())


def clear() -> int:
    """Remove all prepared data, also what a killed process left behind; the bytes that were freed."""
    freed = size()
    if (place() / "tokenized").exists():
        shutil.rmtree(place() / "tokenized")
    return freed


def publish(made: Path, entry: Path, usable: Callable[[Path], bool]) -> None:
    """Give the entry its name; if another process was faster, its entry is as good, provided that it is usable."""
    for again in (False, True):
        try:
            made.rename(entry)
            return
        except OSError as err:
            if err.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if again or usable(entry):
            return
        with suppress(FileNotFoundError):  # another process may be putting the damaged one away, too
            entry.rename(made.with_name("damaged"))
