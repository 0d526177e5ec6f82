"""The points of a sweep: checked before the first starts, run here or elsewhere, and shown in one table."""

import dataclasses
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from hydra.core.override_parser.types import Override
from omegaconf.errors import OmegaConfBaseException

from fmstune.checks.job import job_problems
from fmstune.cli.arguments import CommandLine, parse_command_line
from fmstune.cli.composed import freeze_composed
from fmstune.cli.start_job import Start, history_of, start_job
from fmstune.config import compare_by
from fmstune.config.compose import Composed, compose_points
from fmstune.config.composing_errors import explain
from fmstune.config.flags import words_of
from fmstune.config.freeze import Frozen
from fmstune.config.job import Job
from fmstune.config.overrides import parse_overrides, swept_keys, text_of
from fmstune.config.requests import Verb
from fmstune.errors import Problem, UserError, first_line, raise_if_any, render
from fmstune.exit_codes import INTERRUPTED, USER_ERROR, closed_pipe
from fmstune.files import as_value
from fmstune.launch import caller, preemption
from fmstune.runs import losers, processes, run_folder, sweep_folder
from fmstune.sweeps import callback, optuna, warm
from fmstune.sweeps.search_files import with_search_files


def resume_sweep(line: CommandLine, sweep: Path) -> int:
    """Run the command that the sweep's folder has recorded, in that folder; words given now come after its own."""
    given = [*words_of(dataclasses.replace(line.hydra, multirun=False)), *map(text_of, line.overrides)]
    recorded = sweep_folder.recorded_command(sweep, given)
    again = parse_command_line([*recorded, f"hydra.sweep.dir={as_value(sweep)}"])
    assert isinstance(again, CommandLine)
    overrides = with_search_files(again.overrides, again.hydra)
    return run_sweep(dataclasses.replace(line, hydra=again.hydra, overrides=overrides, recorded=tuple(recorded)))


def run_sweep(line: CommandLine) -> int:
    """Check all points where that can be done before, then run them; the first failure's exit code."""
    away = callback.runs_elsewhere(line.overrides)
    if line.verb is not Verb.train:
        return next(filter(None, _act_on_points(line)), 0)
    if callback.is_search(line.overrides) and (pruner := parse_overrides(optuna.pruner_words(line.overrides))):
        named = [one.key_or_group for one in pruner]  # a resumed command has them already
        others = [one for one in line.overrides if one.key_or_group not in named]
        line = dataclasses.replace(line, overrides=(*others, *pruner))
    plain = callback.without_launcher(line.overrides)
    if callback.is_search(line.overrides):
        jobs = checked_points(optuna.samples(plain, swept_keys(plain)), line)
        ways = {(compare_by.path(job), compare_by.direction(job)) for job in jobs}
        if len(ways) > 1:
            text = "must be given: the points of this search would be compared by different numbers"
            raise UserError("compare_by", text)
        for job in jobs[:1]:
            optuna.raise_if_no_pruner(job.sweep.pruner, job.sweep.pruner_fields)
        ((_, direction),) = ways
        assert direction is not None
        chosen = parse_overrides([f"hydra.sweeper.direction={direction.value}"])
        line = dataclasses.replace(line, overrides=(*line.overrides, *chosen))
    elif away:
        jobs = checked_points([plain], line)
    return next(filter(None, _run_points_elsewhere(line, len(jobs)) if away else _run_points_here(line)), 0)


def checked_points(commands: Iterable[Sequence[Override]], line: CommandLine) -> list[Job]:
    """The jobs of all points; raises UserError with all that is wrong with any of them, before the first is started."""
    jobs: list[Job] = []
    problems: list[Problem] = []
    folders: set[Path] = set()

    def check(composed: Composed) -> None:
        folders.add(Path(composed.settings.sweep.dir))
        # raised here, an error would end Hydra's sweep
        try:
            job = freeze_composed(composed, line, point_folder(composed, line)).job
            jobs.append(job)
            if job.launcher.slurm is not None:
                hint = ": hydra/launcher makes each point a job already; leave one of the two out"
                problems.append(Problem("launcher.slurm", hint))
            problems.extend(job_problems(job))
        except (UserError, OmegaConfBaseException) as err:
            problems.extend(_problems_of(err))

    for overrides in commands:
        compose_points(overrides, line.hydra, check)
    for folder in folders:
        sweep_folder.release_sweep_folder(folder)
    raise_if_any(problems)
    return jobs


def _problems_of(err: UserError | OmegaConfBaseException) -> Sequence[Problem]:
    return err.problems if isinstance(err, UserError) else [explain(err)]


def _act_on_points(line: CommandLine) -> list[int]:
    """Do what a verb other than train does with each point, in this process; the exit codes."""
    if callback.is_search(line.overrides):
        raise UserError("hydra/sweeper", f"=optuna trains to search; leave it out with fmstune {line.verb.value}")
    codes: list[int] = []
    folders: set[Path] = set()

    def act(composed: Composed) -> None:
        folders.add(Path(composed.settings.sweep.dir))
        codes.append(_start_point(composed, line, None)[0])

    try:
        compose_points(callback.without_launcher(line.overrides), line.hydra, act)
    finally:
        for folder in folders:
            sweep_folder.release_sweep_folder(folder)
    return codes


