"""Rows and a checked job → the plan of memory, steps and tokens."""

import itertools
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from fmstune import ranks
from fmstune.checks import resume
from fmstune.checks.data import sharing_problems
from fmstune.checks.memory import Memory, activation_bytes, device_memory, logit_bytes, shared_key_bytes
from fmstune.checks.memory_plan import Plan, plan_work
from fmstune.checks.plan_inputs import Machine, Rows, Sharing, Training, Work, row_count, row_length
from fmstune.config.choices import Auto, Backend, Sharding
from fmstune.config.compare_by import figure
from fmstune.config.job import SFT, SUPERVISED, Job, Launcher, is_sharded, order_seed, text_columns
from fmstune.data.dataset import Prepared
from fmstune.data.prefix_sharing.saved_positions import Savings
from fmstune.data.prefix_sharing.savings import batching_of, estimate_savings
from fmstune.data.scan import CHARACTERS_PER_TOKEN, scan_data
from fmstune.errors import UserError, one_line, raise_if_any
from fmstune.hardware import peak_tflops
from fmstune.launch import subprocesses
from fmstune.models.memory_count.step import (
    FAILURES,
    StepSettings,
    StepShape,
    count_phases,
    expected_bytes,
    largest_phase,
)
from fmstune.runs import run_folder
from fmstune.tables import GIB
from fmstune.training import collate
from fmstune.training.preflight import Checked
from fmstune.training.row_checks import batch_problems, held_out_problems, length_problems, one_batch_problems


def count_rows(job: Job, prepared: Prepared) -> Rows:
    """The training rows of an epoch in numbers, counted; streamed rows are estimated from the first ones."""
    ledger = prepared.ledger
    share = ledger.tokens_trained / max(ledger.tokens_total, 1)
    if prepared.streamed is not None:
        return _streamed_rows(job, ledger.tokens_total / ledger.rows_trained, share)
    return Rows(
        len(prepared.train),
        prepared.epoch_tokens,
        max(ledger.lengths, default=0),
        supervised_share=share,
        lengths=_row_lengths(prepared.train),
        shared=shared_rows(job, prepared.train),
    )


def _row_lengths(train: Any) -> tuple[tuple[int, int], ...]:
    """Lengths of rows with how many have each; empty where a row has several texts."""
    if "input_ids" not in train.column_names:
        return ()
    found, counts = np.unique(collate.lengths(train), return_counts=True)
    return tuple(zip(found.tolist(), counts.tolist(), strict=True))


def shared_rows(job: Job, train: Dataset) -> Savings | None:
    """What the rows save by sharing their beginnings, in the batches of the run."""
    asked = job.data.prefix_sharing
    if not asked or (asked is Auto.auto and any(sharing_problems(job))):
        return None
    return estimate_savings(train, batching_of(job))


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


def make_plan(job: Job, checked: Checked, rows: Rows, prepared: Prepared | None, *, shown: bool = True) -> Plan:
    """The plan; raises UserError when a row does not fit the model. `prepared` is None where rows are estimated.

    A plan that is not `shown` to anybody has its memory by the formulas, as a count takes a second or two.
    """
    names = Training.__dataclass_fields__.keys() & job.training.keys()
    training = Training(
        max_length=job.data.max_length,
        texts_in_row=len(text_columns(job.objective)) or 1,
        frozen_copies=job.objective.frozen_copies,
        scores_vocabulary=job.objective.model_class == SUPERVISED.model_class,
        **{name: job.training[name] for name in names - {"max_length"}},
    )
    problems = [*length_problems(job, checked, rows), *batch_problems(training, rows)]
    sharing = find_sharing(job.launcher)
    problems += one_batch_problems(job, training.per_device_train_batch_size * sharing.processes, rows)
    if prepared is not None:
        problems += held_out_problems(job, checked, prepared)
    raise_if_any(problems)
    machine = Machine(
        checked.device,
        checked.attention,
        checked.precision,
        tflops=find_device_tflops(job.launcher, checked),
        price_per_hour=job.launcher.price_per_hour,
        threads=torch.get_num_threads(),
    )
    work = Work(checked.dimensions, rows, training, machine, sharing)
    batches = cache(partial(find_batches, job, work, prepared))
    if shown and job.objective._target_ == SFT and not training.packing:
        # packs make batches alike
        most_trained = max((batch.supervised for batch in batches()), default=None)
        work = replace(work, rows=replace(rows, most_trained=most_trained))
    counted, reason = count_memory(job, checked, work, batches) if shown else (None, "")
    made = plan_work(work, counted, reason, mfu=reached_mfu(job.output_dir))
    checkpoint = job.training.get("resume")
    if checkpoint not in (None, resume.AUTO) and (done := resume.steps_done(Path(checkpoint))) >= made.total_steps:
        change = "nothing is left to train; raise training.num_train_epochs or training.max_steps"
        raise UserError("training.resume", f": the checkpoint is at step {done:,} of {made.total_steps:,}, so {change}")
    return made


