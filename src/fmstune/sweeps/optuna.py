"""`hydra/sweeper=optuna`: points that Optuna chooses from intervals, after the results of the points before.

A sweeper of our own, as the one of Hydra's authors needs an Optuna below 3 (docs/decisions/0018-optuna.md).
"""

import inspect
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from fmstune.config.overrides import parse_overrides
from fmstune.errors import UserError, did_you_mean, first_line, without_secrets
from fmstune.exit_codes import INTERRUPTED
from fmstune.launch import preemption
from fmstune.runs import run_folder, sweep_folder

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

Space = dict[str, "BaseDistribution"]
"""What is searched, by the names of the fields."""
Trial = tuple[int, dict[str, Any]]
"""Its number, and the values that Optuna chose."""
STORAGE = "optuna.db"
"""The study, in the sweep's folder."""
_PLUGIN = "hydra_plugins.fmstune.OptunaSweeper"
"""The name that Hydra knows the sweeper by."""
_SPACE = "space"
"""User attribute of a study that says what it searches."""


@dataclass
class OptunaConf:
    """The fields of `hydra.sweeper`, under the names that Optuna has for them."""

    _target_: str = _PLUGIN
    n_trials: int = 20  # points in all, failed ones and those of former commands included
    n_jobs: int = 1  # points that are chosen together, and run side by side where the launcher does that
    sampler: str = "TPESampler"  # a class of `optuna.samplers`
    pruner: str | None = None  # a class of `optuna.pruners`; null stops no point
    pruner_fields: Any = None  # its arguments, a mapping; typed as such, Hydra would take no new keys
    seed: int | None = 42  # of the sampler; null chooses otherwise each time
    study_name: str = "fmstune"
    storage: str | None = None  # Optuna's URL of a database; null is `optuna.db` in the sweep's folder
    direction: str = "minimize"  # set by fmstune, from the job


class OptunaSweeper(Sweeper):
    """Asks Optuna for points, lets the launcher run them, and tells Optuna their results."""

    def __init__(self, **fields: Any) -> None:
        self._fields = OptunaConf(**fields)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's: called once, before `sweep`."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run points until `n_trials` have ended; raises UserError if the study cannot be used."""
        assert self.config is not None and self.hydra_context is not None
        given = OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(arguments)
        space = {_name(one): distribution(one) for one in given if one.is_sweep_override()}
        if not space:
            hint = "give a field an interval or several values"
            raise UserError("hydra/sweeper", f"=optuna has nothing to search; {hint}")
        written: Any = OmegaConf.to_container(self.config.hydra.sweeper, resolve=False)
        if urlsplit(str(written["storage"])).password is not None:
            hint = "set an environment variable, and 'hydra.sweeper.storage=${oc.env:NAME}'"
            text = f"holds a password, and the sweep's folder keeps the command; {hint}"
            raise UserError("hydra.sweeper.storage", text)
        sampler = _class_of("sampler", self._fields.sampler)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / sweep_folder.HYDRAS_NOTE)
        try:
            with run_folder.lock_folder(folder):
                study = _study(self._fields, folder, space)
                seed = self._fields.seed
                # with its seed alone, a resumed search would begin with the points that it began with
                study.sampler = sampler(seed=None if seed is None else seed + len(study.get_trials(deepcopy=False)))
                self._search(study, given, space, folder)
        except UserError:
            sweep_folder.release_sweep_folder(folder, (STORAGE,))
            raise

    def _search(self, study: "Study", given: Sequence[Override], space: Space, folder: Path) -> None:
        from optuna.trial import TrialState

        # killed before their end: they resume from their checkpoints
        trials = [(one.number, one.params) for one in study.get_trials(states=(TrialState.RUNNING,))]
        while True:
            states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
            ended = len(study.get_trials(deepcopy=False, states=states))
            more = min(self._fields.n_jobs, self._fields.n_trials - ended) - len(trials)
            trials += [(one.number, one.params) for one in (study.ask(space) for _ in range(more))]
            if not trials:
                return
            # numbers that follow each other: a launcher numbers its points from one on
            batches = groupby(enumerate(trials), key=lambda pair: pair[1][0] - pair[0])
            stopped = [self._launched(study, [trial for _, trial in batch], given) for _, batch in batches]
            sweep_folder.gather_points(folder, keep=True)
            if any(stopped):
                return
            trials = []

    def _launched(self, study: "Study", trials: Sequence[Trial], given: Sequence[Override]) -> bool:
        """Run these trials and tell the study; whether one of them was stopped, and is left for later."""
        from optuna.trial import TrialState

        assert self.launcher is not None
        words = [[_word(one, params) for one in given] for _, params in trials]
        stopped = False
        for (number, _), ended in zip(trials, self.launcher.launch(words, initial_job_idx=trials[0][0]), strict=True):
            point: sweep_folder.Point = ended.return_value
            if point.code in (INTERRUPTED, preemption.CODE):
                stopped = True
            elif point.code == 0 and point.compare_by in point.metrics:
                study.tell(number, point.metrics[point.compare_by])
            elif point.status == run_folder.STOPPED:
                study.tell(number, state=TrialState.PRUNED)
            else:
                study.tell(number, state=TrialState.FAIL)
        return stopped


