"""Secrets and paths of this machine are left out of values and texts, and each that was left out is listed."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fmstune.errors import without_secrets

LEFT_OUT: Mapping[str, Any] = {
    "output_dir": None,
    "tracking": {},
    "training.resume": None,
    "launcher.slurm": None,
    "launcher.config_file": None,
    "launcher.machine_rank": 0,
    "launcher.main_process_ip": None,
    "launcher.main_process_port": None,
}
"""Fields of a job that are about this machine alone, each with the value that it has in what is shared."""

_ANYWHERE = re.compile(r"(?:~[\w.-]*|/[^/]+)(?:/[^/]+)+/?|file:/+.+|sqlite:/{4}.+", re.DOTALL)
_WINDOWS = re.compile(r"[A-Za-z]:\\.+")
_INSIDE = re.compile(r"""(?<![^\s"'=,:(\[`])(?:~[\w.-]*|/[^\s"'=,:)\]`/]+)(?:/[^\s"'=,:)\]`/]+)+/?""")
"""Within a command or a text; what follows `://` is none."""
_SECRET = re.compile(r"(?i)(?:.*_)?(?:api_?key|password|passwd|secret)|(?:(?:hub|access|auth|api|hf)_)?token")
"""Names of fields whose value is a secret; `eos_token` is none."""
_FORMAT = ("data.format.", "model.special_tokens.")
"""Fields whose texts may begin with a slash and be no path."""


class Change(NamedTuple):
    """One value that is not shared as it is here."""

    file: str
    field: str
    """Dotted; empty for a text."""
    what: str


class Redactor:
    """Shared values, and a record of all that was left out of them."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self._known: dict[str, str] = {}

    def job(self, tree: Mapping[str, Any], file: str, base: str | None) -> dict[str, Any]:
        """The tree of a job without what is about this machine; `base` takes the place of a folder in `model.path`."""
        shared: dict[str, Any] = dict(tree)
        for field, value in LEFT_OUT.items():
            group, _, name = field.rpartition(".")
            inside = shared.get(group) if group else shared
            if isinstance(inside, Mapping) and name in inside and inside[name] != value:
                self._remember(inside[name])
                shared = {**shared, group: {**inside, name: value}} if group else {**shared, name: value}
                self._add(file, field, "left out: it is about this machine")
        model = shared.get("model")
        if base is not None and isinstance(model, Mapping) and model.get("path") != base:
            shared["model"] = {**model, "path": base}
            self._add(file, "model.path", f"{model.get('path')} → {base}")
        return dict(self.tree(shared, file))

    def tree(self, value: Any, file: str, field: str = "") -> Any:
        """The value of a YAML or JSON file without secrets and paths."""
        if isinstance(value, Mapping):
            names = self._names(value, file, field)
            return {
                names[key]: self._named(one, file, f"{field}.{key}" if field else str(key))
                for key, one in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.tree(one, file, f"{field}[{number}]") for number, one in enumerate(value)]
        return self._value(value, file, field) if isinstance(value, str) else value

    def command(self, text: str, file: str, field: str) -> str:
        """The text of a command without secrets, and with the names of files in place of their paths."""
        shared = _INSIDE.sub(lambda found: short(found[0]), without_secrets(text))
        if shared != text:
            self._known[text] = shared
            self._add(file, field, "secrets and paths of this machine are left out of the command")
        return shared

    def text(self, text: str, file: str) -> str:
        """A text, such as a model card, without secrets, and without paths that are of this machine or in the job."""
        shared = text
        for known in sorted(self._known, key=len, reverse=True):
            # no part of a longer word or path
            name = self._known[known].replace("\\", r"\\")
            shared = re.sub(rf"(?<![\w/]){re.escape(known)}(?![\w/])", name, shared)
        shared = _INSIDE.sub(lambda found: short(found[0]) if _is_of_here(found[0]) else found[0], shared)
        shared = without_secrets(shared)
        if shared != text:
            self._add(file, "", "secrets and paths of this machine are left out of the text")
        return shared

    def _named(self, value: Any, file: str, field: str) -> Any:
        name = re.sub(r"\[\d+\]$", "", field).rpartition(".")[2]
        if isinstance(value, str) and value and _SECRET.fullmatch(name):
            self._add(file, field, "left out: a secret")
            return None
        return self.tree(value, file, field)

    def _value(self, value: str, file: str, field: str) -> str:
        if is_path(value) and not (field.startswith(_FORMAT) and not _exists(value)):
            shared = short(value)
            self._known[value] = shared
            self._add(file, field, f"{without_secrets(value)} → {shared}")
            return shared
        shared = without_secrets(value)
        if shared != value:
            self._add(file, field, "left out: a secret")
        return shared

    def _names(self, tree: Mapping[Any, Any], file: str, field: str) -> dict[Any, Any]:
        """The names in the mapping, of paths the last parts that are enough to tell them apart."""
        paths = [key for key in tree if isinstance(key, str) and is_path(key)]
        parts = 1
        while len({short(path, parts) for path in paths}) < len(paths):
            parts += 1
        if paths:
            self._add(file, field, f"{len(paths)} paths → names of files")
        return {key: short(key, parts) if key in paths else key for key in tree}

    def _remember(self, value: Any) -> None:
        """Texts in what is left out whole, which a card may name too."""
        for one in value.values() if isinstance(value, Mapping) else [value]:
            if isinstance(one, Mapping):
                self._remember(one)
            elif isinstance(one, str) and is_path(one):
                self._known[one] = short(one)

    def _add(self, file: str, field: str, what: str) -> None:
        self.changes.append(Change(file, field, what))


def is_path(value: str) -> bool:
    """Whether the whole text is a path that means nothing on another machine."""
    return bool(_ANYWHERE.fullmatch(value) or _WINDOWS.fullmatch(value)) and "\n" not in value


def short(path: str, parts: int = 1) -> str:
    """The last part of a path; of the model of a run, the run's as well."""
    names = [name for name in re.split(r"[/\\]+", path) if name]
    return "/".join(names[-max(parts, 2 if names[-1] == "model" else 1) :])


def _is_of_here(path: str) -> bool:
    """Whether the path is in the user's home, or begins with a folder of this machine."""
    return path.startswith("~") or Path("/", *Path(path).parts[1:2]).is_dir()


def _exists(value: str) -> bool:
    try:
        return Path(value).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long for a name, or the home of nobody
        return False


def change_lines(changes: Iterable[Change]) -> list[str]:
    """One line for each change, as a list shows it."""
    return [f"{change.file}{f'  {change.field}' if change.field else ''}: {change.what}" for change in changes]
