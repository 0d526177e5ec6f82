"""The parent process: compose, freeze, check, start the runner, show the result. Imports nothing heavy."""

import dataclasses
import logging
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fmstune import (
    __version__,
    accelerate_file,
    claim,
    completion,
    composition,
    forks,
    freeze,
    help,
    launch,
    objective,
    package_files,
    points,
    preemption,
    preparation,
    report,
    request,
    request_rules,
    rules,
    run_folder,
    search,
    slurm,
    sources,
    sweeps,
)
from fmstune.command_line import CommandLine, Verb, choice_problems, force_plain_overrides, parse, swept_keys
from fmstune.errors import UserError, raise_if_any, render
from fmstune.job import Device, Job, has_held_out
from fmstune.request import Comparison, Generation, Harness, Merge, Report, Scoring

USER_ERROR = 2
INTERNAL_ERROR = 1
INTERRUPTED = 130

Start = Callable[[Sequence[str], Mapping[str, str]], int]
"""Runs a command line in an environment; its exit code."""


def main() -> NoReturn:
    """The console script: exits 0, 2 for what the user can mend, 1 for what we must, 130 when interrupted."""
    logging.raiseExceptions = False  # Hydra logs to stdout, which `| head` may have closed
    try:
        sys.exit(run(sys.argv[1:]))
    except UserError as err:
        print(render(err.problems), file=sys.stderr)
    except composition.ERRORS as err:
        print(render([composition.explained(err)]), file=sys.stderr)
    except BrokenPipeError:
        sys.exit(_closed_pipe())
    except OSError as err:
        # such as a sweep's folder that is a file, or a name that is too long
        print(render([f"{err.filename or 'a file'}: {err.strerror or err}"]), file=sys.stderr)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(USER_ERROR)


def _closed_pipe() -> int:
    """`| head` has seen enough: nothing may be flushed into it at exit; the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return INTERNAL_ERROR


def run(words: Sequence[str]) -> int:
    """Do what one command line says; the exit code."""
    if "--shell-completion" in words or "-sc" in words:
        return _complete(words)
    line = dataclasses.replace(parse(words), typed=tuple(words))
    if line.version:
        print(f"fmstune {__version__}")
        return 0
    if line.help:
        print(help.text(line.verb if line.verb is not Verb.train else None, composition.config_dir(line.hydra)))
        return 0
    if line.verb is Verb.doctor:
        return launch.start(launch.doctor_command(clear_cache=line.clear_cache), os.environ)
    printed = composition.without_cfg_job(line.hydra)[1] is not None
    if line.sources and line.verb is Verb.train and not printed:
        raise UserError("--sources is a flag of fmstune check, and goes with --cfg job")
    if line.generation is not None:
        return _generate(line, line.generation)
    if line.merge is not None:
        return _merge(line.merge)
    if line.verb is Verb.from_fms:
        return _from_fms(line.old_command, run_it=line.run_it)
    if line.run is not None:
        return _reproduce(line, line.run)
    if (back := line.report or line.comparison) is not None:
        return _hand_over(back, line.verb, Device.cpu)
    if line.evaluation is not None:
        return _evaluate(line, line.evaluation)
    if line.from_job is not None:
        return _repeat(line)
    if line.resume is not None:
        line = _gone_on_with(line, line.resume)
    return _composed(line)


def _gone_on_with(line: CommandLine, sweep: Path) -> CommandLine:
    """The command that the sweep's folder has recorded, in that folder; words given beside it come after it."""
    folder = str(sweep).replace("\\", "\\\\").replace('"', '\\"')
    given = [word for word in line.hydra if word not in ("-m", "--multirun")]
    command = points.command(sweep, given)
    words = points.command(sweep, [*given, f'hydra.sweep.dir="{folder}"'])
    return dataclasses.replace(line, hydra=tuple(words), command=tuple(command))


