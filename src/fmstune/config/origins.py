"""Which file or override set each field of a job: Hydra's composition once more, one file after the other."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fmstune.config import defaults, freeze
from fmstune.config.job import Job
from fmstune.config.renamed_fields import TRANSLATED
from fmstune.flatten import leaves

COMMAND_LINE = "command line"
DEFAULT = "default"
"""Nothing sets the field: it has the default of its dataclass."""
_WIDEST = 44
"""Characters of a value that others are aligned to; longer ones push their source to the right."""

Key = tuple[str, ...]


class Origin(NamedTuple):
    """What set a value last."""

    place: str
    written: Any = None
    """The value as it stands there, references not followed."""


Origins = dict[Key, Origin]


def of_composition(config: DictConfig) -> Origins:
    """The origin of each value of the configuration that Hydra has composed in this process."""
    settings = HydraConfig.get()
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    # not resolved: a reference on the command line belongs to the job
    given = _plain(settings.overrides)
    words = [*given["hydra"], *given["task"]]
    composed, origins = compose(loader, str(settings.job.config_name), words)
    if composed != _plain(config):
        raise RuntimeError("the sources do not add up to the composed job; compare with fmstune --cfg job")
    return origins


def compose(loader: ConfigLoaderImpl, name: str, words: Sequence[str]) -> tuple[dict[str, Any], Origins]:
    """Merge what Hydra would, in its order; the result, and who set each of its values last.

    Hydra's own functions find the files, merge each and apply each override, so that packages, `_self_`,
    optional entries and overridden choices mean what they mean there.
    """
    defaults = loader.compute_defaults_list(name, list(words), RunMode.RUN)
    _, files = loader._parse_overrides_and_create_caching_repo(name, list(words))
    merged, origins = OmegaConf.create(), Origins()
    for default in defaults.defaults:
        if _is_hydras(default):
            continue
        part = loader._compose_config_from_defaults_list([default], files)
        part.pop("hydra", None)
        merged.merge_with(part)
        origins = _after(origins, merged, part, _place(default, files.load_config(str(default.config_path))))
    OmegaConf.set_struct(merged, True)
    for override in defaults.config_overrides:
        if override.is_hydra_override():
            continue
        loader._apply_overrides_to_config([override], merged)
        part = OmegaConf.create()
        if not override.is_delete():
            OmegaConf.update(part, override.key_or_group, override.value(), force_add=True)
        origins = _after(origins, merged, part, COMMAND_LINE)
    return _plain(merged), origins


def of_file(path: Path, changes: Mapping[str, Any]) -> Origins:
    """The origins of a frozen job that is read from a file and changed by `field=value` words."""
    merged = freeze.load_file(path)
    origins = _after({}, merged, merged, str(path))
    for field, value in freeze.with_copies(merged, changes).items():
        place = COMMAND_LINE if field in changes else f"{COMMAND_LINE}, with the field that it was copied from"
        part = OmegaConf.create()
        for config in (merged, part):
            OmegaConf.update(config, field, value, force_add=True)
        origins = _after(origins, merged, part, place)
    # a frozen job holds no reference, and text that looks like one is text
    return {key: Origin(origin.place) for key, origin in origins.items()}


def render(tree: Mapping[str, Any], origins: Origins, package: str | None = None) -> str:
    """A line for each value of the job: its name, itself, and where it comes from; of one part where that is named."""
    part = tuple(package.split(".")) if package else ()
    rows = [
        (".".join(key), _text(value), _described(key, value, origins))
        for key, value in leaves(tree)
        if key[: len(part)] == part
    ]
    name = max((len(row[0]) for row in rows), default=0)
    value = min(_WIDEST, max((len(row[1]) for row in rows), default=0))
    return "\n".join(f"{row[0]:<{name}}  {row[1]:<{value}}  {row[2]}" for row in rows)


def recorded(tree: Mapping[str, Any], origins: Origins) -> dict[str, str]:
    """What set each field of the job by its dotted name, those aside that have their defaults."""
    found = {".".join(key): _described(key, value, origins) for key, value in leaves(tree)}
    return {name: source for name, source in found.items() if not source.startswith(DEFAULT)}


def _after(origins: Origins, merged: DictConfig, part: DictConfig, place: str) -> Origins:
    """The origins after `part` was merged: it set what it holds, unless that was `???` or took nothing away."""
    now = dict(leaves(_plain(merged)))
    kept = {key: origin for key, origin in origins.items() if key in now}
    held = ((key, value) for key, value in leaves(_plain(part)) if key)
    return kept | {key: Origin(place, value) for key, value in held if key in now and now[key] == value}


def _is_hydras(default: ResultDefault) -> bool:
    return (default.package or "").partition(".")[0] == "hydra"


def _place(default: ResultDefault, found: ConfigResult | None) -> str:
    """A shipped file by its name in conf/, another by its path, from the working folder where it is below that."""
    assert found is not None
    file = f"{str(default.config_path).removesuffix('.yaml')}.yaml"
    if found.provider == defaults.PROVIDER:
        return DEFAULT
    if found.provider == "main":
        return file
    if not found.path.startswith("file://"):
        return f"{found.path}/{file}"
    path = Path(found.path.removeprefix("file://")) / file
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _described(key: Key, value: Any, origins: Origins) -> str:
    """Where a value comes from, references followed."""
    source = _source(_given(key, origins), origins)
    early = f" as {'.'.join(_given(key, origins))}" if _given(key, origins) != key else ""
    filled = "; train fills it" if key == ("output_dir",) and value is None else ""
    return f"{source}{early}{filled}"


def _given(key: Key, origins: Origins) -> Key:
    """The key under which a field was given: an early name of `training` (the last counts), or one of `data`."""
    if key[:2] == ("data", "format") and ("data", *key[2:]) in origins:
        return ("data", *key[2:])
    if len(key) < 2 or key[0] != "training":
        return key
    given = [k[1] for k in origins if len(k) > 1 and k[0] == "training" and _today(k[1]) == key[1]]
    return (key[0], given[-1], *key[2:]) if given else key


def _today(name: str) -> str:
    return TRANSLATED[name].name if name in TRANSLATED else name


def _source(key: Key, origins: Origins) -> str:
    """The place of one key, or of what it lies in where that was given as a whole."""
    known = next((key[:end] for end in range(len(key), 0, -1) if key[:end] in origins), None)
    if known is None:
        return DEFAULT
    place, written = origins[known]
    if written is None or not re.search(r"(?<!\\)\$\{", text := _text(written)):
        return place
    sources = dict.fromkeys(source for key in _references(text, known) for source in _sources(key, origins))
    if defaults.CALLS.match(str(written)):
        text = defaults.CALLS.sub(r"${\1:…}", str(written))
    return f"{place} → {text}" + (f" ({', '.join(sources)})" if sources else "")


def _references(text: str, key: Key) -> Iterator[Key]:
    """What a value refers to; a name with dots before it is looked up from the value's own place."""
    for dots, name in re.findall(r"\$\{\s*(?:oc\.select:\s*)?(\.*)([A-Za-z_][\w.]*)\s*\}", text):
        yield (*key[: len(key) - len(dots)], *name.split(".")) if dots else tuple(name.split("."))


def _sources(key: Key, origins: Origins) -> list[str]:
    """The sources of a key, which may be a whole group."""
    return [_source(k, origins) for k in origins if k[: len(key)] == key] or [_source(key, origins)]


def _text(value: Any) -> str:
    """The value in one line, as YAML would take it."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    text = text.removesuffix("\n").removesuffix("\n...")
    return json.dumps(value, ensure_ascii=False) if "\n" in text else text


def _plain(config: Any) -> dict[str, Any]:
    tree = OmegaConf.to_container(config, resolve=False)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def show(job: Job, origins: Origins) -> None:
    """Print them, before the problems that the rules find, and before what the runner prints."""
    print(render(freeze.as_tree(job), origins), end="\n\n", flush=True)
