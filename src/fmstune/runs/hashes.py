"""SHA-256 of files, cached by path, size and time: weights are large and seldom change between two runs."""

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path

from fmstune import cache
from fmstune.files import write_aside

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SMALL = 1_000_000
"""Bytes of a file that is hashed faster than looked up."""


def hash_file(path: Path) -> str:
    """Return the digest as `sha256sum` prints it; raises OSError if the file cannot be read."""
    found = path.stat()
    if _DIGEST.fullmatch(path.resolve().name):
        # a large file in the hub's cache is named by its digest (huggingface_hub: an LFS blob's etag)
        return path.resolve().name
    if found.st_size < _SMALL:
        return _read(path)
    facts = [str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ino]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    # in the folder of the tokens, so that both are cleared together
    known = cache.place() / "tokenized" / f".hash-{name}"
    with suppress(OSError):
        if _DIGEST.fullmatch(digest := known.read_text(encoding="ascii")):
            return digest
    digest = _read(path)
    with suppress(OSError):  # a read-only cache
        known.parent.mkdir(parents=True, exist_ok=True)
        with write_aside(known) as aside:
            aside.write_text(digest, encoding="ascii")
    return digest


def hash_weights(folder: Path) -> dict[str, str]:
    """Return the digests of a model's or an adapter's weight files by name."""
    return {path.name: hash_file(path) for path in sorted(folder.glob("*.safetensors"))}


def _read(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
