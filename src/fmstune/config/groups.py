"""The groups that a user chooses from, and their choices, read from the YAML files themselves."""

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from fmstune.errors import UserError, did_you_mean

_OF_JOB = ("model", "peft", "data", "training", "launcher", "objective", "evaluation", "tracking", "callbacks")
OPTIONAL = "experiment"
"""The group of which a job need not choose."""
DEBUG = "debug"
"""The group whose files set fields of other groups, to find out what is wrong with a job."""
SEARCH = "search"
"""The group whose files name the fields that a sweep tries; `fmstune.sweeps.search_files` reads them, and not Hydra."""
GROUPS = (*_OF_JOB, OPTIONAL, DEBUG, SEARCH)
"""Groups that a user chooses from."""
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in Python alone, the files of the models take 0.1 s


def raise_if_no_group(place: str, group: str) -> None:
    """Raise UserError where no group has this name; `place` is the verb or the word that names it."""
    if group not in GROUPS:
        hint = did_you_mean(group, GROUPS) or f"; the groups are {', '.join(GROUPS)}"
        raise UserError(place, f": the group {group!r} does not exist{hint}")


def choices(group: str, extra: Path | None = None) -> list[str]:
    """The names of a group's YAML files, those of a user's `--config-dir` included."""
    shipped = resources.files("fmstune.conf").joinpath(group)
    names = {Path(entry.name).stem for entry in shipped.iterdir() if entry.name.endswith(".yaml")}
    if extra is not None:
        names |= {path.stem for path in (extra / group).glob("*.yaml")}
    return sorted(names)


def short_list(names: list[str]) -> list[str]:
    """The names; of more than a few lines hold, a family of several by the word that they begin with, such as llama…"""
    if len(names) <= _MANY:
        return names
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(re.sub("[^a-z].*", "", name), []).append(name)
    return [name for family, members in families.items() for name in ([f"{family}…"] if len(members) > 2 else members)]


_MANY = 20


@cache
def shipped_choices(group: str) -> Mapping[str, Any]:
    """The shipped YAML files of a group by name, as plain data; read once, so they are not to be changed."""
    files = {name: resources.files("fmstune.conf").joinpath(group, f"{name}.yaml") for name in choices(group)}
    return {name: yaml.load(file.read_text(encoding="utf-8"), Loader=_LOADER) for name, file in files.items()}


def group_names(config_dir: str | None = None) -> set[str]:
    """Names that choose a file and not a value: our groups, and those that a user's folder adds."""
    extra = Path(config_dir) if config_dir else None
    own = {path.name for path in extra.iterdir() if path.is_dir()} if extra is not None and extra.is_dir() else set()
    return {*GROUPS, *own}