def _generate(line: CommandLine, asked: Generation) -> int:
    """Check what the parent can of `fmstune generate`, then hand it to the runner."""
    asked = dataclasses.replace(asked, model=request_rules.model_place(asked.model))
    problems = list(request_rules.generation(asked, line.data_format))
    try:
        format = _data_format(line)
    except UserError as err:
        problems += err.problems
    raise_if_any(problems)
    return _hand_over(dataclasses.replace(asked, format=format), Verb.generate, asked.device)


def _merge(asked: Merge) -> int:
    """Check what the parent can of `fmstune merge`, then hand it to the runner; it is done on the CPU."""
    asked = dataclasses.replace(asked, model=tuple(request_rules.model_place(model) for model in asked.model))
    raise_if_any(request_rules.merge(asked))
    return _hand_over(asked, Verb.merge, Device.cpu)


def _from_fms(old_command: Sequence[str], *, run_it: bool) -> int:
    """Print what an old command is today, and what changed; with `run_it`, run it; the first failure's exit code."""
    # here and not above: what one verb needs is not imported at the start of all
    from fmstune import from_fms

    found = from_fms.translate(old_command, os.environ, _text_of)
    if run_it:
        raise_if_any(f"${name} has no value; set it before the command" for one in found for name in one.unset)
    for place, translation in enumerate(found):
        # a blank line between two commands; with --run, stdout is theirs
        print("\n" * (place > 0) + from_fms.command(translation), file=sys.stderr if run_it else sys.stdout, flush=True)
        print(from_fms.explanation(translation), file=sys.stderr)
    if not run_it:
        return 0
    code = 0
    for translation in found:
        os.environ.update(translation.environment)
        code = code or run(translation.words)
    return code


def _text_of(name: str) -> str | None:
    """The text of a file, of stdin for `-`; None where there is none."""
    if name == "-":
        return sys.stdin.read()
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as err:
        raise UserError(f"{name} is no text ({err.reason}); give a script or a job file") from err
    except OSError:
        return None


def _evaluate(line: CommandLine, asked: Scoring | Harness) -> int:
    """Check what the parent can of `fmstune evaluate`, choose rows and base, then hand it to the runner."""
    place = request_rules.model_place(asked.model)
    problems = list(request_rules.evaluation(dataclasses.replace(asked, model=place)))
    try:
        job = _evaluated(line, Path(asked.model).expanduser(), isinstance(asked, Harness))
    except UserError as err:
        problems += err.problems
    raise_if_any(problems)
    if job is not None and not (Path(place) / "adapter_config.json").is_file() and not asked.no_base:
        # a whole model does not say what it was tuned from, and its run does
        base = asked.base_model_name_or_path or (job.model.path if place != asked.model else None)
        asked = dataclasses.replace(asked, base_model_name_or_path=base)
    asked = dataclasses.replace(asked, model=place)
    if isinstance(asked, Scoring):
        asked = dataclasses.replace(asked, job=freeze.as_tree(job) if job is not None else None)
    return _hand_over(asked, Verb.evaluate, asked.device)


def _evaluated(line: CommandLine, folder: Path, harness: bool) -> Job | None:
    """The job whose rows are evaluated: that of the run, or the one that the words make; raises UserError."""
    job: Job | None
    run, words = folder / run_folder.JOB, line.hydra
    chosen = any(word.startswith("data=") for word in words)
    if run.is_file() and not chosen:
        job = freeze.read(run, trusted=line.trusted, changes=composition.changes(words)).job
    elif harness:
        return None
    elif not chosen:
        raise UserError(f"--model: {folder} is no run, which has rows of its own; add data=CHOICE and data.eval=FILE")
    else:
        job = _composed_job(line, words)
    if not harness:
        if not has_held_out(job.data):
            raise UserError("no row is held out; set data.eval to the rows to evaluate on, or data.eval_fraction")
        # rows to train on are not read where others are held out
        read = "data." if job.data.eval is None else ("data.eval", "data.format", "data.max", "data.text", "data.resp")
        raise_if_any(problem for problem in rules.problems(job) if problem.startswith(read))
    return job


