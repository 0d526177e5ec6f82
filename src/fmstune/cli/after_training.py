"""Verbs that ask something of what was trained: checked here as far as can be, then handed to a runner."""

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fmstune import files
from fmstune.checks.hub import HubModel, base_of, fetch_file, push_token_problems, request_problems
from fmstune.checks.job import job_problems
from fmstune.checks.requests import (
    conversing_problems,
    evaluation_problems,
    generation_problems,
    merge_problems,
    parity_problems,
    push_problems,
    run_model,
    suspects_problems,
)
from fmstune.cli.arguments import CommandLine
from fmstune.cli.start_job import call_runner
from fmstune.config import compose, freeze
from fmstune.config.after_training.serving import Serving, Talk
from fmstune.config.after_training.sharing import Push
from fmstune.config.composing_errors import ERRORS, explain
from fmstune.config.job import Job, has_held_out, sources
from fmstune.config.overrides import field_changes, parse_overrides
from fmstune.config.requests import Export, Generation, Harness, Merge, Parity, RunnerRequest, Scoring, SuspectRows
from fmstune.errors import Problem, UserError, collect_problems, naming_flag, raise_if_any
from fmstune.runs import run_folder
from fmstune.runs.run_folder import ASKED_ALIKE, CHAT


def ask_runner(line: CommandLine, asked: RunnerRequest) -> int:
    """Check the request as far as the parent can, and let a runner do it; the exit code."""
    match asked:
        case Generation():
            asked = dataclasses.replace(asked, model=run_model(asked.model))
            problems = [*generation_problems(asked, asked.data_format), *request_problems(_places(asked))]
            with collect_problems(problems):
                if (chosen := _data_format(line, asked.data_format)) is not None:
                    asked = dataclasses.replace(asked, format=_as_trained(line, asked.model, chosen))
            raise_if_any(problems)
            if asked.data_format is None:
                _note_bare_text(line, asked.model)
        case Merge():
            asked = dataclasses.replace(asked, model=tuple(map(run_model, asked.model)))
            raise_if_any([*merge_problems(asked), *request_problems(_places(asked))])
            if asked.export in (Export.gguf, Export.ollama):
                asked = dataclasses.replace(asked, format=_trained_format(line, asked.model[0]))
        case Parity():
            problems = list(parity_problems(asked))
            models = _places(dataclasses.replace(asked, run=run_model(asked.run)))
            raise_if_any(problems or request_problems(models))
        case SuspectRows():
            raise_if_any(suspects_problems(asked))
        case Push():
            raise_if_any([*push_problems(asked), *push_token_problems(asked)])
        case Scoring() | Harness():
            asked = _checked_evaluation(line, asked)
        case Serving() | Talk():
            return _converse(line, asked)
    return call_runner(asked, line.verb)


def _converse(line: CommandLine, asked: Serving | Talk) -> int:
    """Let a runner serve the model or talk with it, in the format of its run or of `--format`."""
    place, verb = run_model(asked.model), line.verb.value
    # the model is a word of the command and no flag
    with naming_flag(verb, ["--model"]):
        asked = dataclasses.replace(asked, model=place)
        problems = [*conversing_problems(asked), *request_problems(_places(asked))]
        with collect_problems(problems):
            if (chosen := _data_format(line, asked.data_format)) is not None:
                asked = dataclasses.replace(asked, format=_as_trained(line, place, chosen))
            elif not problems:
                asked = dataclasses.replace(asked, format=_format_of_run(line, place))
        raise_if_any(problems)
    folder = files.user_path(place)
    job_file, adapts = _job_of(place) if folder.is_dir() else None, (folder / "adapter_config.json").is_file()
    if job_file is not None and not adapts and asked.base_model_name_or_path is None and not asked.no_base:
        base = freeze.read(job_file, trusted=line.trusted).job.model
        if isinstance(asked, Talk) and asked.compare:
            asked = dataclasses.replace(asked, run_base=base.path, run_base_revision=base.revision)
        elif isinstance(asked, Serving):
            words = f"--base_model_name_or_path {base.path} serves its base, too"
            print(
                f"fmstune: note: the run tuned a whole model; {words}, with a second copy of weights", file=sys.stderr
            )
    return call_runner(asked, line.verb, talks=isinstance(asked, Talk))


def _format_of_run(line: CommandLine, place: str) -> dict[str, Any]:
    """The format that the model's run trained on; of a model without a run, chat, as its folder says."""
    job_file = _job_of(place)
    if job_file is not None:
        data = freeze.read(job_file, trusted=line.trusted).job.data
        formats = {name: source.format for name, source in sources(data, "train").items()}
        first, format = next(iter(formats.items()), ("", None))
        if any(other != format for other in formats.values()):
            words = f"the model is asked in that of {first} (--format CHOICE chooses another)"
            print(f"fmstune: note: the sources of the run have formats of their own; {words}", file=sys.stderr)
        return format or data.format
    return {"_target_": CHAT, **_kept(_tokenizer_file(place))}


