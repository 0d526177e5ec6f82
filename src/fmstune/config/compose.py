"""Overrides → the composed job, by Hydra, once."""

import copy
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode
from hydra.version import setbase
from omegaconf import DictConfig, OmegaConf

from fmstune.config import defaults
from fmstune.config.choices import Auto
from fmstune.config.composing_errors import no_such_choice
from fmstune.config.flags import words_of
from fmstune.config.groups import GROUPS, choices, group_names
from fmstune.config.hydra_internals import Callbacks, Hydra, Part, RecordingLoader
from fmstune.config.overrides import allow_new_fields, text_of, unknown_choices
from fmstune.config.renamed_fields import USUAL_RATE
from fmstune.config.requests import NO_HYDRA_FLAGS, HydraFlags
from fmstune.errors import Problem, UserError, raise_if_any
from fmstune.exit_codes import USER_ERROR

_CONFIG_PATH, _CONFIG_NAME, _HYDRA = "pkg://fmstune.conf", "job", "1.3"
_MISSING = "<must be given>"


@dataclass(frozen=True)
class Composed:
    """A composed configuration, and the files and overrides that made it."""

    job: DictConfig
    settings: Any  # Hydra's own: the node `hydra`
    parts: tuple[Part, ...]

    @property
    def is_point(self) -> bool:
        """Whether Hydra composed one point of a sweep."""
        return bool(self.settings.mode is RunMode.MULTIRUN)

    @property
    def words(self) -> list[str]:
        """The overrides of the job, or of this point, as they were given."""
        words: Any = OmegaConf.to_container(self.settings.overrides.task, resolve=False)
        return [str(word).removeprefix("++") for word in words]

    def tree(self) -> dict[str, Any]:
        """The job as plain data."""
        return plain_tree(_with_usual_rate(self.job, self.parts))


def _with_usual_rate(config: DictConfig, parts: Sequence[Part]) -> DictConfig:
    """Beside `training.learning_rate=auto` the rate that the job would have without it, around which probes look."""
    written: Any = OmegaConf.to_container(config, resolve=False)
    training = written.get("training")
    if not isinstance(training, dict) or training.get("learning_rate") != Auto.auto.value:
        return config
    groups = [group for part in parts if isinstance(group := part.tree.get("training"), dict)]
    rates = [rate for group in groups if (rate := group.get("learning_rate")) not in (None, Auto.auto.value)]
    if not rates or USUAL_RATE in training:
        return config
    config = copy.deepcopy(config)
    OmegaConf.update(config, f"training.{USUAL_RATE}", rates[-1], force_add=True)
    return config