def count_memory(
    job: Job, checked: Checked, work: Work, batches: Callable[[], Collection[StepShape]]
) -> tuple[Memory | None, str]:
    """What a step holds, counted on one without numbers; None, and the reason, where the formulas must do.

    Without a reason where the job is small. The `batches` of the run are asked for only to count.
    """
    if job.objective._target_ != SFT:
        return None, "the loss is not that of supervised fine-tuning"
    formulas = device_memory(work)
    if formulas.total < _WORTH_COUNTING:
        return None, ""
    if job.data.prefix_sharing and work.rows.shared is None:
        return None, "how much of their beginnings rows share is known once they are tokenised"
    if job.model.backend is not Backend.transformers:
        return None, f"the blocks are those of {job.model.backend.value}"
    try:
        held = _count_largest(checked, batches(), _step_settings(job, checked), work)
    except FAILURES as err:
        return None, f"{checked.configuration.model_type} cannot be tried without numbers ({one_line(err)})"
    if checked.device == "cuda":
        # segments attend to beginnings that the counted step has no copies of
        held["activations"] += shared_key_bytes(work)
    counted = formulas.counted(held)
    if _torch_optimizer(job.training, checked.device) is None:
        counted = replace(counted, optimizer=formulas.optimizer)
    if work.dimensions.quantised_parameters:
        counted = replace(counted, weights=formulas.weights)
    if work.sharing.processes > 1 or work.sharing.cpu_offload:
        shared = {part: getattr(formulas, part) for part in ("weights", "gradients", "optimizer")}
        counted = replace(counted, **shared)
    return counted, ""


def largest_batch(work: Work) -> StepShape:
    """The batch that holds most if all of its rows are as long as the longest."""
    t, rows = work.training, work.rows
    if rows.shared is not None:
        largest, accumulated = rows.shared.largest, t.gradient_accumulation_steps > 1
        # a GPU's kernel takes the line whole
        segments = () if work.machine.device == "cuda" else largest.segments
        scored = min(max(largest.trained, 1), largest.positions)
        return StepShape(
            1, largest.positions, scored, padded=False, packed=False, accumulated=accumulated, segments=segments
        )
    length = max(row_length(work) - work.dimensions.virtual_tokens, 2)
    batch = min(t.per_device_train_batch_size, max(row_count(rows, t), 1))
    apart = t.packing or t.padding_free
    flat = _lays_rows_end_to_end(work)
    return StepShape(
        rows=1 if flat else batch,
        positions=batch * length if flat else length,
        supervised=rows.most_trained or max(round(batch * length * rows.supervised_share), 1),
        padded=not (apart or batch == 1),
        packed=apart and work.machine.masks_pairs,
        accumulated=t.gradient_accumulation_steps > 1,
    )


def _lays_rows_end_to_end(work: Work) -> bool:
    """Kernels that are told where documents end take all rows of a batch as one."""
    return work.training.padding_free or (work.training.packing and not work.machine.masks_pairs)


def _count_largest(
    checked: Checked, batches: Collection[StepShape], settings: StepSettings, work: Work
) -> dict[str, int]:
    """Bytes by kind of the batch that holds most: that of the formulas, and the one that its count points to."""
    whole = largest_batch(work)
    position = activation_bytes(work) / (whole.rows * whole.positions)
    token = logit_bytes(work) / whole.supervised
    first = max(batches, key=lambda one: position * one.rows * one.positions + token * one.supervised)
    phases = count_phases(checked.configuration, checked.peft, first, settings)
    most = max(batches, key=partial(expected_bytes, phases, first))
    held = largest_phase(phases)
    if expected_bytes(phases, first, most) < _WORTH_COUNTING_AGAIN * sum(held.values()):
        return held
    again = largest_phase(count_phases(checked.configuration, checked.peft, most, settings))
    return max(held, again, key=lambda one: sum(one.values()))