def _composed_job(line: CommandLine, words: Sequence[str]) -> Job:
    """The job that these words compose; rows to train on need not be given."""
    found: list[Job] = []
    problems: list[str] = []

    def keep(config: DictConfig) -> None:
        # raised here, an error would get Hydra's words around it
        if OmegaConf.is_missing(config.data, "train") and config.data.eval is not None:
            OmegaConf.update(config, "data.train", "none")
        try:
            found.append(freeze.freeze(composition.tree(config), trusted=line.trusted).job)
        except UserError as err:
            problems.extend(err.problems)

    composition.compose(force_plain_overrides(words, composition.groups(composition.config_dir(words))), keep)
    raise_if_any(problems)
    return found[0]


def _hand_over(asked: Generation | Merge | Scoring | Harness | Report | Comparison, verb: Verb, device: Device) -> int:
    """Let a runner do what is asked; its exit code."""
    with tempfile.TemporaryDirectory(prefix="fmstune-") as folder:
        file = Path(folder) / "request.json"
        request.write(asked, file)
        argv = launch.command(file, f"--verb={verb.value}")
        return _exit_code(launch.start(argv, launch.environment_of(device, None, os.environ)))


def _data_format(line: CommandLine) -> dict[str, Any] | None:
    """The format that `--format` chooses from the data group, with the fields given beside it."""
    if line.data_format is None:
        return None
    found: list[dict[str, Any]] = []
    problems: list[str] = []

    def keep(config: DictConfig) -> None:
        # raised here, an error would get Hydra's words around it
        try:
            found.append(freeze.freeze(composition.tree(config), trusted=line.trusted).job.data.format)
        except UserError as err:
            problems.extend(err.problems)

    # the rows of the group are not wanted, and its file may leave them open
    words = [f"data={line.data_format}", "data.train=none", *line.hydra]
    try:
        composition.compose(force_plain_overrides(words, composition.groups(composition.config_dir(words))), keep)
    except composition.ERRORS as err:
        raise UserError(f"--format: {composition.explained(err)}") from err
    raise_if_any(problems)
    return found[0]


def _composed(line: CommandLine) -> int:
    """Let Hydra compose each point and run it; the first failure's exit code, after all points ran."""
    words, printed = composition.without_cfg_job(line.hydra)
    extra = composition.config_dir(words)
    for note in composition.shadowed(extra):
        print(f"fmstune: note: {note}", file=sys.stderr)
    groups = composition.groups(extra)
    raise_if_any(choice_problems(words, groups))
    forced = force_plain_overrides(words, groups)
    swept = swept_keys(words)
    tasks = Points(line, swept, printed)
    if printed:
        return _worst(_in_turn(forced, tasks))
    away = sweeps.here(forced) is not None
    if sweeps.searches(forced):
        forced += _checked_search(sweeps.plain(forced), swept, line)
    elif away:
        tasks.number = len(_checked_points([sweeps.plain(forced)], Points(line, swept, None, checks_only=True)).codes)
    return _worst(_away(forced, tasks) if away else _in_turn(forced, tasks))


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
        self.problems: list[str] = []

    def __call__(self, config: DictConfig) -> points.Point | None:
        """What became of a point of a sweep; errors do not rise: Hydra would put words around them, and end it."""
        settings = HydraConfig.get()
        if settings.mode is RunMode.MULTIRUN:
            self.sweeps.add(Path(settings.sweep.dir))
        if settings.mode is RunMode.MULTIRUN and self._line.verb is Verb.train and not self._checks_only:
            return self._point(config, settings)
        self.codes.append(self._code(config, None)[0])
        return None

    def _point(self, config: DictConfig, settings: HydraConf) -> points.Point:
        """Run one point of a sweep and leave what became of it, also for a process elsewhere."""
        sweep, number = Path(settings.sweep.dir), settings.job.num
        folder, own = (
            _sweep_folder(settings, self._swept),
            [f"{key}={value}" for key, value in sweeps.own(settings, self._swept)],
        )
        points.record(sweep, self._line.command or self._line.hydra)
        share = sweeps.threads(settings, self.number)
        if share is not None:
            os.environ.setdefault("OMP_NUM_THREADS", str(share))
        done = run_folder.read_summary(folder).get("status") == run_folder.FINISHED
        code, job = self._code(config, None if sweeps.is_submitit(settings) else forks.start)
        if job is None:
            point = points.refused(number, folder, own, code, self.problems)
        else:
            point = points.of(number, folder, own, code, job=job, skipped=done and code == 0)
        self.codes.append(code)
        if sweeps.is_away(settings):
            if code == preemption.CODE:
                sweeps.requeue()
            points.leave(sweep, point)
            return point
        points.leave(sweep, point)
        if code == INTERRUPTED:
            # Ctrl-C means all of a sweep
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
            return _act(frozen.job, frozen.notes, self._line, typed, start), frozen.job
        except UserError as err:
            problems: Sequence[str] = err.problems
        except OmegaConfBaseException as err:
            problems = [composition.explained(err)]
        except BrokenPipeError:
            return _closed_pipe(), None
        self.problems += [problem for problem in problems if problem not in self.problems]
        if not self._checks_only:
            print(render(problems), file=sys.stderr)
        return USER_ERROR, None