def plain_tree(config: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain data, references resolved, missing values left as `???`."""
    if _lacks_value(OmegaConf.to_container(config, resolve=False)):
        # text in their place, so that what refers to them is resolved too
        config = copy.deepcopy(config)
        for key in OmegaConf.missing_keys(config):
            OmegaConf.update(config, str(key), _MISSING)
    tree: Any = OmegaConf.to_container(config, resolve=True)
    if isinstance(peft := tree.get("peft"), dict):
        peft.pop(USUAL_RATE, None)
    return {str(key): _with_missing(value) for key, value in tree.items()}


def _lacks_value(tree: Any) -> bool:
    """Whether any value must still be given; OmegaConf takes ten times as long to name those."""
    if isinstance(tree, dict):
        return any(map(_lacks_value, tree.values()))
    return any(map(_lacks_value, tree)) if isinstance(tree, list) else tree == "???"


def _with_missing(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _with_missing(value) for key, value in tree.items()}
    return "???" if tree == _MISSING else tree


class _Engine(Hydra):
    """Hydra, ready to compose the file `name` with the overrides `words`."""

    def __init__(self, overrides: Sequence[Override], flags: HydraFlags) -> None:
        defaults.register()
        setbase(_HYDRA)
        given = allow_new_fields(overrides, group_names(flags.config_dir))
        self.loader = RecordingLoader(flags.config_path or _CONFIG_PATH, flags.config_dir, given)
        self.name, self.words = flags.config_name or _CONFIG_NAME, [text_of(one) for one in given]
        super().__init__("fmstune", self.loader)

    def compose_config(self, *args: Any, **kwargs: Any) -> DictConfig:
        """Compose and set up logging, of which Hydra asserts the form."""
        try:
            return super().compose_config(*args, **kwargs)
        except AssertionError as err:
            raise UserError("hydra.verbose", "must be true, false, the name of a logger or a list of names") from err

    def options(self, group: str) -> list[str]:
        """The choices of a group in all places that the words and files add to the search path."""
        return self.loader.options(group, self.name, self.words)


def compose_job(overrides: Sequence[Override], flags: HydraFlags = NO_HYDRA_FLAGS) -> Composed:
    """Compose one job, or what a sweep's points share; raises UserError for two values of a field, and `ERRORS`."""
    engine = _Engine(overrides, flags)
    return _composed(engine, _load(engine, overrides))


def call_with_job(overrides: Sequence[Override], flags: HydraFlags, task: Callable[[Composed], int]) -> int | None:
    """Compose one job and run the task with Hydra's callbacks, environment and logging; None for a configured sweep."""
    engine = _Engine(overrides, flags)
    config = _load(engine, overrides)
    if config.hydra.mode is RunMode.MULTIRUN:
        return None
    found: list[int | Exception] = []

    def caught(_job: DictConfig) -> None:
        # raised here, an error would get Hydra's words around it
        try:
            found.append(task(_composed(engine, config)))
        except Exception as err:
            found.append(err)

    callbacks, made = Callbacks(config), _record_files(config)
    callbacks.on_run_start(config=config, config_name=engine.name)
    context = HydraContext(config_loader=engine.loader, callbacks=callbacks)
    ended = run_job(caught, config, "hydra.run.dir", None, context)
    callbacks.on_run_end(config=config, config_name=engine.name, job_return=ended)
    if isinstance(found[0], UserError) or found[0] == USER_ERROR:
        _remove_record(made)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _record_files(config: DictConfig) -> list[Path]:
    """What Hydra makes for its record of a job, files first; none unless hydra.output_subdir is set."""
    if config.hydra.output_subdir is None:
        return []
    record = Path(config.hydra.run.dir, config.hydra.output_subdir)
    files = (record / name for name in ("config.yaml", "hydra.yaml", "overrides.yaml"))
    return [path for path in (*files, record, *record.parents) if not path.exists()]


def _remove_record(made: Sequence[Path]) -> None:
    """Remove Hydra's record of a job that was refused; a folder that holds something else stays."""
    for path in made:
        with suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


def compose_points(overrides: Sequence[Override], flags: HydraFlags, task: Callable[[Composed], Any]) -> None:
    """Let Hydra's sweeper choose the points and its launcher call the (picklable) task with each, here or elsewhere."""
    engine = _Engine(overrides, flags)
    parts = engine.loader.parts

    def fmstune(config: DictConfig) -> Any:
        return task(Composed(config, HydraConfig.get(), parts()))

    engine.multirun(engine.name, fmstune, [*engine.words, "hydra.mode=MULTIRUN"])


def call_hydra(overrides: Sequence[Override], flags: HydraFlags) -> int:
    """Call Hydra's own main, for its flags that show something or complete a line; 0."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors rise instead of ending the process with 1
    words = _Engine(overrides, flags).words
    # the word of a completion, such as query=bash, is not a field
    given = map(text_of, overrides) if flags.shell_completion else words
    sys.argv = ["fmstune", *words_of(flags), *given]
    hydra.main(version_base=_HYDRA, config_path=_CONFIG_PATH, config_name=_CONFIG_NAME)(lambda _config: None)()
    return 0


def _load(engine: _Engine, overrides: Sequence[Override]) -> DictConfig:
    config = engine.compose_config(engine.name, engine.words, RunMode.RUN, True, validate_sweep_overrides=False)
    if config.hydra.mode is not RunMode.MULTIRUN:
        hint = "one run for each value needs -m; a list is written in brackets"
        raise_if_any(Problem(text_of(one), f": {hint}") for one in overrides if one.is_sweep_override())
        config.hydra.mode = RunMode.RUN
    return config


def _composed(engine: _Engine, config: DictConfig) -> Composed:
    HydraConfig.instance().set_config(config)  # references of the job may lead there
    job = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return Composed(job, config.hydra, engine.loader.parts())


def wrong_choices(overrides: Sequence[Override], flags: HydraFlags) -> Iterator[tuple[Override, Problem]]:
    """Yield each override that chooses a file that is nowhere in Hydra's search path, with the problem."""
    extra = Path(flags.config_dir) if flags.config_dir else None
    for one, name in unknown_choices(overrides, extra):
        group = one.key_or_group
        options = _Engine(overrides, flags).options(group)
        if name is None:
            yield one, Problem(text_of(one), f": a choice is a name, such as {group}={next(iter(options), 'NAME')}")
        elif name not in options:
            yield one, no_such_choice(group, name, options)


def shadowed_files(extra: Path | None) -> Iterator[str]:
    """Yield a note for each file of a user's folder that Hydra does not read, because a shipped one has its name."""
    if extra is None:
        return
    for group in GROUPS:
        for name in sorted({path.stem for path in (extra / group).glob("*.yaml")} & set(choices(group))):
            yield f"{extra / group / name}.yaml is not used: {group}={name} is the shipped one; choose another name"
