"""What a command composes: one job, or the points of a sweep, each checked and run; or `--cfg job` of them."""

import copy
import dataclasses
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fmstune.checks.job import job_problems
from fmstune.cli import start_job
from fmstune.cli.arguments import CommandLine, choice_problems, force_plain_overrides, swept_keys
from fmstune.cli.start_job import Start, Typed
from fmstune.config import compare_by, compose, freeze
from fmstune.config import origins as sources
from fmstune.config.job import Job
from fmstune.config.verbs import Verb
from fmstune.errors import Problem, UserError, raise_if_any, render
from fmstune.exit_codes import INTERRUPTED, USER_ERROR, closed_pipe
from fmstune.launch import accelerate_file, preemption
from fmstune.runs import run_folder, sweep_folder
from fmstune.sweeps import callback, optuna, warm


def run(line: CommandLine) -> int:
    """Let Hydra compose each point and run it; the first failure's exit code, after all points ran."""
    words, printed = compose.without_cfg_job(line.hydra)
    extra = compose.config_dir(words)
    for note in compose.shadowed(extra):
        print(f"fmstune: note: {note}", file=sys.stderr)
    groups = compose.groups(extra)
    raise_if_any(choice_problems(words, groups))
    forced = force_plain_overrides(words, groups)
    swept = swept_keys(words)
    if wrong := list(compose.wrong_choices(words, extra)):
        others = _other_problems({word for word, _ in wrong}, forced, line, swept)
        raise UserError.of([*(problem for _, problem in wrong), *others])
    tasks = Points(line, swept, printed)
    if printed:
        return _worst(_in_turn(forced, tasks))
    away = callback.here(forced) is not None
    if callback.searches(forced):
        forced += _checked_search(callback.plain(forced), swept, line)
    elif away:
        tasks.number = len(_checked_points([callback.plain(forced)], Points(line, swept, None, checks_only=True)).codes)
    return _worst(_away(forced, tasks) if away else _in_turn(forced, tasks))


def _other_problems(
    wrong: Collection[str], words: Sequence[str], line: CommandLine, swept: Collection[str]
) -> Iterator[Problem]:
    """What else is wrong where some choices do not exist; what their groups hold cannot be judged."""
    groups = {word.partition("=")[0] for word in wrong}
    found: list[Problem] = []

    def judge(config: DictConfig) -> None:
        try:
            freeze.freeze(compose.tree(config), trusted=line.trusted)
        except UserError as err:
            found.extend(err.problems)

    # an experiment would choose for other groups, and a sweep has folders
    if "experiment" not in groups and not swept and not {"-m", "--multirun"} & {*words}:
        with suppress(*compose.ERRORS):
            compose.compose([word for word in words if word not in wrong], judge)
    yield from (problem for problem in found if problem.field.partition(".")[0] not in groups)


def _worst(codes: Sequence[int]) -> int:
    """The first failure's exit code."""
    return next((code for code in codes if code), 0)


