"""Verbs that ask something of what was trained: checked here as far as can be, then handed to a runner."""

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fmstune.checks.job import job_problems
from fmstune.checks.requests import evaluation_problems, generation_problems, merge_problems, run_model
from fmstune.cli.arguments import CommandLine
from fmstune.config import compose, freeze, requests
from fmstune.config.choices import Device
from fmstune.config.job import Job, has_held_out
from fmstune.config.overrides import field_changes, parse_overrides, wrong_choices
from fmstune.config.requests import Comparison, Generation, Harness, Merge, Report, RunnerRequest, Scoring, Verb
from fmstune.errors import Problem, UserError, raise_if_any
from fmstune.exit_codes import exit_code_of
from fmstune.launch import subprocesses
from fmstune.runs import run_folder


def ask_runner(line: CommandLine, asked: RunnerRequest) -> int:
    """Check the request, and let a runner do it; the exit code."""
    asked = _with_home(asked)
    match asked:
        case Generation():
            return _generate(line, asked)
        case Merge():
            return _merge(asked)
        case Scoring() | Harness():
            return _evaluate(line, asked)
        case Report() | Comparison():
            return _hand_over(asked, line.verb, Device.cpu)


def _with_home(asked: RunnerRequest) -> RunnerRequest:
    """Places with `~` written out: a shell does so in `--model ~/run`, and not in `--model=~/run`."""
    names = {field.name for field in dataclasses.fields(asked)} & _PLACES
    given = {name: getattr(asked, name) for name in names}
    return dataclasses.replace(asked, **{name: _expanded(place) for name, place in given.items()})


_PLACES = frozenset({"model", "base_model_name_or_path", "text_file", "rows_file", "out_file", "out", "include_path"})
"""Fields of requests that hold a file or a folder."""


def _expanded(place: Any) -> Any:
    """One place, several, or none."""
    return tuple(map(os.path.expanduser, place)) if isinstance(place, tuple) else place and os.path.expanduser(place)


def _generate(line: CommandLine, asked: Generation) -> int:
    """Check what the parent can of `fmstune generate`, then hand it to the runner."""
    asked = dataclasses.replace(asked, model=run_model(asked.model))
    problems = list(generation_problems(asked, asked.data_format))
    try:
        format = _data_format(line, asked.data_format)
    except UserError as err:
        problems += err.problems
    raise_if_any(problems)
    return _hand_over(dataclasses.replace(asked, format=format), Verb.generate, asked.device)


def _merge(asked: Merge) -> int:
    """Check what the parent can of `fmstune merge`, then hand it to the runner; it is done on the CPU."""
    asked = dataclasses.replace(asked, model=tuple(run_model(model) for model in asked.model))
    raise_if_any(merge_problems(asked))
    return _hand_over(asked, Verb.merge, Device.cpu)


def _evaluate(line: CommandLine, asked: Scoring | Harness) -> int:
    """Check what the parent can of `fmstune evaluate`, choose rows and base, then hand it to the runner."""
    place = run_model(asked.model)
    problems = list(evaluation_problems(dataclasses.replace(asked, model=place)))
    run, adapts = Path(asked.model) / run_folder.JOB, (Path(place) / "adapter_config.json").is_file()
    try:
        if isinstance(asked, Scoring):
            asked = dataclasses.replace(asked, job=freeze.as_tree(_evaluated(line, run)))
        if run.is_file() and not adapts and not asked.no_base and asked.base_model_name_or_path is None:
            # a whole model does not say what it was tuned from, and its run does
            base = freeze.read(run, trusted=line.trusted).job.model
            asked = dataclasses.replace(asked, run_base=base.path, run_base_revision=base.revision)
    except UserError as err:
        problems += err.problems
    raise_if_any(problems)
    return _hand_over(dataclasses.replace(asked, model=place), Verb.evaluate, asked.device)


def _evaluated(line: CommandLine, run: Path) -> Job:
    """The job whose rows are evaluated: that of the run, or the one that the words make; raises UserError."""
    if any(one.key_or_group == "data" for one in line.overrides):
        job = _composed_job(line)
    elif run.is_file():
        job = freeze.read(run, trusted=line.trusted, changes=field_changes(line.overrides)).job
    else:
        raise UserError(
            "--model", f": {run.parent} is not a run with held-out rows; add data=CHOICE and data.eval=FILE"
        )
    if not has_held_out(job.data):
        raise UserError("", "no row is held out; set data.eval to the rows to evaluate on, or data.eval_fraction")
    # rows to train on are not read where others are held out
    read = "data." if job.data.eval is None else ("data.eval", "data.format", "data.max", "data.text", "data.resp")
    raise_if_any(problem for problem in job_problems(job) if problem.field.startswith(read))
    return job


def _composed_job(line: CommandLine) -> Job:
    """The job that the words compose; rows to train on need not be given."""
    composed = compose.compose_job(line.overrides, line.hydra)
    if OmegaConf.is_missing(composed.job.data, "train") and composed.job.data.eval is not None:
        OmegaConf.update(composed.job, "data.train", "none")
    return freeze.freeze(composed.tree(), trusted=line.trusted).job


def _hand_over(asked: RunnerRequest, verb: Verb, device: Device) -> int:
    """Let a runner do what is asked; its exit code."""
    with tempfile.TemporaryDirectory(prefix="fmstune-") as folder:
        file = Path(folder) / "request.json"
        requests.write_request(asked, file)
        argv = subprocesses.command(file, f"--verb={verb.value}")
        return exit_code_of(subprocesses.start(argv, subprocesses.environment_of(device, None, os.environ)))


def _data_format(line: CommandLine, choice: str | None) -> dict[str, Any] | None:
    """The format that `--format` chooses from the data group, with the fields that the words set."""
    if choice is None:
        return None
    # the rows of the group are not wanted, and its file may leave them open
    chosen = parse_overrides([f"data={choice}", "data.train=none"])
    try:
        raise_if_any(Problem("--format", f": {problem}") for _, problem in wrong_choices(chosen, line.config_dir))
        composed = compose.compose_job([*chosen, *line.overrides], line.hydra)
    except compose.ERRORS as err:
        raise UserError("--format", f": {compose.explain(err, line.config_dir)}") from err
    return freeze.freeze(composed.tree(), trusted=line.trusted).job.data.format
