"""Memory, steps and tokens of a run, and the table that the terminal shows of them; torch-free."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from fmstune.checks.flops import Speed, missing_peak, plan_speed, sharing_speed, speed_lines
from fmstune.checks.memory import OPTIMIZER_STATES, Memory, device_memory, optimizer_bytes, optimizer_family
from fmstune.checks.plan_inputs import Sharing, Training, Work, batch_positions, positions_scored, row_count, row_length
from fmstune.checks.precision import BYTES
from fmstune.tables import count_of, show_bytes


@dataclass(frozen=True)
class Steps:
    """The arithmetic of `transformers.Trainer`."""

    batches_per_epoch: int
    steps_per_epoch: int
    total_steps: int


@dataclass(frozen=True)
class Plan:
    """What a run will take; `dataclasses.asdict` gives plain values for JSON, `total` included."""

    base_parameters: int
    active_parameters: int
    """Those of the base that compute one token: fewer than all in a mixture of experts."""
    adapter_parameters: int
    trainable_parameters: int
    memory: Memory
    total: int
    """Bytes of `memory` together."""
    rows: int
    """Rows that the trainer sees: with packing, the packed ones (at least that many)."""
    steps_per_epoch: int
    total_steps: int
    tokens_per_epoch: int
    tokens_estimated: bool
    positions_per_step: int
    """Upper bound, padding and virtual tokens included: as if every row were as long as the longest."""
    speed: Speed
    """Model FLOPs, hours and cost."""
    checkpoint_bytes: int
    """Trained parameters and optimizer state, as one checkpoint holds them."""
    counted: bool
    """Memory was counted on a step without numbers; false where formulas estimate it."""
    notes: tuple[str, ...]
    """What the plan assumes and the reader should know."""
    work: Work
    """What it was computed from."""


def plan_values(plan: Plan) -> dict[str, Any]:
    """The plan as plain values for JSON, without what it was computed from."""
    return {name: value for name, value in asdict(plan).items() if name != "work"}


def plan_work(work: Work, counted: Memory | None = None, reason: str = "", mfu: float | None = None) -> Plan:
    """The plan of this work, with the memory that was `counted` of a step, else by the formulas for this `reason`.

    `mfu` is what a former run has reached.
    """
    d, t = work.dimensions, work.training
    rows = row_count(work.rows, t)
    step_counts = count_steps(rows, t, work.sharing.processes)
    held = counted or device_memory(work)
    trained = d.trainable_parameters * BYTES[work.machine.precision.trained]
    return Plan(
        base_parameters=d.base_parameters,
        active_parameters=d.active_parameters,
        adapter_parameters=d.adapter_parameters,
        trainable_parameters=d.trainable_parameters,
        memory=held,
        total=held.total,
        rows=rows,
        steps_per_epoch=step_counts.steps_per_epoch,
        total_steps=step_counts.total_steps,
        tokens_per_epoch=work.rows.tokens,
        tokens_estimated=work.rows.estimated,
        positions_per_step=work.sharing.processes * t.gradient_accumulation_steps * batch_positions(work),
        speed=plan_speed(work, 1 if work.rows.streamed else step_counts.total_steps / step_counts.steps_per_epoch, mfu),
        checkpoint_bytes=trained + optimizer_bytes(t.optim, d, BYTES[work.machine.precision.trained]),
        counted=counted is not None,
        notes=(*([f"memory is estimated by formulas: {reason}"] if reason else ()), *_notes(work)),
        work=work,
    )


def count_steps(rows: int, training: Training, processes: int = 1) -> Steps:
    """Batches and updates as in transformers/trainer.py, `set_initial_training_values` (5.23).

    Processes take turns at the batches; where they do not come out even, accelerate fills up from the first rows, or
    with `dataloader_drop_last` leaves some out (accelerate/data_loader.py, `BatchSamplerShard`). A note says how many.
    """
    t = training
    share = rows / t.per_device_train_batch_size
    whole = math.floor(share) if t.dataloader_drop_last else math.ceil(share)
    batches = whole // processes if t.dataloader_drop_last else math.ceil(whole / processes)
    full, rest = divmod(batches, t.gradient_accumulation_steps)
    updates = max(full + (rest > 0), 1)
    return Steps(batches, updates, t.max_steps if t.max_steps >= 0 else math.ceil(t.num_train_epochs * updates))


def _notes(work: Work) -> Iterator[str]:
    d, t = work.dimensions, work.training
    if t.optim != "adafactor" and optimizer_family(t.optim) not in OPTIMIZER_STATES:
        yield f"the memory of optim={t.optim} is not known here; counted as AdamW in float32"
    if t.packing and work.rows.shared is None:
        yield "packing is counted as perfect: the real number of rows and steps is a little higher"
    if (slower := packing_slowdown(work)) > 1.1:
        name = "packing" if t.packing else "padding_free"
        text = f"training.{name}: {work.machine.attention} scores every position with the {positions_scored(work):,} of"
        text += f" its row, and documents have {_mean_length(work):,.0f}: at least {slower:.1f} times the arithmetic"
        instead = "model.attention=varlen, where the model takes it, computes none of that"
        yield f"{text}; {instead}, and training.train_sampling_strategy=group_by_length pads little"
    if d.missed_experts:
        text = (
            f"the adapter does not reach the experts ({', '.join(d.missed_experts)}), which are parameters, not layers"
        )
        wanted = f"peft.target_parameters=[{','.join(d.missed_experts)}] peft.lora_dropout=0"
        yield f"{text}; {wanted} adapts them too"
    if (missing := missing_peak(work)) is not None:
        yield missing
    if d.max_positions is not None and row_length(work) > d.max_positions:
        yield f"the longest row takes {row_length(work):,} positions, but the model sees {d.max_positions:,}"
    yield from _uneven_epoch(work)
    if (rows := row_count(work.rows, t)) < t.per_device_train_batch_size:
        yield f"training.per_device_train_batch_size is {t.per_device_train_batch_size}, with {count_of(rows, 'row')}"


def _uneven_epoch(work: Work) -> Iterator[str]:
    """Count the rows that an epoch repeats or leaves out; a run that ends within its first epoch does neither.

    Nothing is said where the number of rows is not exact: of a stream, and of packs that are counted as perfect.
    """
    t, processes, rows = work.training, work.sharing.processes, row_count(work.rows, work.training)
    steps = count_steps(rows, t, processes)
    inexact = work.rows.streamed or (t.packing and work.rows.shared is None)
    if inexact or steps.total_steps < steps.steps_per_epoch:
        return
    beyond = steps.batches_per_epoch * processes * t.per_device_train_batch_size - rows
    if t.dataloader_drop_last and beyond < 0:
        yield f"training.dataloader_drop_last leaves {count_of(-beyond, 'row')} out of each epoch"
    if processes > 1 and beyond > 0:
        text = f"each epoch trains {count_of(beyond, 'row')} more than there are"
        yield f"{text}: accelerate fills the last batches of {processes} processes with the first rows of the epoch"


def packing_slowdown(work: Work) -> float:
    """Multiplications of a position in a packed row, by those in a row of its own; 1 without packing.

    In a block, two for each of its parameters, and four for each number of a query and each position that it is scored
    with (Kaplan et al. 2020, arXiv:2001.08361, table 1). FlashAttention and `varlen` pass over what a mask hides.
    """
    d, t = work.dimensions, work.training
    if not (t.packing or t.padding_free) or not work.machine.masks_pairs:
        return 1.0
    linear = 2 * (d.active_parameters - d.vocabulary * d.hidden_size * (1 if d.tied else 2)) / d.layers
    scored = 4 * d.heads * d.head_dim
    return (linear + scored * positions_scored(work)) / (linear + scored * _mean_length(work))


def _mean_length(work: Work) -> float:
    return work.rows.tokens / max(work.rows.rows, 1)


_ON_A_CPU = ("fragmentation", "libraries")
"""Parts of the memory that are known on a CPU only."""


def render_plan(plan: Plan) -> str:
    """The plan as a table for the terminal."""
    t, machine = plan.work.training, plan.work.machine
    share = 100 * plan.trainable_parameters / (plan.base_parameters + plan.adapter_parameters)
    parts = {part: held for part, held in asdict(plan.memory).items() if held or part not in _ON_A_CPU}
    split = ", ".join(f"{part} {show_bytes(held)}" for part, held in parts.items())
    length = "max_steps" if t.max_steps >= 0 else f"{t.num_train_epochs:g} epochs"
    batch = f"{count_of(t.per_device_train_batch_size, 'row')} x {t.gradient_accumulation_steps} accumulated"
    if plan.work.sharing.processes > 1:
        batch += f" x {plan.work.sharing.processes} processes"
    tokens, epoch = f"{plan.tokens_per_epoch:,} an epoch", f"{plan.steps_per_epoch:,} an epoch, "
    if plan.work.rows.streamed:
        tokens, epoch = f"≈ {plan.tokens_per_epoch:,} in all, if they go on like the first rows", ""
    elif plan.tokens_estimated:
        tokens = f"≈ {tokens}, estimated from characters"
    d = plan.work.dimensions
    quantised = f"quantised {d.quantised_parameters:,} of the base, in {show_bytes(d.quantised_bytes)}"
    active = f" ({d.active_parameters:,} active a token)" if d.idle_parameters else ""
    how = "counted" if plan.counted else "estimated"
    lines = [
        ("parameters", f"base {plan.base_parameters:,}{active}, adapter {plan.adapter_parameters:,}"),
        ("", f"trainable {plan.trainable_parameters:,} ({share:.3g} %)"),
        *([("", quantised)] if d.quantised_parameters else []),
        ("precision", f"{machine.precision.describe()}; {machine.attention} attention on {machine.device}"),
        ("", machine.precision.reason),
        ("memory", f"{show_bytes(plan.total)}{_where(plan.work.sharing)}, {how}"),
        ("", split),
        ("steps", f"{plan.total_steps:,} ({length}, {epoch}{batch})"),
        ("tokens", tokens),
        ("", f"at most {plan.positions_per_step:,} positions a step, {_beside_tokens(plan.work)}"),
        *speed_lines(plan.speed, plan.work),
        ("checkpoint", show_bytes(plan.checkpoint_bytes)),
        *(("note", note) for note in plan.notes),
    ]
    return "\n".join(f"{label:<12}{text}" for label, text in lines)


def _beside_tokens(work: Work) -> str:
    """What a step's positions are, and what sharing saves of them."""
    if (shared := work.rows.shared) is None:
        return "padding included"
    about = "≈ " if shared.estimated else ""
    return (
        f"shared beginnings once; {about}{shared.shared:,} an epoch, "
        f"{sharing_speed(work):.2g} times the rows a second of packed rows by arithmetic"
    )


def _where(sharing: Sharing) -> str:
    if sharing.processes == 1 and not sharing.cpu_offload:
        return ""
    how = f", sharded over {sharing.sharded_over}" if sharing.sharded_over > 1 else ""
    return f" on each of {sharing.processes} devices{how}{', shards offloaded' if sharing.cpu_offload else ''}"