class Points:
    """What is done with each composed configuration of a command; pickled where Hydra runs it elsewhere."""

    number = 0
    """How many there are, where Hydra runs them elsewhere."""

    def __init__(
        self,
        line: CommandLine,
        swept: Collection[str],
        printed: Mapping[str, Any] | None,
        *,
        checks_only: bool = False,
    ) -> None:
        self._line, self._swept, self._printed, self._checks_only = line, swept, printed, checks_only
        self.codes: list[int] = []
        self.jobs: list[Job] = []
        self.sweeps: set[Path] = set()
        self.problems: list[Problem] = []

    def __call__(self, config: DictConfig) -> sweep_folder.Point | None:
        """What became of a point of a sweep; errors do not rise: Hydra would put words around them, and end it."""
        settings = HydraConfig.get()
        if settings.mode is RunMode.MULTIRUN:
            self.sweeps.add(Path(settings.sweep.dir))
        if settings.mode is RunMode.MULTIRUN and self._line.verb is Verb.train and not self._checks_only:
            return self._point(config, settings)
        self.codes.append(self._code(config, None)[0])
        return None

    def _point(self, config: DictConfig, settings: HydraConf) -> sweep_folder.Point:
        """Run one point of a sweep and leave what became of it, also for a process elsewhere."""
        sweep, number = Path(settings.sweep.dir), settings.job.num
        folder, own = (
            _sweep_folder(settings, self._swept),
            [f"{key}={value}" for key, value in callback.own(settings, self._swept)],
        )
        sweep_folder.record_command(sweep, self._line.command or self._line.hydra)
        share = callback.threads(settings, self.number)
        if share is not None:
            os.environ.setdefault("OMP_NUM_THREADS", str(share))
        done = run_folder.read_summary(folder).get("status") == run_folder.FINISHED
        code, job = self._code(config, None if callback.is_submitit(settings) else warm.start)
        if job is None:
            point = sweep_folder.refused_point(number, folder, own, code, self.problems)
        else:
            point = sweep_folder.summarize_point(number, folder, own, code, job=job, skipped=done and code == 0)
        self.codes.append(code)
        if callback.is_away(settings):
            if code == preemption.CODE:
                callback.requeue()
            sweep_folder.record_point(sweep, point)
            return point
        sweep_folder.record_point(sweep, point)
        if code in (INTERRUPTED, preemption.CODE):
            # Ctrl-C means all of a sweep, and so does a notice that the machine is wanted back
            raise KeyboardInterrupt
        return point

    def _code(self, config: DictConfig, start: Start | None) -> tuple[int, Job | None]:
        """The exit code, and the job where it could be handed to a runner."""
        self.problems = self.problems if self._checks_only else []
        try:
            if self._printed:
                return _print(config, self._printed, self._line), None
            frozen = _frozen(config, self._line, self._swept)
            if self._checks_only:
                self.jobs.append(frozen.job)
                self.problems += [problem for problem in _problems_away(frozen.job) if problem not in self.problems]
                return 0, None
            typed = _typed(config, frozen.job, self._line)
            return start_job.act(frozen.job, frozen.notes, self._line, typed, start), frozen.job
        except UserError as err:
            problems: Sequence[Problem] = err.problems
        except OmegaConfBaseException as err:
            problems = [compose.explained(err)]
        except BrokenPipeError:
            return closed_pipe(), None
        self.problems += [problem for problem in problems if problem not in self.problems]
        if not self._checks_only:
            print(render(problems), file=sys.stderr)
        return USER_ERROR, None


def _in_turn(words: Sequence[str], tasks: Points) -> list[int]:
    """Run the points in this process, one after the other; their exit codes, that of a notice alone where one came."""
    try:
        compose.compose(words, tasks)
    except KeyboardInterrupt:
        if tasks.codes[-1:] != [preemption.CODE]:
            raise
        return [preemption.CODE]
    finally:
        warm.close()
        for folder in tasks.sweeps:
            _end(folder)
    return tasks.codes


def _end(sweep: Path) -> list[sweep_folder.Point]:
    """Show what the points came to, those of a search's former commands too, and leave no folder that holds nothing."""
    ended = sweep_folder.gather_points(sweep)
    if ended:
        whole = sweep_folder.read_points(sweep) if (sweep / optuna.STORAGE).exists() else ended
        print(sweep_folder.render_points(sweep, whole))
        failed, skipped = sum(point.code != 0 for point in ended), sum(point.skipped for point in ended)
        if skipped:
            print(f"fmstune: {skipped} of {len(ended)} points were finished already", file=sys.stderr)
        if failed:
            print(f"fmstune: {failed} of {len(ended)} points failed", file=sys.stderr)
    sweep_folder.release_sweep_folder(sweep, (optuna.STORAGE,))
    return ended


def _checked_points(commands: Iterable[Sequence[str]], tasks: Points) -> Points:
    """Raises UserError with what is wrong with any of the points, before the first is started."""
    for words in commands:
        compose.compose(words, tasks)
    for folder in tasks.sweeps:
        sweep_folder.release_sweep_folder(folder)
    raise_if_any(tasks.problems)
    return tasks


def _checked_search(words: Sequence[str], swept: frozenset[str], line: CommandLine) -> list[str]:
    """Check points at the ends of what is searched; the words that tell the sweeper what is better."""
    if line.verb is not Verb.train:
        raise UserError("hydra/sweeper", f"=optuna trains to search; leave it out with fmstune {line.verb.value}")
    tasks = _checked_points(optuna.samples(words, swept), Points(line, swept, None, checks_only=True))
    ways = {(compare_by.path(job), compare_by.direction(job)) for job in tasks.jobs}
    if len(ways) > 1:
        raise UserError("compare_by", "must be given: the points of this search would be compared by different numbers")
    ((_, direction),) = ways
    assert direction is not None
    return [f"hydra.sweeper.direction={direction.value}"]