def _checked_evaluation(line: CommandLine, asked: Scoring | Harness) -> Scoring | Harness:
    """The request with its rows and its base; raises UserError with all that is wrong with it."""
    place = run_model(asked.model)
    problems = list(evaluation_problems(dataclasses.replace(asked, model=place)))
    run = _evaluated_run(asked.model)
    job: Job | None = None
    with collect_problems(problems):
        if isinstance(asked, Scoring):
            job = _evaluated(line, run)
            asked = dataclasses.replace(asked, job=freeze.as_tree(job))
        if asked.base_model_name_or_path is None and not asked.no_base and run.is_file() and not _adapts(place):
            # a whole model does not say what it was tuned from, and its run does
            base = freeze.read(run, trusted=line.trusted).job.model
            asked = dataclasses.replace(asked, run_base=base.path, run_base_revision=base.revision)
    asked = dataclasses.replace(asked, model=place)
    raise_if_any([*problems, *request_problems(_places(asked), job)])
    return asked


def _evaluated_run(given: str) -> Path:
    """The job of the run, or the one that was pushed; where its folder would have it, if there is none."""
    file = Path(given) / run_folder.JOB
    return file if file.is_file() else fetch_file(HubModel(given), file.name) or file


def _adapts(place: str) -> bool:
    """Whether the weights here, or on the hub, are an adapter's."""
    file = files.user_path(place) / "adapter_config.json"
    return file.is_file() or fetch_file(HubModel(place), file.name) is not None


def _places(asked: Generation | Merge | Parity | Scoring | Harness | Serving | Talk) -> Iterator[tuple[str, HubModel]]:
    """(flag, model) of each model that a request needs: what it asks, and the base of an adapter."""
    given = asked.run if isinstance(asked, Parity) else asked.model
    models = [given] if isinstance(given, str) else list(given)
    yield from (("--model", HubModel(model)) for model in models)
    flag, base_given = "--base_model_name_or_path", asked.base_model_name_or_path
    if base_given is not None:
        yield flag, HubModel(base_given)
        return
    yield from ((flag, base) for base in map(base_of, models) if base is not None)
    if isinstance(asked, Scoring | Harness) and asked.run_base is not None:
        yield flag, HubModel(asked.run_base, asked.run_base_revision)


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
    job_file = _job_of(place)
    typed = tuple(word.key_or_group for word in line.overrides)
    names = [name for name in ASKED_ALIKE if name in format and not any(f"data.format.{name}" in key for key in typed)]
    source = job_file if job_file is not None else _tokenizer_file(place)
    if not names:
        return format
    try:
        trained = _kept(source) if job_file is None else freeze.read(source, trusted=line.trusted).job.data.format
    except UserError as err:
        print(f"fmstune: note: how the model was asked in training is not known ({err})", file=sys.stderr)
        return format
    if trained.get("_target_", CHAT) != format["_target_"]:
        return format
    others = {name: trained[name] for name in names if trained.get(name, format[name]) != format[name]}
    for name, value in others.items():
        print(f"fmstune: note: data.format.{name} is {value}, as in {source}", file=sys.stderr)
    return {**format, **others}


def _job_of(place: str) -> Path | None:
    """The job of the run that the folder belongs to, or that it is, or that was pushed; None where there is none."""
    folders = (files.user_path(place), *list(files.user_path(place).parents)[:2])
    own = next((file for folder in folders if (file := folder / run_folder.JOB).is_file()), None)
    return own or fetch_file(HubModel(place), run_folder.JOB)


def _trained_format(line: CommandLine, place: str) -> dict[str, Any] | None:
    """The data format of the run that the folder belongs to; None where it belongs to none."""
    job_file = _job_of(place)
    return None if job_file is None else freeze.read(job_file, trusted=line.trusted).job.data.format


def _note_bare_text(line: CommandLine, place: str) -> None:
    """Say that texts are asked as they are, where the run trained on texts inside the words of a format."""
    job_file = _job_of(place)
    with suppress(UserError):
        target = job_file and freeze.read(job_file, trusted=line.trusted).job.data.format["_target_"]
        if name := {CHAT: "chat", "fmstune.data.formats.alpaca": "alpaca"}.get(str(target)):
            words = f"--format {name} asks in the words of its training rows"
            print(f"fmstune: note: the model is asked with the bare text; {words}", file=sys.stderr)


def _tokenizer_file(place: str) -> Path:
    """The tokenizer's configuration of a model: here, or of the hub."""
    file = files.user_path(place) / "tokenizer_config.json"
    return file if file.is_file() else fetch_file(HubModel(place), file.name) or file


def _kept(file: Path) -> dict[str, Any]:
    """The settings that a merged or exported folder keeps in its tokenizer's configuration."""
    try:
        values = files.read_json(file)
    except (OSError, ValueError, TypeError):
        return {}
    return {name: values[key] for name, key in ASKED_ALIKE.items() if key in values}


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