def find_batches(job: Job, work: Work, prepared: Prepared | None) -> Collection[StepShape]:
    """The batches of the run, each shape once; the largest possible where rows share or are not known."""
    t, whole = work.training, largest_batch(work)
    if prepared is None or work.rows.shared is not None or not isinstance(prepared.train, Dataset):
        return [whole]
    lengths, trained = collate.row_sizes(prepared.train, t.max_length if t.packing else None)
    flat = _lays_rows_end_to_end(work)

    def shape(batch: Any) -> StepShape:
        longest, together = int(lengths[batch].max()), int(lengths[batch].sum())
        return replace(
            whole,
            rows=1 if flat else len(batch),
            positions=max(together if flat else longest, 2),
            supervised=max(int(trained[batch].sum()), 1),
            padded=whole.padded and together < longest * len(batch),
        )

    size = t.per_device_train_batch_size
    orders = _orders(job, lengths, work)
    return {shape(rows[begin : begin + size]) for rows in orders for begin in range(0, len(rows), size)}


_WORTH_COUNTING = GIB // 9
"""Bytes by the formulas; a count takes a second or two, which is much of a smaller job."""
_WORTH_COUNTING_AGAIN = 1.01
"""How much more another batch must be expected to hold than the one that was counted."""
_BATCHES = 20_000
"""Batches that are looked at; of a longer run, the first ones."""


def _orders(job: Job, lengths: Any, work: Work) -> Iterator[Any]:
    """The rows in the order in which each epoch takes them (accelerate 1.15: data_loader.py, SeedableRandomSampler)."""
    t, training = work.training, job.training
    seed = order_seed(job)
    strategy, size = training.get("train_sampling_strategy", "random"), t.per_device_train_batch_size
    batches = t.max_steps * t.gradient_accumulation_steps * work.sharing.processes if t.max_steps >= 0 else None
    left = min(_BATCHES * size, len(lengths) * math.ceil(t.num_train_epochs) if batches is None else batches * size)
    for epoch in itertools.count():
        if strategy == "sequential":
            rows = np.arange(len(lengths))
        elif strategy == "group_by_length":
            rows = np.argsort(-lengths, kind="stable")
        else:
            rows = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed + epoch)).numpy()
        yield rows[:left]
        if (left := left - len(rows)) <= 0:
            return


def _step_settings(job: Job, checked: Checked) -> StepSettings:
    precision, training = checked.precision, job.training
    checkpointing = training.get("activation_checkpointing_kwargs") or {"use_reentrant": False}
    return StepSettings(
        weights=getattr(torch, precision.weights),
        autocast=getattr(torch, precision.autocast) if precision.autocast else None,
        attention=checked.attention,
        cuda=checked.device == "cuda",
        optimizer=_torch_optimizer(training, checked.device) or (torch.optim.AdamW, {}),
        checkpointing=checkpointing if training.get("activation_checkpointing") else None,
    )


def _torch_optimizer(training: dict[str, Any], device: str) -> tuple[Any, dict[str, Any]] | None:
    """Class and arguments of the optimizer; None for one that needs a device or the model, such as bitsandbytes'."""
    own = {name: training[name] for name in ("optim", "optim_args") if name in training}
    try:
        arguments = TrainingArguments(output_dir="unused", use_cpu=True, report_to="none", **own)
        kind, values = Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, TypeError, ValueError, RuntimeError):
        return None
    if not issubclass(kind, torch.optim.Optimizer) or kind.__module__.startswith("bitsandbytes"):
        return None
    if device == "cuda" and kind.__module__.startswith("torch.optim") and not values.get("fused"):
        # torch's choice on CUDA (torch/optim/optimizer.py, `_default_to_fused_or_foreach`)
        values["foreach"] = True
    return kind, values


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


def find_device_tflops(launcher: Launcher, checked: Checked) -> float | None:
    """Dense peak of a device in TFLOP/s, for the dtype that the run computes in; None where it is not known."""
    if launcher.device_tflops is not None or checked.device != "cuda" or not torch.cuda.is_available():
        return launcher.device_tflops
    precision = checked.precision
    return peak_tflops(torch.cuda.get_device_name(), precision.autocast or precision.weights, tf32=precision.tf32)


def reached_mfu(output_dir: str | None) -> float | None:
    """The MFU of a former run in the folder of this one, which is of the same job."""
    # the run itself says what is wrong with a damaged summary
    with suppress(UserError):
        return None if output_dir is None else figure(run_folder.read_summary(Path(output_dir)), "mfu")
    return None


def find_device_bytes(launcher: Launcher, device: str) -> int | None:
    """Memory of a device; a process's share of the machine's on a CPU, None where the device is not here."""
    if launcher.device_gib is not None:
        return round(launcher.device_gib * GIB)
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    return int(psutil.virtual_memory().total) // max(subprocesses.local_processes(launcher), 1)
