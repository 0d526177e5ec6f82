"""Find the files that a user names, and write files so that a reader sees the old one or the new one, never half."""

import errno
import hashlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from fmstune.errors import Problem, UserError, did_you_mean

PREFIX = "package:"
"""Before the name of a file that ships with fmstune."""
_DEVICES = ("/dev/", "/proc/")
TRL = "trl:"
"""Before the name of a chat template that ships with TRL."""


def resolve(place: str) -> str:
    """The path of what `package:NAME` or `trl:NAME` names; any other place comes back as it is."""
    if place.startswith(TRL):
        return str(_trl_template(place))
    if not place.startswith(PREFIX):
        return place
    name = place.removeprefix(PREFIX).strip("/")
    # a wheel is unpacked on installation, so the assets are plain files
    assets = Path(str(resources.files("fmstune"))) / "assets"
    shipped = sorted(str(path.relative_to(assets)) for path in assets.rglob("*"))
    if name not in shipped:
        hint = did_you_mean(name, shipped) or "; what ships is " + ", ".join(s for s in shipped if "/" not in s)
        raise UserError(place, f": no such file ships with fmstune{hint}")
    return str(assets / name)


def user_path(place: str | Path) -> Path:
    """The path with `~` filled in; one of an unknown user stays as it is, and is then not found (pathlib raises)."""
    return Path(os.path.expanduser(place))


def shown_place(path: Path) -> str:
    """A path as it is shown: from the working folder where it is below that."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def as_value(path: Path) -> str:
    """A path as one value of Hydra's grammar, in quotes."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def refuse_pipe(field: str, path: Path) -> None:
    """Raise UserError for a named pipe: reading waits until somebody writes. A shell's `<(…)` is among the devices."""
    if path.is_fifo() and not str(path).startswith(_DEVICES):
        raise UserError(field, f": {path} is a named pipe; give a file")


def is_model_id(place: str) -> bool:
    """Whether it has the form of a model's id on the hub: OWNER/NAME, or NAME alone."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", place) is not None


def _trl_template(place: str) -> Path:
    known, name = trl_template_files(), place.removeprefix(TRL)
    if name not in known:
        training = ", ".join(one.removesuffix("_training") for one in known if one.endswith("_training"))
        hint = did_you_mean(name, known) or f"; those for training are {training}, each with _training at its end"
        raise UserError(place, f": TRL ships no such template{hint}")
    return known[name]


def trl_template_files() -> dict[str, Path]:
    """The chat templates that TRL ships, by name; they are found without importing it."""
    spec = importlib.util.find_spec("trl")
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    files = (file for folder in folders for file in (Path(folder) / "chat_templates").glob("*.jinja"))
    return {file.stem: file for file in sorted(files)}


def absent(name: str, place: str) -> Iterator[Problem]:
    """Why the file that the field or flag `name` needs is not there; nothing where it is."""
    try:
        path = user_path(resolve(place))
    except UserError as err:
        yield Problem(name, f": {err}")
        return
    if not path.is_file():
        yield Problem(name, f": no file {path}{did_you_mean_beside(path)}")


def did_you_mean_beside(path: Path) -> str:
    """A suggestion from the names in the same folder; what the name itself is, where it is there."""
    if (kind := kind_of_file(path)) is not None:
        return f"; it is a {kind}"
    return did_you_mean(path.name, [near.name for near in path.parent.iterdir()] if path.parent.is_dir() else [])


def kind_of_file(path: Path) -> str | None:
    """What the path leads to: a file, folder, named pipe, device or broken link; None where nothing has the name."""
    if not path.exists():
        return "broken link" if path.is_symlink() else None
    kinds = ((path.is_dir(), "folder"), (path.is_file(), "file"), (path.is_fifo(), "named pipe"))
    return next((kind for holds, kind in kinds if holds), "device")


def real_path(path: str | Path) -> Path:
    """The absolute path with its links followed; a link to itself stays (Path.resolve raises RuntimeError)."""
    return Path(os.path.realpath(path))


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Yield a path in the same folder for a new file or folder; it is renamed to `path`, or removed after an error.

    A link stays one. A device or a pipe, such as /dev/stdout, is yielded itself, as a file would take its place.
    """
    if not path.name:  # `.` or `/`
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if str(path).startswith(_DEVICES) or (path.exists() and not path.is_file() and not path.is_dir()):
        yield path
        return
    path = real_path(path) if path.is_symlink() else path
    if path.is_symlink():  # it leads to itself
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    _remove(aside)  # left by a killed process that had this id
    try:
        yield aside
        aside.replace(path)
    finally:
        _remove(aside)


def _remove(path: Path) -> None:
    with suppress(OSError):  # such as a folder that denies access
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write the value as JSON; a reader sees the old file or the new one."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    with write_aside(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits; the file is read in parts."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if the file does not exist."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def render_template(file: Path, /, **values: Any) -> str:
    """Fill in a Jinja file of the package; values are escaped in HTML, and a missing one is an error."""
    return str(_template(file).render(values))


@cache
def _template(file: Path) -> Any:
    """Compiled once: a sweep in one process, and the tests, fill in the same few files again and again."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(file.parent),
        autoescape=".html" in file.suffixes,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(file.name)


@contextmanager
def explain_write_errors(flag: str, path: Path, kind: str = "file") -> Iterator[None]:
    """Turn an OSError into a UserError that names the flag and its file, and says to choose another of this kind."""
    try:
        yield
    except BrokenPipeError:  # of the terminal, not of the file
        raise
    except OSError as err:
        raise UserError(flag, f": {path} cannot be written ({err.strerror}); choose another {kind}") from err