def _in_turn(words: Sequence[str], tasks: Points) -> list[int]:
    """Run the points in this process, one after the other; their exit codes."""
    try:
        composition.compose(words, tasks)
    finally:
        forks.close()
        for folder in tasks.sweeps:
            _end(folder)
    return tasks.codes


def _end(sweep: Path) -> list[points.Point]:
    """Show what the points came to, those of a search's former commands too, and leave no folder that holds nothing."""
    ended = points.gather(sweep)
    if ended:
        whole = points.read(sweep) if (sweep / search.STORAGE).exists() else ended
        print(points.table(sweep, whole))
        failed, skipped = sum(point.code != 0 for point in ended), sum(point.skipped for point in ended)
        if skipped:
            print(f"fmstune: {skipped} of {len(ended)} points were finished already", file=sys.stderr)
        if failed:
            print(f"fmstune: {failed} of {len(ended)} points failed", file=sys.stderr)
    points.release(sweep, (search.STORAGE,))
    return ended


def _checked_points(commands: Iterable[Sequence[str]], tasks: Points) -> Points:
    """Raises UserError with what is wrong with any of the points, before the first is started."""
    for words in commands:
        composition.compose(words, tasks)
    for folder in tasks.sweeps:
        points.release(folder)
    raise_if_any(tasks.problems)
    return tasks


def _checked_search(words: Sequence[str], swept: frozenset[str], line: CommandLine) -> list[str]:
    """Check points at the ends of what is searched; the words that tell the sweeper what is better."""
    if line.verb is not Verb.train:
        raise UserError(f"hydra/sweeper=optuna trains to search; leave it out with fmstune {line.verb.value}")
    tasks = _checked_points(search.samples(words, swept), Points(line, swept, None, checks_only=True))
    ways = {(objective.path(job), objective.direction(job)) for job in tasks.jobs}
    if len(ways) > 1:
        raise UserError("objective must be given: the points of this search would be compared by different numbers")
    ((_, direction),) = ways
    assert direction is not None
    return [f"hydra.sweeper.direction={direction.value}"]


def _problems_away(job: Job) -> Iterator[str]:
    """What is wrong with a point, before the first of its sweep is started."""
    if job.launcher.slurm is not None:
        yield "launcher.slurm: hydra/launcher makes each point a job already; leave one of the two out"
    yield from rules.problems(job)