def _run_points_here(line: CommandLine) -> list[int]:
    """Run the points in this process, one after the other; their exit codes, that of a notice alone where one came."""
    codes: list[int] = []
    folders: set[Path] = set()
    recorded = ExitStack()

    def run(composed: Composed) -> sweep_folder.Point:
        if (folder := Path(composed.settings.sweep.dir)) not in folders:
            folder.mkdir(parents=True, exist_ok=True)
            recorded.enter_context(processes.record_process(folder))
        folders.add(folder)
        point = _run_point(composed, line)
        codes.append(point.code)
        sweep_folder.record_point(Path(composed.settings.sweep.dir), point)
        if point.code in (INTERRUPTED, preemption.CODE):
            # Ctrl-C means all of a sweep, and so does a notice that the machine is wanted back
            raise KeyboardInterrupt
        return point

    try:
        compose_points(line.overrides, line.hydra, run)
    except KeyboardInterrupt:
        if codes[-1:] != [preemption.CODE]:
            raise
        return [preemption.CODE]
    finally:
        warm.close()
        recorded.close()
        for folder in folders:
            _show_sweep(folder)
    return codes


def _run_points_elsewhere(line: CommandLine, number: int) -> list[int]:
    """Let Hydra's launcher run the points elsewhere, and wait for them; their exit codes."""
    callback.Sweep.away.clear()
    try:
        with callback.Sweep.waiting:
            compose_points(line.overrides, line.hydra, partial(_run_point_elsewhere, line, number))
    except Exception as err:  # as submitit is an extra, its errors cannot be named
        if type(err).__module__.partition(".")[0] != "submitit":
            raise
        said = f"{first_line(err)}; its log says why, and the other jobs continue"
        raise UserError("", f"a point's job ended without a result: {said}") from err
    (folder,) = callback.Sweep.away
    return [point.code for point in _show_sweep(folder)]


def _run_point_elsewhere(line: CommandLine, number: int, composed: Composed) -> sweep_folder.Point:
    """Run one of `number` points in a process that Hydra's launcher started, maybe on another machine."""
    if (share := callback.threads(composed.settings, number)) is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(share))
    point = _run_point(composed, line)
    if point.code == preemption.CODE:
        callback.requeue()
    sweep_folder.record_point(Path(composed.settings.sweep.dir), point)
    return point


def _run_point(composed: Composed, line: CommandLine) -> sweep_folder.Point:
    """Run one point; errors do not rise, as Hydra would end the sweep."""
    folder, number = point_folder(composed, line), composed.settings.job.num
    own = [f"{key}={value}" for key, value in callback.swept_values(composed.settings, swept_keys(line.overrides))]
    words = line.recorded or (*words_of(line.hydra), *map(text_of, line.overrides))
    sweep_folder.record_command(Path(composed.settings.sweep.dir), words)
    ended = next((found for found in (run_folder.has_finished, run_folder.was_stopped) if found(folder)), None)
    start = None if callback.is_submitit(composed.settings) else warm.start_forked
    code, job, problems = _start_point(composed, line, start)
    if job is None:
        return sweep_folder.refused_point(number, folder, own, code, problems)
    # a loser that was resumed has another status now
    skipped = code == 0 and ended is not None and ended(folder)
    return sweep_folder.summarize_point(number, folder, own, code, job=job, skipped=skipped)


def _start_point(
    composed: Composed, line: CommandLine, start: Start | None
) -> tuple[int, Job | None, Sequence[Problem]]:
    """The exit code, the job where it could be handed to a runner, and the problems where it could not."""
    try:
        frozen = _with_points(freeze_composed(composed, line, point_folder(composed, line)), composed, line)
        return start_job(frozen, line, history_of(composed, frozen.job, line), start), frozen.job, ()
    except (UserError, OmegaConfBaseException) as err:
        print(render(_problems_of(err)), file=sys.stderr)
        return USER_ERROR, None, _problems_of(err)
    except BrokenPipeError:
        return closed_pipe(), None, ()


def _with_points(frozen: Frozen, composed: Composed, line: CommandLine) -> Frozen:
    """The job of a point that may be stopped as a loser knows how many points share the risk."""
    if losers.what_stops(frozen.job.sweep) is None:
        return frozen
    number = callback.count_points(composed.settings, line.overrides)
    sweep = dataclasses.replace(frozen.job.sweep, points=number)
    return frozen._replace(job=dataclasses.replace(frozen.job, sweep=sweep))


def point_folder(composed: Composed, line: CommandLine) -> Path:
    """The folder of one point: its number, and the values that set it apart from the others."""
    values = callback.swept_values(composed.settings, swept_keys(line.overrides))
    own = ",".join(f"{key.rpartition('.')[2]}={callback.short_number(value)}" for key, value in values)
    slug = re.sub(r"[^\w.=+-]+", "_", re.sub(r"[][{}\"']", "", own))[:60]
    return Path(composed.settings.sweep.dir) / "-".join(part for part in (str(composed.settings.job.num), slug) if part)


def _show_sweep(sweep: Path) -> list[sweep_folder.Point]:
    """Print the table of the points, those of a search's former commands too; the points of this command."""
    if ended := sweep_folder.gather_points(sweep):
        caller.tell(caller.PLACE, str(sweep.absolute()))
        whole = sweep_folder.read_points(sweep) if (sweep / optuna.STORAGE).exists() else ended
        print(sweep_folder.render_points(sweep, whole))
        skipped, failed = sum(point.skipped for point in ended), sum(point.code != 0 for point in ended)
        for count, what in ((skipped, "had ended already"), (failed, "failed")):
            if count:
                print(f"fmstune: {count} of {len(ended)} points {what}", file=sys.stderr)
    sweep_folder.release_sweep_folder(sweep, (optuna.STORAGE,))
    return ended
