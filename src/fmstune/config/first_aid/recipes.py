"""The files of groups, shipped and a user's own: what they are for, and a copy of one to change."""

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fmstune.config import groups
from fmstune.errors import Problem, UserError, did_you_mean, raise_if_any


class Recipe(NamedTuple):
    """One file of a group."""

    name: str
    about: str
    """Its first comment."""
    place: Path | None
    """The user's own file; None where it ships with fmstune."""


def list_recipes(group: str, extra: Path | None = None) -> list[Recipe]:
    """The files of the group by name: the shipped ones, then those of the user's folder `extra`."""
    shipped = groups.choices(group)
    own = [name for name in groups.choices(group, extra) if name not in shipped]
    places = [(name, None) for name in shipped] + [(name, _own_file(group, name, extra)) for name in own]
    return [Recipe(name, first_comment(text_of_file(group, name, extra)), place) for name, place in places]


def text_of_file(group: str, name: str, extra: Path | None = None) -> str:
    """The text of a file of a group; a shipped one goes before a user's own of its name, as in a job."""
    if name in groups.choices(group):
        return resources.files("fmstune.conf").joinpath(group, f"{name}.yaml").read_text(encoding="utf-8")
    file = _own_file(group, name, extra)
    assert file is not None
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as err:
        raise UserError(str(file), f": cannot be read ({err}); correct or remove the file") from err


def _own_file(group: str, name: str, extra: Path | None) -> Path | None:
    return extra / group / f"{name}.yaml" if extra is not None else None


def first_comment(text: str) -> str:
    """The first line of comment that tells something; empty where there is none."""
    comments = (line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    return next((line for line in comments if line and not line.startswith(("@package", "yaml-language-server:"))), "")


def copy_choice(word: str, folder: Path, extra: Path | None = None) -> list[Path]:
    """Copy the file of `GROUP=CHOICE` into the folder as `my_CHOICE`, and the user's own files that it chooses.

    Raises UserError for a choice that there is not, and for files that exist; then nothing is written.
    """
    group, _, name = word.partition("=")
    _raise_if_no_choice(word, group, name, extra)
    wanted = {folder / group / f"my_{name}.yaml": text_of_file(group, name, extra)}
    if extra is not None and extra.resolve() != folder.resolve():
        for other, chosen in _needed(group, name, extra, {(group, name)}):
            wanted[folder / other / f"{chosen}.yaml"] = text_of_file(other, chosen, extra)
    there = [path for path in wanted if path.exists()]
    raise_if_any(
        Problem(str(path), ": is there already and is not overwritten; choose another folder") for path in there
    )
    for path, text in wanted.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as err:
            raise UserError(str(path), f": cannot be written ({err.strerror}); choose another folder") from err
    return list(wanted)


def _raise_if_no_choice(word: str, group: str, name: str, extra: Path | None) -> None:
    if not name:
        raise UserError(
            "copy", f"takes GROUP=CHOICE and a folder, such as experiment=complaints_lora my_conf; got {word!r}"
        )
    groups.raise_if_no_group(word, group)
    known = groups.choices(group, extra)
    if name not in known:
        hint = did_you_mean(name, known) or f" ({', '.join(groups.short_list(known))})"
        raise UserError(word, f": no such choice{hint}")


def _needed(group: str, name: str, extra: Path, seen: set[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield group and name of each of the user's own files that this one chooses or starts from."""
    for other, chosen in _chosen(group, text_of_file(group, name, extra)):
        is_own = chosen not in groups.choices(other) if other in groups.GROUPS else True
        if (other, chosen) not in seen and is_own and (extra / other / f"{chosen}.yaml").is_file():
            seen.add((other, chosen))
            yield other, chosen
            yield from _needed(other, chosen, extra, seen)


def _chosen(group: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield group and name of each entry of a file's defaults list."""
    try:
        tree: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        return
    entries = tree.get("defaults") if isinstance(tree, dict) else None
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, str):
            # of the same group, such as default@training, or from the root, such as /model/own
            place = entry.partition("@")[0]
            inside, _, chosen = place.rpartition("/")
            yield (inside.strip("/") or group) if place.startswith("/") or not inside else f"{group}/{inside}", chosen
        elif isinstance(entry, dict):
            for key, value in entry.items():
                named = re.sub(r"^(override|optional)\s+", "", str(key)).partition("@")[0]
                inside = named.strip("/") if named.startswith("/") else f"{group}/{named}"
                yield from ((inside, str(one)) for one in (value if isinstance(value, list) else [value]))
