"""Commands that repeat a recorded run: `--from` and `reproduce`."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from fmstune import files
from fmstune.checks import hub
from fmstune.cli import start_job
from fmstune.cli.arguments import CommandLine
from fmstune.cli.claim_folder import free_folder
from fmstune.cli.start_job import History
from fmstune.config import freeze, origins
from fmstune.config.choices import Auto
from fmstune.config.flags import words_of
from fmstune.config.overrides import field_changes, text_of
from fmstune.config.renamed_fields import USUAL_RATE
from fmstune.config.requests import Reproduce, Verb
from fmstune.errors import Problem, UserError, raise_if_any
from fmstune.exit_codes import USER_ERROR
from fmstune.runs import differences, run_folder
from fmstune.runs.report import run_data

_PUSHED = "hf:"
"""Before the name of a repository on the hub that `fmstune push` has filled."""


def repeat_job(line: CommandLine, path: Path) -> int:
    """`--from RUN/job.yaml`: the same job in a folder of its own."""
    raise_if_any(Problem(flag, ": --from repeats one job and takes fields only") for flag in words_of(line.hydra))
    frozen, history = _recorded_job(line, path)
    return start_job.start_job(frozen, line, history)


def _recorded_job(line: CommandLine, path: Path) -> tuple[freeze.Frozen, History]:
    """The job of a run's folder or of a file, with the fields that the words change, and how it came about."""
    changes = {"output_dir": None, **field_changes(line.overrides)}
    job_file = path / run_folder.JOB if path.is_dir() else path
    if str(path).startswith(_PUSHED) and not path.exists():
        job_file = _pushed_job(str(path))
    if changes.get("training.learning_rate") == Auto.auto.value:
        # the recorded rate is the one that the job has without auto
        recorded = freeze.load_file(job_file).get("training") or {}
        changes |= {f"training.{USUAL_RATE}": recorded.get(USUAL_RATE, recorded.get("learning_rate")), **changes}
    frozen = freeze.read(job_file, trusted=line.trusted, changes=changes)
    found = origins.frozen_origins(job_file, changes)
    tree = freeze.as_tree(frozen.job)
    if getattr(line.options, "sources", False):
        print(origins.render_origins(tree, found), end="\n\n", flush=True)
    words = [f"--from={path}", *line.trust_flags, *map(text_of, line.overrides)]
    return frozen, History(words, origins.recorded_origins(tree, found))


def _pushed_job(place: str) -> Path:
    """The job in a repository of `fmstune push`, in the hub's cache; raises UserError where there is none."""
    found = re.fullmatch(rf"{_PUSHED}/*([^/@]+/[^/@]+)(?:@(.+))?", place)
    if found is None or not files.is_model_id(found[1]):
        raise UserError("--from", f": {place!r} names no repository; give hf:USER/NAME, or hf:USER/NAME@REVISION")
    model = hub.HubModel(found[1], found[2])
    raise_if_any(hub.hub_file_problems("--from", model, run_folder.JOB))
    job_file = hub.fetch_file(model, run_folder.JOB)
    if job_file is None:
        raise UserError("--from", f": {found[1]} holds no {run_folder.JOB}; fmstune push sends it with a run")
    return job_file


def reproduce_run(line: CommandLine, asked: Reproduce) -> int:
    """`reproduce RUN`: what is not as it was, the same job in a folder of its own, and what came out against that."""
    run = Path(asked.run)
    recorded = run.parent if run.name == run_folder.JOB else run
    raise_if_any(_not_a_run(recorded))
    differences.read_lock(recorded)
    run_data.read_run(recorded)  # the results to compare with, which must be whole
    frozen, history = _recorded_job(line, recorded)
    job = frozen.job
    if job.output_dir is None:
        job = dataclasses.replace(job, output_dir=str(free_folder(job.name)))
    # what differs before the run again, and by how much the weights do after it
    flags = [*line.trust_flags, f"--recorded={recorded}"]
    if code := start_job.call_runner(job, Verb.reproduce, [*flags, *(["--strict"] if asked.strict else [])]):
        return code
    if code := start_job.start_job(frozen._replace(job=job), dataclasses.replace(line, verb=Verb.train), history):
        return code
    folder = Path(str(job.output_dir))
    for place in (recorded, folder):
        if (status := run_folder.read_summary(place).get("status")) != run_folder.FINISHED:
            print(f"\nnothing to compare: the run in {place} is not finished ({status})")
            return USER_ERROR if asked.strict else 0
    results = differences.compare_results(recorded, folder)
    print("\n".join(["", *differences.render_results(results)]))
    if results.weights:
        print("weights: bit for bit equal", flush=True)
    else:
        print(end="", flush=True)
        start_job.call_runner(job, Verb.reproduce, [*flags, f"--again={folder}"])
    return USER_ERROR if asked.strict and not results.equal else 0


def _not_a_run(folder: Path) -> Iterator[Problem]:
    if not folder.is_dir():
        yield Problem("reproduce", f": no folder {folder}{files.did_you_mean_beside(folder)}")
    elif not (folder / run_folder.JOB).is_file():
        found = sorted(path.parent.name for path in folder.glob(f"*/{run_folder.JOB}"))
        hint = f"; it holds those of {', '.join(found[:5])}" if found else ""
        yield Problem("reproduce", f": {folder} has no {run_folder.JOB}, so it is not the folder of a run{hint}")