def register_sweeper() -> None:
    """Make `hydra/sweeper=optuna` a choice, also where the plugin of Hydra's authors is installed.

    Hydra takes plugins from the package `hydra_plugins` only. One on the disk would be loaded by every program that
    uses Hydra, and so this one is there for fmstune alone.
    """
    # loads the plugins of others; of two configurations with one name the later one counts
    plugins = Plugins.instance()
    sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))
    sys.modules[_PLUGIN.rpartition(".")[0]] = sys.modules[__name__]
    # and not `register`: processes elsewhere get what is registered, and must be able to import it
    plugins.class_name_to_class[_PLUGIN] = OptunaSweeper
    ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaConf, provider="fmstune")


def _study(fields: OptunaConf, folder: Path, space: Space) -> "Study":
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = fields.storage or f"sqlite:///{folder / STORAGE}"
    way = optuna.study.StudyDirection[fields.direction.upper()]
    try:
        study = optuna.create_study(study_name=fields.study_name, storage=storage, direction=way, load_if_exists=True)
        searched = {name: str(one) for name, one in space.items()}
        former = study.user_attrs.get(_SPACE)
        if former is None:
            study.set_user_attr(_SPACE, searched)
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError) as err:
        text = f": {storage} cannot be used as Optuna's storage ({first_line(err)})"
        raise UserError("hydra.sweeper.storage", without_secrets(text)) from err
    if former not in (None, searched) or study.direction != way:
        hint = "repeat its command with --resume, or choose another output_dir or hydra.sweeper.study_name"
        text = f": {without_secrets(storage)} holds a study {fields.study_name!r} that searches otherwise; {hint}"
        raise UserError("hydra.sweeper.storage", text)
    return study


def _class_of(kind: str, name: str) -> Any:
    """The sampler or pruner of Optuna with this name; raises UserError with the one that may be meant."""
    import optuna

    module = getattr(optuna, f"{kind}s")
    known = [one for one in module.__all__ if one.endswith(kind.capitalize()) and not one.startswith("Base")]
    if name not in known:
        raise UserError(
            f"hydra.sweeper.{kind}", f": {name} is not a class of optuna.{kind}s{did_you_mean(name, known)}"
        )
    return getattr(module, name)


def pruner_words(overrides: Sequence[Override]) -> list[str]:
    """The sweeper's pruner and its arguments as fields of the job: a point asks the pruner where it is trained."""
    given = {one.key_or_group: one for one in overrides}
    keys = {f"hydra.sweeper.{name}": f"sweep.{name}" for name in ("pruner", "pruner_fields")}
    return [f"{ours}={given[key].get_value_element_as_str()}" for key, ours in keys.items() if key in given]


def raise_if_no_pruner(name: str | None, fields: Mapping[str, Any]) -> None:
    """Raise UserError for a pruner that Optuna does not have, or that does not take these arguments."""
    if name is None:
        if fields:
            raise UserError("hydra.sweeper.pruner_fields", ": no pruner takes them; set hydra.sweeper.pruner")
        return
    made = _class_of("pruner", name)
    try:
        made(**fields)
    except (TypeError, ValueError) as err:
        taken = ", ".join(inspect.signature(made).parameters)
        text = f": {name} cannot be made of them ({first_line(err)}); it takes {taken}"
        raise UserError("hydra.sweeper.pruner_fields", text) from err


def distribution(override: Override) -> "BaseDistribution":
    """The distribution of one field, of whole numbers if both ends are; raises UserError if it cannot be searched."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    try:
        if isinstance(value, IntervalSweep):
            low, high = value.start, value.end
            assert low is not None and high is not None
            log = "log" in value.tags
            # of int(interval(…)); Hydra makes floats of the ends of a plain one
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(int(low), int(high), log=log)
            return FloatDistribution(low, high, log=log)
        if isinstance(value, RangeSweep) and not value.shuffle:
            steps = [float(number) for number in override.sweep_string_iterator()]
            if all(number.is_integer() for number in steps):
                return IntDistribution(int(min(steps)), int(max(steps)), step=int(abs(value.step)))
            return FloatDistribution(min(steps), max(steps), step=abs(value.step))
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except ValueError as err:
        raise UserError("", f"{override.input_line} cannot be searched ({err})") from err


def samples(overrides: Sequence[Override], swept: Collection[str]) -> Iterator[list[Override]]:
    """The same command with one value for each swept field, so that each end and each choice comes up once."""
    ends = {_name(one): _ends(one) for one in overrides if _name(one) in swept}
    for number in range(max(map(len, ends.values()), default=1)):
        values = {key: values[min(number, len(values) - 1)] for key, values in ends.items()}
        yield list(parse_overrides([_word(one, values) for one in overrides]))


def _ends(override: Override) -> list[str]:
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    values = list(override.sweep_string_iterator())
    return [values[0], values[-1]] if isinstance(value, RangeSweep) else values


def _name(override: Override) -> str:
    return override.get_key_element().lstrip("+")


def _word(override: Override, params: dict[str, Any]) -> str:
    value = params.get(_name(override))
    return f"{override.get_key_element()}={override.get_value_element_as_str() if value is None else value}"
