"""Verbs that ask something of what was trained: checked here as far as can be, then handed to a runner."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fmstune.checks.job import job_problems
from fmstune.checks.requests import evaluation_problems, generation_problems, merge_problems, run_model
from fmstune.cli.arguments import CommandLine
from fmstune.cli.start_job import call_runner
from fmstune.config import compose, freeze
from fmstune.config.composing_errors import ERRORS, explain
from fmstune.config.job import Job, has_held_out
from fmstune.config.overrides import field_changes, parse_overrides
from fmstune.config.requests import Generation, Harness, Merge, RunnerRequest, Scoring
from fmstune.errors import Problem, UserError, collect_problems, raise_if_any
from fmstune.runs import run_folder

ASKED_ALIKE = ("template_kwargs", "reasoning")
"""Settings of a format that decide how a model is asked, and should be those that it was trained with."""


def ask_runner(line: CommandLine, asked: RunnerRequest) -> int:
    """Check the request as far as the parent can, and let a runner do it; the exit code."""
    match asked:
        case Generation():
            asked = dataclasses.replace(asked, model=run_model(asked.model))
            problems = list(generation_problems(asked, asked.data_format))
            with collect_problems(problems):
                if (chosen := _data_format(line, asked.data_format)) is not None:
                    asked = dataclasses.replace(asked, format=_as_trained(line, asked.model, chosen))
            raise_if_any(problems)
        case Merge():
            asked = dataclasses.replace(asked, model=tuple(map(run_model, asked.model)))
            raise_if_any(merge_problems(asked))
        case Scoring() | Harness():
            asked = _checked_evaluation(line, asked)
    return call_runner(asked, line.verb)


def _checked_evaluation(line: CommandLine, asked: Scoring | Harness) -> Scoring | Harness:
    """The request with its rows and its base; raises UserError with all that is wrong with it."""
    place = run_model(asked.model)
    problems = list(evaluation_problems(dataclasses.replace(asked, model=place)))
    run, adapts = Path(asked.model) / run_folder.JOB, (Path(place) / "adapter_config.json").is_file()
    with collect_problems(problems):
        if isinstance(asked, Scoring):
            asked = dataclasses.replace(asked, job=freeze.as_tree(_evaluated(line, run)))
        if run.is_file() and not adapts and not asked.no_base and asked.base_model_name_or_path is None:
            # a whole model does not say what it was tuned from, and its run does
            base = freeze.read(run, trusted=line.trusted).job.model
            asked = dataclasses.replace(asked, run_base=base.path, run_base_revision=base.revision)
    raise_if_any(problems)
    return dataclasses.replace(asked, model=place)


def _evaluated(line: CommandLine, run: Path) -> Job:
    """The job whose rows are evaluated: that of the run, or the one that the words make; raises UserError."""
    if any(one.key_or_group == "data" for one in line.overrides):
        composed = compose.compose_job(line.overrides, line.hydra)
        if OmegaConf.is_missing(composed.job.data, "train") and composed.job.data.eval is not None:
            OmegaConf.update(composed.job, "data.train", "none")  # rows to train on need not be given
        job = freeze.freeze(composed.tree(), trusted=line.trusted).job
        format = _as_trained(line, str(run.parent), job.data.format)
        job = dataclasses.replace(job, data=dataclasses.replace(job.data, format=format))
    elif run.is_file():
        job = freeze.read(run, trusted=line.trusted, changes=field_changes(line.overrides)).job
    else:
        hint = "add data=CHOICE and data.eval=FILE"
        raise UserError("--model", f": {run.parent} is not a run with held-out rows; {hint}")
    if not has_held_out(job.data):
        raise UserError("", "no row is held out; set data.eval to the rows to evaluate on, or data.eval_fraction")
    # rows to train on are not read where others are held out
    read = "data." if job.data.eval is None else ("data.eval", "data.format", "data.max", "data.text", "data.resp")
    raise_if_any(problem for problem in job_problems(job) if problem.field.startswith(read))
    return job


def _as_trained(line: CommandLine, place: str, format: dict[str, Any]) -> dict[str, Any]:
    """The format with the settings of the model's run that decide how its template asks, unless the words set them."""
    folders = (Path(place), Path(place).parent, Path(place).parent.parent)
    job_file = next((file for folder in folders if (file := folder / run_folder.JOB).is_file()), None)
    typed = tuple(word.key_or_group for word in line.overrides)
    names = [name for name in ASKED_ALIKE if name in format and not any(f"data.format.{name}" in key for key in typed)]
    if job_file is None or not names:
        return format
    try:
        trained = freeze.read(job_file, trusted=line.trusted).job.data.format
    except UserError as err:
        print(f"fmstune: note: how the model was asked in training is not known ({err})", file=sys.stderr)
        return format
    if trained["_target_"] != format["_target_"]:
        return format
    others = {name: trained[name] for name in names if trained.get(name, format[name]) != format[name]}
    for name, value in others.items():
        print(f"fmstune: note: data.format.{name} is {value}, as in {job_file}", file=sys.stderr)
    return {**format, **others}


def _data_format(line: CommandLine, choice: str | None) -> dict[str, Any] | None:
    """The format that `--format` chooses from the data group, with the fields that the words set."""
    if choice is None:
        return None
    # the rows of the group are not wanted, and its file may leave them open
    chosen = parse_overrides([f"data={choice}", "data.train=none"])
    try:
        raise_if_any(Problem("--format", f": {problem}") for _, problem in compose.wrong_choices(chosen, line.hydra))
        composed = compose.compose_job([*chosen, *line.overrides], line.hydra)
    except ERRORS as err:
        raise UserError("--format", f": {explain(err)}") from err
    return freeze.freeze(composed.tree(), trusted=line.trusted).job.data.format
