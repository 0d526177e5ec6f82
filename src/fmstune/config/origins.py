"""Which file or override set each field of a job, from the parts that Hydra merged."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import MISSING, OmegaConf

from fmstune.config import defaults, freeze
from fmstune.config.compose import Composed
from fmstune.config.hydra_internals import Part
from fmstune.config.renamed_fields import TRANSLATED, Translation
from fmstune.files import shown_place
from fmstune.flatten import leaves

COMMAND_LINE = "command line"
DEFAULT = "default"
"""Nothing sets the field: it has the default of its dataclass."""

Key = tuple[str, ...]
Origins = dict[Key, "Origin"]


class Origin(NamedTuple):
    """The file or override that set a value last."""

    place: str
    written: Any = None  # the value as it is written, references not followed


def composition_origins(composed: Composed) -> Origins:
    """The origin of each value of a composed configuration."""
    found = _last_origins((_place(part), part.tree) for part in composed.parts)
    written = dict(leaves(OmegaConf.to_container(composed.job, resolve=False)))
    # an override that takes a key away may leave an empty mapping, which no part holds
    origins = {key: found.get(key, Origin(COMMAND_LINE, {})) for key in written}
    if {key: origin.written for key, origin in origins.items()} != written:
        raise RuntimeError("the sources do not add up to the composed job; compare with fmstune --cfg job")
    return origins


def _last_origins(parts: Iterable[tuple[str, Any]]) -> Origins:
    """The place of the last part that holds each value; `???` takes the place of no other, as in OmegaConf."""
    found, missing = Origins(), Origin("", MISSING)
    for place, tree in parts:
        for key, value in leaves(tree):
            if value != MISSING or found.get(key, missing).written == MISSING:
                found[key] = Origin(place, value)
    return found


def frozen_origins(path: Path, changes: Mapping[str, Any]) -> Origins:
    """The origins of a frozen job that is read from a file and changed by `field=value` words."""
    tree = freeze.load_file(path)
    parts = [(str(path), tree)]
    for field, value in freeze.with_copies(tree, changes).items():
        place = COMMAND_LINE if field in changes else f"{COMMAND_LINE}, with the field that it was copied from"
        parts.append((place, freeze.with_value({}, field, value)))
    # a frozen job holds no reference, and text that looks like one is text
    return {key: Origin(origin.place) for key, origin in _last_origins(parts).items()}


def render_origins(tree: Mapping[str, Any], origins: Origins, package: str | None = None) -> str:
    """A line for each value of the job, or of one part: its name, itself, and where it comes from."""
    part = tuple(package.split(".")) if package else ()
    found = [(key, value) for key, value in leaves(tree) if key[: len(part)] == part]
    rows = [(".".join(key), _text(value), _described(key, value, origins)) for key, value in found]
    name, value = (max((len(row[i]) for row in rows), default=0) for i in (0, 1))
    # a longer value pushes its source to the right
    return "\n".join(f"{row[0]:<{name}}  {row[1]:<{min(44, value)}}  {row[2]}" for row in rows)


def recorded_origins(tree: Mapping[str, Any], origins: Origins) -> dict[str, str]:
    """The origin of each field of the job that is not a default, by its dotted name."""
    found = {".".join(key): _described(key, value, origins) for key, value in leaves(tree)}
    return {name: source for name, source in found.items() if not source.startswith(DEFAULT)}


def _place(part: Part) -> str:
    """A shipped file by its name in conf/, another by its path, from the working folder where it is below that."""
    if not part.name or part.provider == defaults.PROVIDER:
        return DEFAULT if part.name else COMMAND_LINE
    file = f"{part.name}.yaml"
    if not part.folder.startswith("file://"):
        return f"{part.folder}/{file}" if part.folder else file
    return shown_place(Path(part.folder.removeprefix("file://")) / file)


def _described(key: Key, value: Any, origins: Origins) -> str:
    """Where a value comes from, references followed."""
    given = _given(key, origins)
    early = f" as {'.'.join(given)}" if given != key else ""
    filled = "; train fills it" if key == ("output_dir",) and value is None else ""
    return f"{_source(given, origins)}{early}{filled}"


def _given(key: Key, origins: Origins) -> Key:
    """The key under which a field was given: an early name of `training` (the last counts), or one of `data`."""
    if key[:2] == ("data", "format") and ("data", *key[2:]) in origins:
        return ("data", *key[2:])
    if len(key) < 2 or key[0] != "training":
        return key
    names = [k[1] for k in origins if len(k) > 1 and k[0] == "training"]
    given = [name for name in names if TRANSLATED.get(name, Translation(name)).name == key[1]]
    return (key[0], given[-1], *key[2:]) if given else key


def _source(key: Key, origins: Origins) -> str:
    """The place of one key, or of what it lies in where that was given as a whole."""
    known = next((key[:end] for end in range(len(key), 0, -1) if key[:end] in origins), None)
    if known is None:
        return DEFAULT
    place, written = origins[known]
    # most hold none, and to write all of them as YAML takes longer than the rest
    if "${" not in str(written) or not re.search(r"(?<!\\)\$\{", text := _text(written)):
        return place
    # a reference may be to a whole group
    keys = [[k for k in origins if k[: len(key)] == key] or [key] for key in _references(text, known)]
    sources = dict.fromkeys(_source(key, origins) for key in chain(*keys))
    if defaults.CALLS.match(str(written)):
        text = defaults.CALLS.sub(r"${\1:…}", str(written))
    return f"{place} → {text}" + (f" ({', '.join(sources)})" if sources else "")


def _references(text: str, key: Key) -> Iterator[Key]:
    """What a value refers to; a name with dots before it is looked up from the value's own place."""
    for dots, name in re.findall(r"\$\{\s*(?:oc\.select:\s*)?(\.*)([A-Za-z_][\w.]*)\s*\}", text):
        yield (*key[: len(key) - len(dots)], *name.split(".")) if dots else tuple(name.split("."))


def _text(value: Any) -> str:
    """The value in one line, as YAML would take it."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    text = text.removesuffix("\n").removesuffix("\n...")
    return json.dumps(value, ensure_ascii=False) if "\n" in text else text