def _away(words: Sequence[str], tasks: Points) -> list[int]:
    """Let Hydra's launcher run the points elsewhere, and wait for them; their exit codes."""
    sweeps.Sweep.away.clear()
    try:
        composition.compose(words, tasks)
    except Exception as err:
        # as submitit is an extra, its errors cannot be named
        if type(err).__module__.partition(".")[0] != "submitit":
            raise
        raise UserError(
            f"a point's job ended without a result: {str(err).strip().splitlines()[0]}; its log says why, and the "
            "other jobs go on"
        ) from err
    (folder,) = sweeps.Sweep.away
    return [point.code for point in _end(folder)]


def _print(config: DictConfig, how: Mapping[str, Any], line: CommandLine) -> int:
    """`--cfg job`: the composed job, or where its fields come from."""
    if not line.sources:
        return composition.print_config(config, how, line.trusted)
    tree = composition.tree(config)
    if not OmegaConf.missing_keys(config):
        tree = freeze.as_tree(freeze.freeze(tree, trusted=line.trusted).job)
    shown = sources.render(tree, sources.of_composition(config), how["package"])
    raise_if_any([] if shown else [composition.no_such_part(how["package"], config)])
    print(shown)
    return 0


def _frozen(config: DictConfig, line: CommandLine, swept: Collection[str]) -> freeze.Frozen:
    """One composed configuration as a job, in the folder that is its own."""
    tree = composition.tree(config)
    words = frozenset(word.lstrip("+~").partition("=")[0] for word in line.hydra)
    tree["launcher"] = accelerate_file.folded(tree["launcher"], words)
    frozen = freeze.freeze(tree, trusted=line.trusted)
    job = frozen.job
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        job = dataclasses.replace(job, output_dir=str(_sweep_folder(HydraConfig.get(), swept)))
    if line.sources:
        _print_sources(job, _origins(config))
    return freeze.Frozen(job, frozen.notes)


def _print_sources(job: Job, origins: sources.Origins) -> None:
    """Before the problems that the rules find, and before what the runner prints."""
    print(sources.render(freeze.as_tree(job), origins), end="\n\n", flush=True)


def _sweep_folder(settings: HydraConf, swept: Collection[str]) -> Path:
    """The folder of one point: its number, and what sets it apart from the others."""
    own = ",".join(f"{key.rpartition('.')[2]}={sweeps.short(value)}" for key, value in sweeps.own(settings, swept))
    slug = re.sub(r"[^\w.=+-]+", "_", own)[:60]
    return Path(settings.sweep.dir) / "-".join(part for part in (str(settings.job.num), slug) if part)


def _repeat(line: CommandLine) -> int:
    """`--from RUN/job.yaml`: the same job in a folder of its own."""
    path = line.from_job
    assert path is not None
    changes = composition.changes(line.hydra)
    job_file = path / run_folder.JOB if path.is_dir() else path
    frozen = freeze.read(job_file, trusted=line.trusted, changes={"output_dir": None, **changes})
    origins = sources.of_file(job_file, {"output_dir": None, **changes})
    if line.sources:
        _print_sources(frozen.job, origins)
    words = [f"--from={path}", *(f"--trust={package}" for package in line.trusted), *line.hydra]
    return _act(
        frozen.job, frozen.notes, line, Typed(words, lambda: sources.recorded(freeze.as_tree(frozen.job), origins))
    )


