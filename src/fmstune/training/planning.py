"""Rows and a checked job → the plan of memory, steps and tokens."""

from pathlib import Path

import psutil
import torch

from fmstune import ranks
from fmstune.checks import resume
from fmstune.checks.memory_plan import Plan, plan_work
from fmstune.checks.plan_inputs import Machine, Rows, Sharing, Training, Work
from fmstune.config.choices import Sharding
from fmstune.config.job import SUPERVISED, Job, Launcher, is_sharded, text_columns
from fmstune.data.dataset import Prepared
from fmstune.data.scan import CHARACTERS_PER_TOKEN, scan_data
from fmstune.errors import UserError, raise_if_any
from fmstune.launch import subprocesses
from fmstune.tables import GIB
from fmstune.training.preflight import Checked
from fmstune.training.row_checks import batch_problems, held_out_problems, length_problems


def count_rows(job: Job, prepared: Prepared) -> Rows:
    """The training rows of an epoch in numbers, counted; streamed rows are estimated from the first ones."""
    ledger = prepared.ledger
    share = ledger.tokens_trained / max(ledger.tokens_total, 1)
    if prepared.streamed is not None:
        return _streamed_rows(job, ledger.tokens_total / ledger.rows_trained, share)
    return Rows(len(prepared.train), prepared.epoch_tokens, max(ledger.lengths, default=0), supervised_share=share)


def _streamed_rows(job: Job, mean_length: float, share: float) -> Rows:
    """What `max_steps` takes of a stream; any of its rows may be as long as `max_length`."""
    training = job.training
    batch = training.get("per_device_train_batch_size", 8) * training.get("gradient_accumulation_steps", 1)
    rows = training["max_steps"] * batch
    tokens = round(rows * mean_length)
    return Rows(rows, tokens, job.data.max_length, estimated=True, supervised_share=share, streamed=True)


def estimate_rows(job: Job) -> Rows:
    """The training rows in numbers, estimated from characters; the rows are read and formatted all the same."""
    scan = scan_data(job.data, job.seed)
    share = scan.characters_trained / max(scan.characters_total, 1)
    tokens = scan.characters_total / CHARACTERS_PER_TOKEN
    if job.data.streaming:
        return _streamed_rows(job, tokens / max(scan.rows, 1) + 2, share)
    longest = min(round(scan.characters_longest / CHARACTERS_PER_TOKEN) + 2, job.data.max_length)
    return Rows(scan.rows, round(tokens) + 2 * scan.rows, longest, estimated=True, supervised_share=share)


def make_plan(job: Job, checked: Checked, rows: Rows, prepared: Prepared | None) -> Plan:
    """The plan; raises UserError when a row does not fit the model. `prepared` is None where rows are estimated."""
    names = Training.__dataclass_fields__.keys() & job.training.keys()
    training = Training(
        max_length=job.data.max_length,
        texts_in_row=len(text_columns(job.objective)) or 1,
        frozen_copies=job.objective.frozen_copies,
        scores_vocabulary=job.objective.model_class == SUPERVISED.model_class,
        **{name: job.training[name] for name in names - {"max_length"}},
    )
    problems = [*length_problems(job, checked, rows), *batch_problems(training, rows)]
    if prepared is not None:
        problems += held_out_problems(job, checked, prepared)
    raise_if_any(problems)
    machine = Machine(checked.device, checked.attention, checked.precision)
    made = plan_work(Work(checked.dimensions, rows, training, machine, find_sharing(job.launcher)))
    checkpoint = job.training.get("resume")
    if checkpoint not in (None, resume.AUTO) and (done := resume.steps_done(Path(checkpoint))) >= made.total_steps:
        change = "nothing is left to train; raise training.num_train_epochs or training.max_steps"
        raise UserError("training.resume", f": the checkpoint is at step {done:,} of {made.total_steps:,}, so {change}")
    return made


def find_sharing(launcher: Launcher) -> Sharing:
    """How the job's processes share the work, as many as were started or will be."""
    rank = ranks.here()
    processes = rank.processes if rank.started else max(subprocesses.total_processes(launcher), 1)
    if not is_sharded(launcher):
        return Sharing(processes)
    hybrid = launcher.sharding_strategy is Sharding.hybrid_shard
    return Sharing(
        processes,
        sharded_over=max(processes // launcher.num_machines, 1) if hybrid else processes,
        reshard=launcher.sharding_strategy is not Sharding.shard_grad_op,
        cpu_offload=launcher.cpu_offload,
    )


def find_device_bytes(launcher: Launcher, device: str) -> int | None:
    """Memory of a device; a process's share of the machine's on a CPU, None where the device is not here."""
    if launcher.device_gib is not None:
        return round(launcher.device_gib * GIB)
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    return int(psutil.virtual_memory().total) // max(subprocesses.local_processes(launcher), 1)
