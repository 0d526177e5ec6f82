"""The verbs of the runner: how far each one goes down the same pipe."""

import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import filelock
import torch

from fmstune import cache, ranks
from fmstune.checks import resume
from fmstune.checks.advice import memory_advice
from fmstune.checks.memory_plan import Plan, plan_values, render_plan
from fmstune.checks.plan_inputs import Rows
from fmstune.checks.precision import precision_notes
from fmstune.config.job import Job, text_columns
from fmstune.data.dataset import Prepared, prepare_data
from fmstune.data.prefix_sharing.saved_positions import Savings
from fmstune.data.prefix_sharing.savings import batching_of, first_batch
from fmstune.data.prefix_sharing.tree import batch_tree
from fmstune.data.preparation import mark_prepared
from fmstune.data.scan import scan_data
from fmstune.data.show import render_rows, show_tree, write_rows_json, write_rows_page
from fmstune.errors import Problem, UserError, collect_problems, raise_if_any
from fmstune.files import explain_write_errors
from fmstune.launch import caller
from fmstune.models import adapter_targets, architecture, load
from fmstune.models.load import Tokenizer
from fmstune.runs import run_folder
from fmstune.runs.learning_rate import is_rate_open, with_usual_rate
from fmstune.tables import show_bytes
from fmstune.training import planning, preflight, row_checks
from fmstune.training.arguments import training_arguments
from fmstune.training.objectives.base import load_objective
from fmstune.training.preflight import Checked
from fmstune.training.rate_probes.ladder import plan_ladder
from fmstune.training.rate_probes.probes import choose_rate
from fmstune.training.run import train_job


def modules(job: Job) -> int:
    """List what an adapter can target."""
    model = architecture.build_empty(architecture.model_configuration(job.model, job.objective), job.objective)
    print(adapter_targets.render_modules(model, job.model.lora_targets))
    return 0


def check(job: Job) -> int:
    """All that can be known before a weight is read; problems of model and data together."""
    problems: list[Problem] = []
    notes: list[str] = []
    checked: Checked | None = None
    rows: Rows | None = None
    prepared: Prepared | None = None
    with collect_problems(problems):
        checked = preflight.check_job(job, device_here=False)
        _check_arguments(job, checked)
    if job.training.get("resume") not in (None, resume.AUTO):
        with collect_problems(problems):
            notes += resume.choose_checkpoint(job).notes
    with collect_problems(problems, new_fields=True):
        tokenizer = preflight.available_tokenizer(job)
        if tokenizer is None:
            rows = planning.estimate_rows(job)
        else:
            prepared = prepare_data(job.data, tokenizer.tokenizer, job.seed, text_columns(job.objective))
            rows = planning.count_rows(job, prepared)
            problems += row_checks.label_problems(job, prepared, tokenizer)
            checked = preflight.with_tokenizer(job, checked, tokenizer) if checked is not None else None
    raise_if_any(problems)
    assert checked is not None and rows is not None
    job, checked, rows = preflight.settle_sharing(job, checked, rows)
    made = planning.make_plan(job, checked, rows, prepared)
    caller.tell(caller.PLAN, plan_values(made))
    _print_plan(job, made, checked, prepared)
    print("\n".join(["", *(f"note: {note}" for note in notes), "no problems found"]))
    return 0


def _print_plan(job: Job, made: Plan, checked: Checked, prepared: Prepared | None) -> None:
    print(render_plan(made))
    if is_rate_open(job):
        print(plan_ladder(made.total_steps).line())
    for note in (*checked.notes, *precision_notes(checked.precision, checked.peft is not None)):
        print(f"note: {note}")
    available = planning.find_device_bytes(job.launcher, checked.device)
    if available is not None and made.total > available:
        print(f"note: the plan does not fit: {show_bytes(made.total)} of {show_bytes(available)}; what would help:")
        print("\n".join(f"  {change}" for change in memory_advice(made, available)))
    if prepared is not None:
        lines = [
            *prepared.lines(),
            *_sharing_lines(made.work.rows.shared),
            *(f"note: {note}" for note in prepared.notes()),
        ]
        print("\n".join(["", *lines]))


def _sharing_lines(savings: Savings | None) -> list[str]:
    return [] if savings is None else [f"shared  {savings.line()}"]