def _reproduce(line: CommandLine, run: Path) -> int:
    """`reproduce RUN`: what is not as it was, the same job in a folder of its own, and what came out against that."""
    # here and not above, as one verb needs it
    from fmstune import locked

    recorded = run.parent if run.name == run_folder.JOB else run
    raise_if_any(_not_a_run(recorded))
    locked.read(recorded)
    changes = {"output_dir": None, **composition.changes(line.hydra)}
    frozen = freeze.read(recorded / run_folder.JOB, trusted=line.trusted, changes=changes)
    job = frozen.job
    if job.output_dir is None:
        job = dataclasses.replace(job, output_dir=str(claim.free_folder(job.name)))
    flags = [f"--trust={package}" for package in line.trusted]
    strict = ["--strict"] if line.strict else []
    if code := _compare(job, recorded, [*flags, *strict]):
        return code
    origins = sources.of_file(recorded / run_folder.JOB, changes)
    words = [f"--from={recorded}", *flags, *line.hydra]
    typed = Typed(words, lambda: sources.recorded(freeze.as_tree(job), origins))
    if code := _act(job, frozen.notes, dataclasses.replace(line, verb=Verb.train), typed):
        return code
    folder = Path(str(job.output_dir))
    states = {place: run_folder.read_summary(place).get("status") for place in (recorded, folder)}
    for place, status in states.items():
        if status != run_folder.FINISHED:
            print(f"\nnothing to compare: the run in {place} is not finished ({status})")
            return USER_ERROR if line.strict else 0
    found = locked.results(recorded, folder)
    print("\n".join(["", *locked.results_table(found)]))
    if found.weights:
        print("weights: bit for bit equal", flush=True)
    else:
        print(end="", flush=True)
        _compare(job, recorded, [*flags, f"--again={folder}"])
    return USER_ERROR if line.strict and not found.equal else 0


def _not_a_run(folder: Path) -> Iterator[str]:
    if not folder.is_dir():
        yield f"reproduce: there is no folder {folder}{package_files.did_you_mean_beside(folder)}"
    elif not (folder / run_folder.JOB).is_file():
        found = sorted(path.parent.name for path in folder.glob(f"*/{run_folder.JOB}"))
        hint = f"; it holds those of {', '.join(found[:5])}" if found else ""
        yield f"reproduce: {folder} has no {run_folder.JOB}, so it is not the folder of a run{hint}"


def _compare(job: Job, recorded: Path, flags: Sequence[str]) -> int:
    """Let a runner compare with a recorded run: what is there before the run again, or the weights after it."""
    with tempfile.TemporaryDirectory(prefix="fmstune-") as folder:
        job_file = Path(folder) / "job.yaml"
        freeze.write(job, job_file)
        argv = launch.command(job_file, f"--verb={Verb.reproduce.value}", f"--recorded={recorded}", *flags)
        return _exit_code(launch.start(argv, launch.environment(job, os.environ)))


class Typed(NamedTuple):
    """What the run folder keeps of how the job came about: `sources.json`."""

    words: list[str]
    """Of the command; in a sweep those of one point."""
    sources: Callable[[], dict[str, str]]
    """Finds what set each field, those aside that have their defaults: as long as composing, so only for a folder."""


def _typed(config: DictConfig, job: Job, line: CommandLine) -> Typed | None:
    """How a composed job that is to be trained came about; None where a job of another launcher's cannot tell."""
    if line.verb is not Verb.train or not GlobalHydra.instance().is_initialized():
        return None
    given = [word.removeprefix("++") for word in composition.task_words()]
    extra = composition.config_dir(line.hydra)
    flags = [f"--config-dir={extra}"] if extra is not None else []
    flags += [f"--trust={package}" for package in line.trusted]
    return Typed([*flags, *given], lambda: _recorded(config, job))


def _recorded(config: DictConfig, job: Job) -> dict[str, str]:
    try:
        return sources.recorded(freeze.as_tree(job), _origins(config))
    except RuntimeError as err:
        # a report can do without, and so the run goes on
        print(f"fmstune: note: {run_folder.SOURCES} will not say what set each field: {err}", file=sys.stderr)
        return {}


def _origins(config: DictConfig) -> sources.Origins:
    """What set each value of the composed configuration; a point of a sweep has a folder of its own."""
    origins = sources.of_composition(config)
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        origins["output_dir",] = sources.Origin("a folder for each point of the sweep")
    return origins


