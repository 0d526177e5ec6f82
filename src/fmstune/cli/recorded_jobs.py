"""Commands that begin with a recorded run: `--from`, `reproduce`, and `--resume` of a sweep."""

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from fmstune import files
from fmstune.cli import claim, composed_jobs, start_job
from fmstune.cli.arguments import CommandLine
from fmstune.cli.start_job import Typed
from fmstune.config import compose, freeze
from fmstune.config import origins as sources
from fmstune.config.job import Job
from fmstune.config.verbs import Verb
from fmstune.errors import Problem, raise_if_any
from fmstune.exit_codes import USER_ERROR, exit_code_of
from fmstune.launch import subprocesses
from fmstune.runs import differences, run_folder, sweep_folder


def run(line: CommandLine) -> int:
    """Go on with a sweep, reproduce a run or repeat its job; the exit code."""
    if line.resume is not None:
        return composed_jobs.run(_gone_on_with(line, line.resume))
    if line.run is not None:
        return _reproduce(line, line.run)
    return _repeat(line)


def _gone_on_with(line: CommandLine, sweep: Path) -> CommandLine:
    """The command that the sweep's folder has recorded, in that folder; words given beside it come after it."""
    folder = str(sweep).replace("\\", "\\\\").replace('"', '\\"')
    given = [word for word in line.hydra if word not in ("-m", "--multirun")]
    command = sweep_folder.recorded_command(sweep, given)
    words = sweep_folder.recorded_command(sweep, [*given, f'hydra.sweep.dir="{folder}"'])
    return dataclasses.replace(line, hydra=tuple(words), command=tuple(command))


def _repeat(line: CommandLine) -> int:
    """`--from RUN/job.yaml`: the same job in a folder of its own."""
    path = line.from_job
    assert path is not None
    changes = compose.changes(line.hydra)
    job_file = path / run_folder.JOB if path.is_dir() else path
    frozen = freeze.read(job_file, trusted=line.trusted, changes={"output_dir": None, **changes})
    origins = sources.of_file(job_file, {"output_dir": None, **changes})
    if line.sources:
        sources.show(frozen.job, origins)
    words = [f"--from={path}", *(f"--trust={package}" for package in line.trusted), *line.hydra]
    typed = Typed(words, lambda: sources.recorded(freeze.as_tree(frozen.job), origins))
    return start_job.act(frozen.job, frozen.notes, line, typed)


def _reproduce(line: CommandLine, run: Path) -> int:
    """`reproduce RUN`: what is not as it was, the same job in a folder of its own, and what came out against that."""
    recorded = run.parent if run.name == run_folder.JOB else run
    raise_if_any(_not_a_run(recorded))
    differences.read_lock(recorded)
    changes = {"output_dir": None, **compose.changes(line.hydra)}
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
    if code := start_job.act(job, frozen.notes, dataclasses.replace(line, verb=Verb.train), typed):
        return code
    folder = Path(str(job.output_dir))
    states = {place: run_folder.read_summary(place).get("status") for place in (recorded, folder)}
    for place, status in states.items():
        if status != run_folder.FINISHED:
            print(f"\nnothing to compare: the run in {place} is not finished ({status})")
            return USER_ERROR if line.strict else 0
    found = differences.compare_results(recorded, folder, job)
    print("\n".join(["", *differences.render_results(found)]))
    if found.weights:
        print("weights: bit for bit equal", flush=True)
    else:
        print(end="", flush=True)
        _compare(job, recorded, [*flags, f"--again={folder}"])
    return USER_ERROR if line.strict and not found.equal else 0


def _not_a_run(folder: Path) -> Iterator[Problem]:
    if not folder.is_dir():
        yield Problem("reproduce", f": no folder {folder}{files.did_you_mean_beside(folder)}")
    elif not (folder / run_folder.JOB).is_file():
        found = sorted(path.parent.name for path in folder.glob(f"*/{run_folder.JOB}"))
        hint = f"; it holds those of {', '.join(found[:5])}" if found else ""
        yield Problem("reproduce", f": {folder} has no {run_folder.JOB}, so it is not the folder of a run{hint}")


def _compare(job: Job, recorded: Path, flags: Sequence[str]) -> int:
    """Let a runner compare with a recorded run: what is there before the run again, or the weights after it."""
    with tempfile.TemporaryDirectory(prefix="fmstune-") as folder:
        job_file = Path(folder) / "job.yaml"
        freeze.write(job, job_file)
        argv = subprocesses.command(job_file, f"--verb={Verb.reproduce.value}", f"--recorded={recorded}", *flags)
        return exit_code_of(subprocesses.start(argv, subprocesses.environment(job, os.environ)))
