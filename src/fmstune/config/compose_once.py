"""Hydra composes a plain job twice, the first time only to read `hydra.mode` (hydra/_internal/hydra.py, `get_mode`).

Composing is half of what `--cfg job` does after its imports, so here the job composed for the mode is the one that
runs. And each file of a package, as those in conf/ are, is parsed once in a process: a run reads them for the job, and
twice more for the source of each field.
"""

import pickle
from collections.abc import Callable
from typing import Any

from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig

_PLAIN = "hydra.mode=RUN"
"""What Hydra appends where nothing says the mode."""


def register() -> None:
    """Replace `Hydra.get_mode` and the reading of a package's file; what they give and what is composed stay."""
    upstream: Any = Hydra
    upstream.get_mode = _get_mode
    # makes the class of the files anew, and then only once
    Plugins.instance()
    source: Any = SourcesRegistry.instance().resolve("pkg")
    if source.load_config is not _load_config:
        _parse.append(source.load_config)
        source.load_config = _load_config


def _get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> RunMode | None:
    loader: Any = self.config_loader
    words = list(overrides)
    load = loader.load_configuration
    try:
        composed: DictConfig = load(config_name, words, RunMode.RUN)
    except Exception:
        # several values for one field, or what the run will compose anew and say
        return None

    def loaded(
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        if run_mode is RunMode.RUN and overrides in (words, [*words, _PLAIN]):
            return composed
        other: DictConfig = load(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        return other

    loader.load_configuration = loaded
    mode: RunMode | None = composed.hydra.mode
    return mode


_parse: list[Callable[[ConfigSource, str], ConfigResult]] = []
"""Hydra's own method, last."""

_files: dict[tuple[str, str, str], bytes] = {}


def _load_config(self: ConfigSource, config_path: str) -> ConfigResult:
    """A copy, as Hydra takes the defaults list out of what it gets."""
    key = (self.provider, self.path, config_path)
    if key not in _files:
        # parsing takes thirty times as long as reading this, and copy.deepcopy eight times
        _files[key] = pickle.dumps(_parse[-1](self, config_path))
    found = pickle.loads(_files[key])
    assert isinstance(found, ConfigResult)
    return found
