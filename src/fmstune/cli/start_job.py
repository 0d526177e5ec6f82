"""Check a job, claim its run folder, let a runner have it, and show what came out."""

import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fmstune.checks.hub import hub_problems
from fmstune.checks.job import job_notes, job_problems
from fmstune.cli import claim_folder, smoke
from fmstune.cli.arguments import CommandLine
from fmstune.cli.composed import composed_origins, freeze_composed, raise_if_changed
from fmstune.config import compose, freeze, origins
from fmstune.config.choices import Device
from fmstune.config.compose import Composed
from fmstune.config.flags import words_of
from fmstune.config.job import Job, Launcher
from fmstune.config.metrics import metrics_of
from fmstune.config.requests import RunnerRequest, ShowData, Verb, write_request
from fmstune.data.preparation import was_prepared
from fmstune.errors import UserError, raise_if_any
from fmstune.exit_codes import INTERNAL_ERROR, exit_code_of
from fmstune.files import write_aside, write_json
from fmstune.launch import caller, early, preemption, slurm, subprocesses
from fmstune.runs import learning_rate, log, run_folder
from fmstune.runs.report import terminal_summary
from fmstune.sweeps import warm
from fmstune.sweeps.callback import raise_if_no_sweep

Start = Callable[[Sequence[str], Mapping[str, str]], int]
"""Runs a command line in an environment; its exit code."""


class History(NamedTuple):
    """How the job came about, which the run folder keeps as `sources.json`."""

    words: list[str]  # of the command; in a sweep those of one point
    sources: dict[str, str]  # the file or override that set each field that has not its default


def run_one_job(line: CommandLine) -> int | None:
    """Compose the job, and do with it what the verb says; None where its configuration says that it is a sweep."""
    raise_if_no_sweep(line.overrides)

    def start(composed: Composed) -> int:
        frozen = freeze_composed(composed, line)
        raise_if_changed(frozen.job)
        return start_job(frozen, line, history_of(composed, frozen.job, line))

    return compose.call_with_job(line.overrides, line.hydra, start)


def history_of(composed: Composed, job: Job, line: CommandLine) -> History | None:
    """How a composed job that is to be trained came about."""
    if line.verb is not Verb.train:
        return None
    flags = [f"--config-dir={line.config_dir}"] if line.config_dir is not None else []
    words = [*flags, *line.trust_flags, *composed.words]
    try:
        sources = origins.recorded_origins(freeze.as_tree(job), composed_origins(composed, line))
    except RuntimeError as err:  # a report can do without them
        print(f"fmstune: note: {run_folder.SOURCES} will not say what set each field: {err}", file=sys.stderr)
        sources = {}
    return History(words, sources)


def start_job(frozen: freeze.Frozen, line: CommandLine, history: History | None, start: Start | None = None) -> int:
    """Check what the parent can, then hand the job to the runner, which `start` starts."""
    job = frozen.job
    if "debug" in job.callbacks.others and learning_rate.is_rate_open(job):
        job = learning_rate.with_usual_rate(job)
        rate = job.training["learning_rate"]
        print(f"fmstune: note: debug=… tries the job at its usual rate, {rate:g}: nothing is probed", file=sys.stderr)
    if history is not None and line.verb is Verb.train and smoke.is_smoke(job):
        return _try_in_small(job, line, history, start)
    raise_if_any([*job_problems(job), *hub_problems(job, line.verb)])
    for note in (*frozen.notes, *job_notes(job)):
        print(f"fmstune: note: {note}", file=sys.stderr)
    if history is not None and line.verb is Verb.train:
        flags = _recorded_flags(line, history)
        # a notice before the first process, or between two, is for the next one
        with preemption.kept_back():
            return _train(job, flags, history, start)
    own = words_of(line.options) if isinstance(line.options, ShowData) else line.trust_flags
    code = call_runner(job, line.verb, own)
    if code == 0 and line.verb is Verb.check and job.launcher.slurm is not None:
        print("\n" + slurm.script(job, Path(job.output_dir or "RUN").absolute(), line.trust_flags), end="")
        if job.launcher.device is Device.auto:
            hint = "the plan is for a device of this machine; launcher.device=cuda plans for GPUs of the nodes"
            print(f"fmstune: note: {hint}", file=sys.stderr)
    return code


def _try_in_small(job: Job, line: CommandLine, history: History, start: Start | None) -> int:
    """`debug=smoke`: the whole way of the job in small; raises UserError for a point of a sweep."""
    if start is not None or line.hydra.multirun:
        raise UserError("debug", "=smoke tries one job, and not the points of a sweep; leave out -m")
    flags = _recorded_flags(line, history)
    with preemption.kept_back():
        return smoke.run_smoke(job, line.trust_flags, call_runner, lambda small: _train(small, flags, history, None))


