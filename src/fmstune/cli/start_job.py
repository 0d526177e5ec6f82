"""Check a frozen job, claim its run folder, let a runner have it, and show what came out."""

import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fmstune.checks.job import job_notes, job_problems
from fmstune.cli import claim
from fmstune.cli.arguments import CommandLine
from fmstune.config import freeze
from fmstune.config.job import Device, Job
from fmstune.config.metrics import metrics_of
from fmstune.config.verbs import Verb
from fmstune.data.preparation import was_prepared
from fmstune.errors import raise_if_any
from fmstune.exit_codes import INTERNAL_ERROR, exit_code_of
from fmstune.files import write_json
from fmstune.launch import preemption, slurm, subprocesses
from fmstune.runs import run_folder
from fmstune.runs.report import terminal_summary

Start = Callable[[Sequence[str], Mapping[str, str]], int]
"""Runs a command line in an environment; its exit code."""


class Typed(NamedTuple):
    """What the run folder keeps of how the job came about: `sources.json`."""

    words: list[str]
    """Of the command; in a sweep those of one point."""
    sources: Callable[[], dict[str, str]]
    """Finds what set each field, those aside that have their defaults: as long as composing, so only for a folder."""


def act(job: Job, notes: Sequence[str], line: CommandLine, typed: Typed | None, start: Start | None = None) -> int:
    """Check what the parent can, then hand the job to the runner, which `start` starts."""
    raise_if_any(job_problems(job))
    for note in (*notes, *job_notes(job)):
        print(f"fmstune: note: {note}", file=sys.stderr)
    flags = [f"--trust={package}" for package in line.trusted]
    if line.verb is Verb.train:
        words = typed.words if typed is not None else line.typed
        flags.append(f"--command={shlex.join(['fmstune', *words])}")
        # a notice before the first process, or between two, is for the next one
        with preemption.kept_back():
            return _train(job, flags, typed, start)
    flags.append(f"--verb={line.verb.value}")
    if line.verb is Verb.show_data:
        files = {"--json": line.json, "--html": line.html}
        flags += [f"--rows={line.rows}", *(f"{flag}={file}" for flag, file in files.items() if file)]
    with tempfile.TemporaryDirectory(prefix="fmstune-") as folder:
        job_file = Path(folder) / "job.yaml"
        freeze.write(job, job_file)
        code = subprocesses.start(subprocesses.command(job_file, *flags), subprocesses.environment(job, os.environ))
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
    trust = [flag for flag in flags if flag.startswith("--trust=")]
    print(f"fmstune: run folder {folder}", file=sys.stderr)
    if claim.is_finished(claimed):
        print("fmstune: this run is finished already, and nothing is left to do", file=sys.stderr)
        print(terminal_summary.render_summary(run_folder.read_summary(folder), folder, metrics_of(job), trust))
        return 0
    if typed is not None and job.launcher.machine_rank == 0:
        write_json(folder / run_folder.SOURCES, {"words": typed.words, "sources": typed.sources()})
    if job.launcher.slurm is not None:
        return _submit(claimed, flags)
    code = 0
    prepared = was_prepared(claimed.job)
    for argv in subprocesses.commands(claimed.job, folder / run_folder.JOB, *flags, prepared=prepared):
        code = code or (start or subprocesses.start)(argv, subprocesses.environment(claimed.job, os.environ))
    if not (folder / run_folder.SUMMARY).is_file():
        # nothing was trained: leave nothing behind
        claim.release(claimed)
        return exit_code_of(code) or INTERNAL_ERROR
    if code < 0:
        run_folder.mark_killed(folder, -code)
    if job.launcher.machine_rank > 0:
        print(f"fmstune: machine {job.launcher.machine_rank} ended; machine 0 shows the run", file=sys.stderr)
        return exit_code_of(code)
    print(terminal_summary.render_summary(run_folder.read_summary(folder), folder, metrics_of(job), trust))
    return exit_code_of(code)


def _submit(claimed: claim.Claim, flags: Sequence[str]) -> int:
    """Hand the claimed run to Slurm, which starts it when it can."""
    try:
        number = slurm.submit(claimed.job, claimed.folder, flags)
    except BaseException:
        claim.release(claimed)
        raise
    print(slurm.submitted(number, claimed.folder))
    return 0
