"""Hydra composes a plain job twice, the first time only to read `hydra.mode` (hydra/_internal/hydra.py, `get_mode`).

Composing is half of what `--cfg job` does after its imports, so here the job composed for the mode is the one that
runs.
"""

from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from omegaconf import DictConfig

_PLAIN = "hydra.mode=RUN"
"""What Hydra appends where nothing says the mode."""


def register() -> None:
    """Replace `Hydra.get_mode`; what it answers and what is composed stay as they are."""
    Hydra.get_mode = _get_mode  # type: ignore[method-assign]


def _get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> RunMode | None:
    loader, words = self.config_loader, list(overrides)
    load = loader.load_configuration
    try:
        config = load(config_name, words, RunMode.RUN)
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
            return config
        return load(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)

    loader.load_configuration = loaded  # type: ignore[method-assign]
    mode: RunMode | None = config.hydra.mode
    return mode