def _recorded_flags(line: CommandLine, history: History) -> list[str]:
    """The flags of a runner that trains: what is trusted, and what was typed."""
    return [*line.trust_flags, f"--command={shlex.join(['fmstune', *history.words])}"]


def call_runner(asked: Job | RunnerRequest, verb: Verb, flags: Sequence[str] = (), *, talks: bool = False) -> int:
    """Let a runner do a verb that leaves no run folder; its exit code. One that `talks` has Ctrl-C to itself."""
    with tempfile.TemporaryDirectory(prefix="fmstune-") as folder:
        file = Path(folder) / "asked"
        if isinstance(asked, Job):
            freeze.write(asked, file)
            launcher = asked.launcher
        else:
            write_request(asked, file)
            # a merge, a report and a comparison are made on the CPU
            launcher = Launcher(device=getattr(asked, "device", Device.cpu))
        argv = subprocesses.command(file, f"--verb={verb}", *flags)
        env = subprocesses.environment(launcher, os.environ, computes=not isinstance(asked, Job))
        start = partial(subprocesses.start, talks=True) if talks else early.start_composed
        return exit_code_of(start(argv, env))


def _train(job: Job, flags: Sequence[str], history: History, start: Start | None) -> int:
    if job.launcher.slurm is not None:
        slurm.raise_if_not_here()
    if job.output_dir is not None:
        slurm.raise_if_queued(Path(job.output_dir))
    claimed = claim_folder.claim_folder(job)
    folder = claimed.folder
    caller.tell(caller.PLACE, str(folder.absolute()))
    print(f"fmstune: run folder {folder}", file=sys.stderr)
    if claim_folder.is_finished(claimed):
        lost = f"was stopped: {run_folder.read_summary(folder).get('stopped')}"
        if claimed.job.sweep.pruner is None:
            lost = "was stopped as a loser; sweep.stop_losers=false resumes it"
        left = lost if run_folder.was_stopped(folder) else "is finished already, and nothing is left to do"
        print(f"fmstune: this run {left}", file=sys.stderr)
        return _show_summary(job, folder, flags, 0)
    with log.keep_log(folder):
        return _train_claimed(claimed, flags, history, start)


def _train_claimed(claimed: claim_folder.Claim, flags: Sequence[str], history: History, start: Start | None) -> int:
    job, folder = claimed.job, claimed.folder
    if job.launcher.machine_rank == 0:
        write_json(folder / run_folder.SOURCES, history._asdict())
    if job.launcher.slurm is not None:
        try:
            number = slurm.submit(claimed.job, folder, flags)
        except BaseException:
            claim_folder.release_folder(claimed)
            raise
        print(slurm.submitted(number, folder))
        return 0
    with _starting(start, probes=learning_rate.is_rate_open(job)) as begin:
        code = 0
        if learning_rate.is_rate_open(job):
            code = _run_processes(job, folder, [*flags, "--probe"], begin)
            job = job if code else _with_recorded_choice(job, folder)
        code = code or _run_processes(job, folder, flags, begin)
    if not (folder / run_folder.SUMMARY).is_file():  # nothing was trained: leave nothing behind
        claim_folder.release_folder(claimed)
        return exit_code_of(code) or INTERNAL_ERROR
    if code < 0:
        run_folder.mark_killed(folder, -code)
    if job.launcher.machine_rank > 0:
        print(f"fmstune: machine {job.launcher.machine_rank} ended; machine 0 shows the run", file=sys.stderr)
        return exit_code_of(code)
    return _show_summary(job, folder, flags, exit_code_of(code))


@contextmanager
def _starting(start: Start | None, *, probes: bool) -> Iterator[Start]:
    """What starts a runner: where probes come first, one warm process for both, so that libraries are imported once."""
    if start is not None or not probes:
        yield start or subprocesses.start
        return
    try:
        yield warm.start_forked
    finally:
        warm.close()


def _run_processes(job: Job, folder: Path, flags: Sequence[str], start: Start) -> int:
    """Run what the job's launcher starts, one process after the other; the first failure's exit code."""
    code, prepared = 0, was_prepared(job)
    for argv in subprocesses.commands(job, folder / run_folder.JOB, *flags, prepared=prepared):
        code = code or start(argv, subprocesses.environment(job.launcher, os.environ))
    return code


def _with_recorded_choice(job: Job, folder: Path) -> Job:
    """The job with the rate that probes have chosen, written into the run folder: it is what runs."""
    chosen = learning_rate.with_chosen_rate(job, folder)
    with write_aside(folder / run_folder.JOB) as aside:
        freeze.write(chosen, aside)
    return chosen


def _show_summary(job: Job, folder: Path, flags: Sequence[str], code: int) -> int:
    trust = [flag for flag in flags if flag.startswith("--trust=")]
    print(terminal_summary.render_summary(run_folder.read_summary(folder), folder, metrics_of(job), trust))
    return code
