"""`debug=smoke`: the whole way of a job in small, in a folder of its own: trained, resumed, generated from."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from fmstune import tables
from fmstune.checks.hub import hub_problems
from fmstune.checks.job import job_problems
from fmstune.checks.resume import AUTO
from fmstune.cli.claim_folder import free_folder
from fmstune.config.choices import Backend
from fmstune.config.job import Job, sources
from fmstune.config.requests import Generation, RunnerRequest, Verb
from fmstune.errors import Problem, UserError, raise_if_any, render
from fmstune.exit_codes import INTERNAL_ERROR, USER_ERROR
from fmstune.launch import caller, preemption, subprocesses
from fmstune.runs import checkpoints, run_folder

SMOKE = "fmstune.training.debugging.smoke.Smoke"
"""The `_target_` that `debug=smoke` sets."""
_MARK, _MODEL, _RUN = ".smoke", "two_layers", "run"
_LEAST_ROWS = 64
_EVAL_ROWS = 8

CallRunner = Callable[[Job | RunnerRequest, Verb, Sequence[str]], int]
Train = Callable[[Job], int]


class Result(StrEnum):
    """How a stage ended."""

    passed = "passed"
    failed = "failed"
    not_run = "not run"


class Stage(NamedTuple):
    """A part of the way, and how it ended."""

    name: str
    what: str
    result: Result
    seconds: float = 0.0
    code: int = 0


def is_smoke(job: Job) -> bool:
    """Whether `debug=smoke` asks for the short way of this job."""
    return bool(job.callbacks.others.get("debug", {}).get("_target_") == SMOKE)


def run_smoke(job: Job, trust_flags: Sequence[str], call_runner: CallRunner, train: Train) -> int:
    """Do each stage until one fails, and show them as a table; the exit code is that of the failed one."""
    folder = _folder_of(job)
    small = smoke_job(job, folder)
    raise_if_any([*_unfit(job), *job_problems(replace(job, output_dir=small.output_dir)), *_hub_problems(job, small)])
    made = _make_folder(folder)
    print(f"fmstune: debug=smoke tries this job in {folder}", file=sys.stderr)
    stages = _run_stages(_ways(job, small, folder, trust_flags, call_runner, train))
    failed = next((stage for stage in stages if stage.result is Result.failed), None)
    print("\n" + render_stages(stages))
    if failed is not None:
        text = f"debug=smoke failed in the stage {failed.name} (exit code {failed.code})"
        print(f"fmstune: {text}; its message stands above, and {folder} is kept", file=sys.stderr)
        return failed.code
    if caller.listens():  # the program that asked may use the run
        return 0
    shutil.rmtree(folder)
    for parent in made:
        if not any(parent.iterdir()):
            parent.rmdir()
    return 0


def smoke_job(job: Job, folder: Path) -> Job:
    """The job with a model of two layers and few rows; launcher, method, batches and formats stay as they are."""
    training = dict(job.training)
    rows = training.get("per_device_train_batch_size", 8) * training.get("gradient_accumulation_steps", 1)
    rows *= max(subprocesses.total_processes(job.launcher), 1) * training.get("max_steps", 2)
    training["resume"] = AUTO if training.get("resume") == AUTO else None
    if training.get("eval_strategy", "no") != "no":
        training |= {"eval_strategy": "steps", "eval_steps": 1}
    place = job.model.tokenizer or job.model.path
    return replace(
        job,
        output_dir=str(folder / _RUN),
        # in full: OWNER/NAME would be looked for on the hub
        model=replace(job.model, path=str((folder / _MODEL).absolute()), tokenizer=place, architecture=None),
        data=replace(
            job.data,
            train=_few(job, "train", max(rows, _LEAST_ROWS)),
            eval=_few(job, "eval", _EVAL_ROWS),
            max_rows=None,
            quarantine=None,  # it may name rows that are not read
        ),
        training=training,
        evaluation=replace(job.evaluation, sample=min(job.evaluation.sample, 2)),
        tracking={},
        callbacks=replace(job.callbacks, early_stopping=None, stop_when=None),
        sweep=type(job.sweep)(),
    )


def _few(job: Job, part: str, most: int) -> Any:
    """The sources with at most so many rows each."""
    found = sources(job.data, part)
    return {name: vars(replace(one, max_rows=min(one.max_rows or most, most))) for name, one in found.items()} or None


def _unfit(job: Job) -> Iterator[Problem]:
    """Yield a problem for each part of the job that two layers on this machine cannot try."""
    if job.model.adapter is not None:
        yield Problem("model.adapter", "has all layers, and debug=smoke takes two; add model.adapter=null")
    if job.launcher.slurm is not None:
        text = "debug=smoke runs on this machine and submits nothing; add launcher.slurm=null, on a node of the job"
        yield Problem("launcher.slurm", text)
    if job.launcher.num_machines > 1:
        text = f"={job.launcher.num_machines}: debug=smoke runs on one machine; set launcher.num_machines=1"
        yield Problem("launcher.num_machines", f"{text} and launcher.num_processes to the processes of one machine")


def _hub_problems(job: Job, small: Job) -> Iterator[Problem]:
    """Yield a problem for a configuration, a tokenizer and rows that cannot be had; no weights are needed."""
    # what asks for the configuration alone
    yield from hub_problems(replace(job, model=replace(job.model, backend=Backend.transformers)), Verb.modules)
    yield from hub_problems(small, Verb.train)


def _folder_of(job: Job) -> Path:
    return free_folder(f"{job.name}-smoke") if job.output_dir is None else Path(f"{job.output_dir}-smoke")


def _make_folder(folder: Path) -> list[Path]:
    """Make the folder, in place of one that a failed try left; the parents that were made too, deepest first."""
    if folder.exists():
        if not (folder / _MARK).is_file():
            text = f": {folder}, where debug=smoke would work, is there and not its own"
            raise UserError("output_dir", f"{text}; move it away, or choose another output_dir")
        shutil.rmtree(folder)
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.mkdir(parents=True)
        (folder / _MARK).touch()
    except OSError as err:
        raise UserError("output_dir", f": {folder} cannot be made: {err.strerror}; choose another") from err
    return made


class _Way(NamedTuple):
    """A stage before it is run."""

    name: str
    what: str
    run: Callable[[], int]


def _ways(
    job: Job, small: Job, folder: Path, trust_flags: Sequence[str], call_runner: CallRunner, train: Train
) -> Iterator[_Way]:
    """The stages, in their order."""
    run = folder / _RUN
    asked = Generation(
        model=str(run / run_folder.MODEL),
        text="Hello",
        out_file=str(folder / "answer.json"),
        max_new_tokens=8,
        device=job.launcher.device,
    )
    flags = [*trust_flags, f"--two_layers={folder / _MODEL}"]

    def first_leg() -> int:
        raise_if_any(job_problems(small))
        code = train(small)
        if code not in (0, preemption.CODE):
            return code
        if code == 0 or checkpoints.newest_checkpoint(run) is None:
            print("fmstune: the notice in the first step left no checkpoint to resume from", file=sys.stderr)
            return INTERNAL_ERROR
        return 0

    def second_leg() -> int:
        code = train(small)
        if code == 0 and not run_folder.has_finished(run):
            print(f"fmstune: the resumed run in {run} is not finished", file=sys.stderr)
            return INTERNAL_ERROR
        return code

    yield _Way("model", "two layers, random weights", lambda: call_runner(job, Verb.check, flags))
    yield _Way("train", "rows read, one step, checkpoint saved, stopped", first_leg)
    yield _Way("resume", "resumed in new processes, model saved", second_leg)
    yield _Way("generate", "model loaded, an answer generated", lambda: call_runner(asked, Verb.generate, ()))


def _run_stages(ways: Iterator[_Way]) -> list[Stage]:
    """Run the stages until one fails; a problem that the parent finds is shown as that of the stage."""
    stages: list[Stage] = []
    for way in ways:
        if stages and stages[-1].result is not Result.passed:
            stages.append(Stage(way.name, way.what, Result.not_run))
            continue
        print(f"\nfmstune: stage {way.name}: {way.what}", file=sys.stderr, flush=True)
        begun = time.perf_counter()
        try:
            code = way.run()
        except UserError as err:
            print(render(err.problems), file=sys.stderr)
            code = USER_ERROR
        result = Result.failed if code else Result.passed
        stages.append(Stage(way.name, way.what, result, time.perf_counter() - begun, code))
    return stages


def render_stages(stages: Sequence[Stage]) -> str:
    """The table that ends the command."""
    rows = [
        (one.name, one.result.value, "-" if one.result is Result.not_run else f"{one.seconds:.1f}", one.what)
        for one in stages
    ]
    return "\n".join(tables.lines(("stage", "result", "seconds", "what"), rows, left=(0, 1, 3)))
