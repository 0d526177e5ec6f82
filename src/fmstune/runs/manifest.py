"""The manifest of a checkpoint: size and checksum of each file, written with it and compared before it is loaded."""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fmstune.errors import first_line
from fmstune.files import sha256_of

MARKER = "complete.json"
"""File that is written last into a checkpoint: how it was made, and size and checksum of every other file."""
_FILES, _CHECKSUM = "files", "sha256"
_TENSORS = (".bin", ".distcp", ".pkl", ".pt", ".pth", ".safetensors")
"""Suffixes of files that a library may load when a run is resumed."""
_MODEL = (".jinja", ".json", ".model", ".safetensors", ".txt")
"""Suffixes of files that make a model or a tokenizer."""
_ARCHIVES = (".bin", ".pt", ".pth")
"""The same, of files that torch writes as archives."""
_STATE = {
    # FSDP's is optimizer.bin, or with sharded states a folder
    "optimizer.pt": ("optimizer.pt", "optimizer.bin", "optimizer_[0-9]*"),
    "scheduler.pt": ("scheduler.pt",),
    "rng_state.pth": ("rng_state*.pth",),
}
"""Files without which the libraries resume in silence, as if training began; any of the names will do."""
_NEEDED = {
    "trainer_state.json": ("trainer_state.json",),
    "model.safetensors": ("model*.safetensors", "adapter_model.safetensors"),
    **_STATE,
}


def seal_folder(folder: Path, facts: Mapping[str, Any]) -> None:
    """Flush every file to the disk, and write the manifest last, with these facts.

    A file is hashed while the disk is busy with another.
    """
    files = _files(folder)
    with ThreadPoolExecutor() as pool:
        flushed, digests = pool.map(flush, files.values()), pool.map(sha256_of, files.values())
        listed = {
            name: {"bytes": path.stat().st_size, "sha256": digest}
            for (name, path), digest in zip(files.items(), digests, strict=True)
        }
        list(flushed)
    content = {**facts, _FILES: listed}
    text = json.dumps({**content, _CHECKSUM: _checksum(content)}, indent=1)
    (folder / MARKER).write_text(text + "\n", encoding="utf-8")
    for path in (folder / MARKER, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        flush(path)


def read_facts(folder: Path) -> dict[str, Any]:
    """Return the facts of the manifest; raises OSError where there is none, ValueError where it is damaged."""
    content = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("not a mapping of names to values")
    checksum = content.pop(_CHECKSUM, None)
    # checkpoints of fmstune before the manifest have neither
    if (_FILES in content or checksum is not None) and checksum != _checksum(content):
        raise ValueError("its checksum differs")
    content.pop(_FILES, None)
    return content


def has_checksums(folder: Path) -> bool:
    """Whether the folder has a manifest that lists its files; fmstune wrote none at first, and others write none."""
    return _listed(folder) is not None


def holds_only_model(folder: Path) -> bool:
    """Whether the checkpoint was saved without optimizer, schedule and random state."""
    with suppress(OSError, ValueError, AttributeError):
        return len(_absent(_STATE, _listed(folder) or _files(folder))) == len(_STATE)
    return False


def find_damage(folder: Path) -> list[str]:
    """Return what is wrong with the files of a checkpoint; empty where a run can be resumed from it.

    Sizes come first, so that most damage is found without reading. Without checksums, the files are opened.
    """
    try:
        if (folder / MARKER).exists():
            read_facts(folder)
        if (listed := _listed(folder)) is not None:
            return list(_changed(folder, listed))
        return [f"{name} is missing" for name in _absent(_NEEDED, _files(folder))] or list(_unreadable(folder))
    except (ValueError, TypeError, KeyError, AttributeError) as err:
        return [f"{MARKER} cannot be read ({first_line(err)})"]
    except OSError as err:
        return [f"{Path(err.filename or folder).name} cannot be read ({err.strerror or err})"]


def find_model_damage(folder: Path) -> list[str]:
    """Return what is wrong with the files of the model in a checkpoint; nothing where the folder has no checksums."""
    try:
        listed = _listed(folder) or {}
        own = {name: facts for name, facts in listed.items() if Path(name).suffix in _MODEL}
        return list(_changed(folder, own, planted=False))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []  # whoever resumes from it is told


def _files(folder: Path) -> dict[str, Path]:
    """Every file below the folder but the manifest, by its name there."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    found.pop(MARKER, None)
    return found


def _listed(folder: Path) -> dict[str, dict[str, Any]] | None:
    if not (folder / MARKER).is_file():
        return None
    found: dict[str, dict[str, Any]] | None = json.loads((folder / MARKER).read_text(encoding="utf-8")).get(_FILES)
    return found


def _absent(needed: Mapping[str, tuple[str, ...]], names: Iterable[str]) -> list[str]:
    """Return which of the needed files no name matches; the first part of a name counts."""
    found = [name.partition("/")[0] for name in names]
    return [name for name, patterns in needed.items() if not any(fnmatch(one, p) for one in found for p in patterns)]


def _changed(folder: Path, listed: Mapping[str, Mapping[str, Any]], *, planted: bool = True) -> Iterator[str]:
    """Compare the files with the manifest: names and sizes, and where all of these are right, checksums."""
    found, whole = _files(folder), True
    for name, facts in listed.items():
        if name not in found:
            yield f"{name} is missing"
        elif (size := found[name].stat().st_size) != facts["bytes"]:
            yield f"{name} has {size:,} bytes and not {facts['bytes']:,}"
        else:
            continue
        whole = False
    for name in found.keys() - listed.keys():
        if planted and Path(name).suffix in _TENSORS:
            whole = False
            yield f"{name} was not there when the checkpoint was saved"
    if whole:
        with ThreadPoolExecutor() as pool:
            digests = pool.map(sha256_of, (found[name] for name in listed))
            for (name, facts), digest in zip(listed.items(), digests, strict=True):
                if digest != facts["sha256"]:
                    yield f"{name} has changed since it was saved (its checksum differs)"


def _unreadable(folder: Path) -> Iterator[str]:
    """Open the files that a library would load: headers, and the checksums that torch's own files have."""
    for name, path in _files(folder).items():
        try:
            _open(path)
        except _BROKEN as err:
            yield f"{name} cannot be read ({first_line(err)})"


_BROKEN = (OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged file raises."""


def _open(path: Path) -> None:
    """Read as much of a file as shows damage; raises one of _BROKEN."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open  # only needed for old checkpoints

        try:
            with safe_open(path, framework="np"):
                pass
        except SafetensorError as err:
            raise ValueError(first_line(err)) from err
    elif path.suffix in _ARCHIVES:
        with zipfile.ZipFile(path) as archive:
            if (broken := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {broken} differs")
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def flush(path: Path) -> None:
    """Flush to the disk; otherwise a rename may reach the disk before the renamed content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