def show_rows(job: Job, rows: int, json: Path | None, html: Path | None) -> int:
    """Print rows with their masks, and write all of them to `json` and the view to `html` where these are given."""
    tokenizer, prepared = _prepare(job)
    problems: list[Problem] = []
    tree, shared = None, planning.shared_rows(job, prepared.train) if prepared.streamed is None else None
    if shared is not None and rows:
        batch = first_batch(prepared.train, batching_of(job))
        tree = show_tree(batch_tree(prepared.train, batch), tokenizer.tokenizer)
    if json is not None:
        with collect_problems(problems), explain_write_errors("--json", json):
            write_rows_json(prepared, tokenizer.tokenizer, json)
    if html is not None:
        with collect_problems(problems), explain_write_errors("--html", html):
            title = f"Rows of {job.name}"
            write_rows_page(prepared, tokenizer.tokenizer, html, title=title, rows=rows, tree=tree)
    raise_if_any(problems)
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(render_rows(prepared, tokenizer.tokenizer, rows=rows, color=color, tree=tree))
    if lines := _sharing_lines(shared):
        print("", *lines, sep="\n")
    if json or html:
        print("", *(f"wrote {path}" for path in (json, html) if path), sep="\n")
    return 0


def prepare(job: Job) -> int:
    """Check, and tokenise the rows into the cache: what is done once, before several processes start."""
    checked = _checked(job)
    tokenizer, prepared = _prepare(job)
    checked = preflight.with_tokenizer(job, checked, tokenizer)
    job, checked, rows = preflight.settle_sharing(job, checked, planning.count_rows(job, prepared))
    planning.make_plan(job, checked, rows, prepared, shown=False)
    return 0


def train(job: Job, command: str | None = None) -> int:
    """Check, prepare, train; in the run folder that the parent made. `command` is what was typed."""
    if job.output_dir is None:
        raise UserError("output_dir", "must be given when the runner is started by hand")
    with _settled(job) as settled:
        job, checked, tokenizer, prepared, made = settled
        _print_plan(job, made, checked, prepared)
        print(flush=True)
        train_job(job, checked, tokenizer, prepared, made, command)
    return 0


def probe(job: Job) -> int:
    """Check, prepare, and choose the learning rate by short runs; the run folder keeps the choice."""
    with _settled(job) as settled:
        choose_rate(settled.job, settled.checked, settled.tokenizer, settled.prepared, settled.plan)
    return 0


class _Settled(NamedTuple):
    """A job with all that is known and loaded before its model."""

    job: Job
    checked: Checked
    tokenizer: Tokenizer
    prepared: Prepared
    plan: Plan


@contextmanager
def _settled(job: Job) -> Iterator[_Settled]:
    """Check and prepare a job in its run folder, which is this process's until the end."""
    rank = ranks.here()
    with run_folder.lock_folder(Path(str(job.output_dir))) if rank.is_main else nullcontext():
        checked = _checked(job)
        # processes that were started without preparing: one of each machine tokenises
        with filelock.FileLock(cache.place() / ".preparing") if rank.started else nullcontext():
            tokenizer, prepared = _prepare(job)
        raise_if_any(row_checks.label_problems(job, prepared, tokenizer))
        checked = preflight.with_tokenizer(job, checked, tokenizer)
        job, checked, rows = preflight.settle_sharing(job, checked, planning.count_rows(job, prepared))
        made = planning.make_plan(job, checked, rows, prepared, shown=rank.is_main)
        yield _Settled(job, checked, tokenizer, prepared, made)


def _checked(job: Job) -> Checked:
    """The check before a run; where it fails, the rows are checked too, so that one message names all problems."""
    problems: list[Problem] = []
    with collect_problems(problems):
        checked = preflight.check_job(job)
        _check_arguments(job, checked)
        return checked
    with collect_problems(problems, new_fields=True):
        scan_data(job.data, job.seed)
    raise UserError.of(problems)


def _check_arguments(job: Job, checked: Checked) -> None:
    """Raise what TRL refuses; where the device is only planned for, TRL would refuse that it is not there."""
    if checked.device != "cuda" or torch.cuda.is_available():
        usual = with_usual_rate(job)
        arguments = training_arguments(usual, load_objective(job), checked, Path(job.output_dir or "."))
        raise_if_any(preflight.optimizer_problems(arguments))


def _prepare(job: Job) -> tuple[Tokenizer, Prepared]:
    tokenizer = load.load_tokenizer(job.model)
    begun = time.perf_counter()
    prepared = prepare_data(job.data, tokenizer.tokenizer, job.seed, text_columns(job.objective))
    mark_prepared(job)
    return tokenizer, dataclasses.replace(prepared, seconds=round(time.perf_counter() - begun, 3))