def _act(job: Job, notes: Sequence[str], line: CommandLine, typed: Typed | None, start: Start | None = None) -> int:
    """Check what the parent can, then hand the job to the runner, which `start` starts."""
    raise_if_any(rules.problems(job))
    for note in (*notes, *rules.notes(job)):
        print(f"fmstune: note: {note}", file=sys.stderr)
    flags = [f"--trust={package}" for package in line.trusted]
    if line.verb is Verb.train:
        words = typed.words if typed is not None else line.typed
        return _train(job, [*flags, f"--command={shlex.join(['fmstune', *words])}"], typed, start)
    flags.append(f"--verb={line.verb.value}")
    if line.verb is Verb.show_data:
        files = {"--json": line.json, "--html": line.html}
        flags += [f"--rows={line.rows}", *(f"{flag}={file}" for flag, file in files.items() if file)]
    with tempfile.TemporaryDirectory(prefix="fmstune-") as folder:
        job_file = Path(folder) / "job.yaml"
        freeze.write(job, job_file)
        code = launch.start(launch.command(job_file, *flags), launch.environment(job, os.environ))
    if code == 0 and line.verb is Verb.check and job.launcher.slurm is not None:
        print("\n" + slurm.script(job, Path(job.output_dir or "RUN").absolute(), flags[:-1]), end="")
        if job.launcher.device is Device.auto:
            print(f"fmstune: note: {_PLANNED_HERE}", file=sys.stderr)
    return code


_PLANNED_HERE = "the plan is for a device of this machine; launcher.device=cuda plans for GPUs of the nodes"


def _train(job: Job, flags: Sequence[str], typed: Typed | None, start: Start | None) -> int:
    """Claim the run folder, freeze the job into it, run it, and show what came out."""
    if job.launcher.slurm is not None:
        slurm.raise_if_not_here()
    if job.output_dir is not None:
        slurm.raise_if_queued(Path(job.output_dir))
    claimed = claim.claim(job)
    folder = claimed.folder
    print(f"fmstune: run folder {folder}", file=sys.stderr)
    if claim.is_finished(claimed):
        print("fmstune: this run is finished already, and nothing is left to do", file=sys.stderr)
        print(report.render(run_folder.read_summary(folder), folder))
        return 0
    if typed is not None and job.launcher.machine_rank == 0:
        run_folder.write_json(folder / run_folder.SOURCES, {"words": typed.words, "sources": typed.sources()})
    if job.launcher.slurm is not None:
        return _submit(claimed, flags)
    code = 0
    prepared = preparation.is_known(claimed.job)
    for argv in launch.commands(claimed.job, folder / run_folder.JOB, *flags, prepared=prepared):
        code = code or (start or launch.start)(argv, launch.environment(claimed.job, os.environ))
    if not (folder / run_folder.SUMMARY).is_file():
        # nothing was trained: leave nothing behind
        claim.release(claimed)
        return _exit_code(code) or INTERNAL_ERROR
    if code < 0:
        run_folder.mark_killed(folder, -code)
    if job.launcher.machine_rank > 0:
        print(f"fmstune: machine {job.launcher.machine_rank} ended; machine 0 shows the run", file=sys.stderr)
        return _exit_code(code)
    print(report.render(run_folder.read_summary(folder), folder))
    return _exit_code(code)


def _submit(claimed: claim.Claim, flags: Sequence[str]) -> int:
    """Hand the claimed run to Slurm, which starts it when it can."""
    try:
        number = slurm.submit(claimed.job, claimed.folder, flags)
    except BaseException:
        claim.release(claimed)
        raise
    print(slurm.submitted(number, claimed.folder))
    return 0


def _exit_code(code: int) -> int:
    """The runner's code as ours; negative is the signal that it died of."""
    if code >= 0:
        return code
    return INTERRUPTED if -code in run_folder.INTERRUPTING else INTERNAL_ERROR


def _complete(words: Sequence[str]) -> int:
    """Tab completion: Hydra's, on a line without our verb, after our own suggestions."""
    typed = os.environ.get("COMP_LINE")
    if typed is not None:
        print("\n".join(completion.suggestions(typed)))
        os.environ["COMP_LINE"] = completion.for_hydra(typed, composition.groups(None))
    composition.compose(words, lambda _config: None)
    return 0


if __name__ == "__main__":
    main()