def _problems_away(job: Job) -> Iterator[Problem]:
    """What is wrong with a point, before the first of its sweep is started."""
    if job.launcher.slurm is not None:
        yield Problem("launcher.slurm", ": hydra/launcher makes each point a job already; leave one of the two out")
    yield from job_problems(job)


def _away(words: Sequence[str], tasks: Points) -> list[int]:
    """Let Hydra's launcher run the points elsewhere, and wait for them; their exit codes."""
    callback.Sweep.away.clear()
    try:
        compose.compose(words, tasks)
    except Exception as err:
        # as submitit is an extra, its errors cannot be named
        if type(err).__module__.partition(".")[0] != "submitit":
            raise
        raise UserError(
            "",
            f"a point's job ended without a result: {str(err).strip().splitlines()[0]}; its log says why, and the "
            "other jobs continue",
        ) from err
    (folder,) = callback.Sweep.away
    return [point.code for point in _end(folder)]


def _print(config: DictConfig, how: Mapping[str, Any], line: CommandLine) -> int:
    """`--cfg job`: the composed job, or where its fields come from."""
    filled = config
    if found := _of_file(config, line):
        filled = copy.deepcopy(config)
        OmegaConf.set_struct(filled, False)
        filled.launcher.update(found)
    if not line.sources:
        return compose.print_config(filled, how, line.trusted)
    tree = compose.tree(filled)
    if not OmegaConf.missing_keys(filled):
        tree = freeze.as_tree(freeze.freeze(tree, trusted=line.trusted).job)
    shown = sources.render(tree, _origins(config, line), how["package"])
    raise_if_any([] if shown else [compose.no_such_part(how["package"], config)])
    print(shown)
    return 0


def _frozen(config: DictConfig, line: CommandLine, swept: Collection[str]) -> freeze.Frozen:
    """One composed configuration as a job, in the folder that is its own."""
    tree = compose.tree(config)
    tree["launcher"] |= _of_file(config, line)
    frozen = freeze.freeze(tree, trusted=line.trusted)
    job = frozen.job
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        job = dataclasses.replace(job, output_dir=str(_sweep_folder(HydraConfig.get(), swept)))
    if line.sources:
        sources.show(job, _origins(config, line))
    return freeze.Frozen(job, frozen.notes)


def _of_file(config: DictConfig, line: CommandLine) -> dict[str, Any]:
    """What the user's own accelerate YAML sets in the launcher group."""
    if OmegaConf.select(config, "launcher.config_file") is None:
        # nearly always, and then nothing is resolved for it
        return {}
    words = frozenset(word.lstrip("+~").partition("=")[0] for word in line.hydra)
    return accelerate_file.taken(compose.tree(config)["launcher"], words)


def _sweep_folder(settings: HydraConf, swept: Collection[str]) -> Path:
    """The folder of one point: its number, and what sets it apart from the others."""
    own = ",".join(f"{key.rpartition('.')[2]}={callback.short(value)}" for key, value in callback.own(settings, swept))
    slug = re.sub(r"[^\w.=+-]+", "_", re.sub(r"[][{}\"']", "", own))[:60]
    return Path(settings.sweep.dir) / "-".join(part for part in (str(settings.job.num), slug) if part)


def _typed(config: DictConfig, job: Job, line: CommandLine) -> Typed | None:
    """How a composed job that is to be trained came about; None where a job of another launcher's cannot tell."""
    if line.verb is not Verb.train or not GlobalHydra.instance().is_initialized():
        return None
    given = [word.removeprefix("++") for word in compose.task_words()]
    extra = compose.config_dir(line.hydra)
    flags = [f"--config-dir={extra}"] if extra is not None else []
    flags += [f"--trust={package}" for package in line.trusted]
    return Typed([*flags, *given], lambda: _recorded(config, job, line))


def _recorded(config: DictConfig, job: Job, line: CommandLine) -> dict[str, str]:
    try:
        return sources.recorded(freeze.as_tree(job), _origins(config, line))
    except RuntimeError as err:
        # a report can do without, and so the run goes on
        print(f"fmstune: note: {run_folder.SOURCES} will not say what set each field: {err}", file=sys.stderr)
        return {}


def _origins(config: DictConfig, line: CommandLine) -> sources.Origins:
    """What set each value of the composed configuration; a point of a sweep has a folder of its own."""
    origins = sources.of_composition(config)
    origins |= {("launcher", name): sources.Origin(config.launcher.config_file) for name in _of_file(config, line)}
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        origins["output_dir",] = sources.Origin("a folder for each point of the sweep")
    return origins
