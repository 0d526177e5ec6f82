"""Changes that make a plan fit the device, each with its memory; arithmetic, torch-free."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fmstune.checks.memory import device_memory
from fmstune.checks.memory_plan import Plan
from fmstune.checks.plan_inputs import Work, row_length
from fmstune.tables import show_bytes


def memory_advice(plan: Plan, device_bytes: int) -> list[str]:
    """The changes that reduce the memory of a plan that does not fit, with the memory of each; empty when it fits."""
    if plan.total <= device_bytes:
        return []
    # changes are computed by formulas, which a count of the job as it is has corrected by so much
    moved = plan.total - device_memory(plan.work).total
    device_bytes -= moved
    changes = dict(_changes(plan.work, device_bytes))
    is_last = False
    if not any(_fits(work, device_bytes) for work in changes.values()):
        together = changes["all of these, with a batch of 1"] = _smallest(plan.work)
        is_last = not _fits(together, device_bytes)
        alone = together.sharing.processes == 1 and together.machine.device == "cuda"
        if is_last and alone and (over := _sharded_until(together, device_bytes)) is not None:
            words = f"launcher=fsdp launcher.num_processes={over.sharing.processes}"
            changes[f"all of these, and {words} (more devices)"] = over
    totals = {text: device_memory(work).total for text, work in changes.items()}
    verdicts = {text: "fits" if total <= device_bytes else "still too much" for text, total in totals.items()}
    advice = [f"{text}: {show_bytes(max(total + moved, 0))}, {verdicts[text]}" for text, total in totals.items()]
    return [*advice, "take a smaller model or a larger device"] if is_last else advice


def _fits(work: Work, device_bytes: int) -> bool:
    return device_memory(work).total <= device_bytes


def _changes(work: Work, device_bytes: int) -> Iterator[tuple[str, Work]]:
    """Each change that would spare memory, in words and as the changed work."""
    t, most = work.training, work.training.per_device_train_batch_size
    # all divisors of a batch of up to 16 million rows
    small = [batch for batch in range(1, min(most, 4096) + 1) if most % batch == 0]
    divisors = sorted({*small, *(most // batch for batch in small)}, reverse=True)
    batch = next((one for one in divisors if _fits(with_batch(work, one), device_bytes)), 1)
    if batch < most:
        smaller = with_batch(work, batch)
        more = f"training.gradient_accumulation_steps={smaller.training.gradient_accumulation_steps}"
        yield f"training.per_device_train_batch_size={batch} {more} (the same updates)", smaller
    if not t.activation_checkpointing and not work.dimensions.prefix_tokens:
        changed = _with_training(work, activation_checkpointing=True)
        yield "training.activation_checkpointing=true (slower by about a third)", changed
    if (length := row_length(work) - work.dimensions.virtual_tokens) > 1:
        yield f"data.max_length={length // 2} (longer rows are cut)", _with_training(work, max_length=length // 2)
    if work.dimensions.adapter_parameters == 0:
        yield "peft=lora (r=8 on queries and values)", with_lora(work)
    yield from _sharing_changes(work, device_bytes)


def _sharing_changes(work: Work, device_bytes: int) -> Iterator[tuple[str, Work]]:
    """More devices, or FSDP on those that there are: for jobs of several processes."""
    sharing = work.sharing
    if sharing.processes > 1 and sharing.sharded_over == 1:
        sharded = replace(sharing, sharded_over=sharing.processes)
        yield "launcher=fsdp (weights shared out)", replace(work, sharing=sharded)
    elif sharing.processes > 1 and work.machine.device == "cuda":  # processes on the CPU share one memory
        if not sharing.cpu_offload:
            yield "launcher.cpu_offload=true (slower)", replace(work, sharing=replace(sharing, cpu_offload=True))
        if (over := _sharded_until(work, device_bytes)) is not None:
            yield f"launcher.num_processes={over.sharing.processes} (more devices)", over


def _sharded_until(work: Work, device_bytes: int) -> Work | None:
    """The same work sharded over as many devices, below 2048, as make it fit; None where none are enough."""
    sharing, factor = work.sharing, 1
    while sharing.processes * factor < 2048:
        more = replace(sharing, processes=sharing.processes * factor, sharded_over=sharing.sharded_over * factor)
        if _fits(over := replace(work, sharing=more), device_bytes):
            return over
        factor *= 2
    return None


def with_batch(work: Work, batch: int) -> Work:
    """The same updates from smaller batches: what the batch loses, accumulation gains."""
    t = work.training
    rows = t.per_device_train_batch_size * t.gradient_accumulation_steps
    return _with_training(work, per_device_train_batch_size=batch, gradient_accumulation_steps=rows // batch)


def _with_training(work: Work, **changes: Any) -> Work:
    return replace(work, training=replace(work.training, **changes))


def with_lora(work: Work) -> Work:
    """LoRA r=8 on queries and values instead of full tuning; the base in the dtype that is computed in."""
    d, precision = work.dimensions, work.machine.precision
    trained = d.layers * 8 * (2 * d.hidden_size + (d.heads + d.kv_heads) * d.head_dim)
    read = d.layers * d.hidden_size
    dimensions = replace(
        d, adapter_parameters=trained, trainable_parameters=trained, linear_inputs=read, linear_inputs_each=2 * read
    )
    lower = replace(precision, weights=precision.autocast or precision.weights, trained="float32")
    return replace(work, dimensions=dimensions, machine=replace(work.machine, precision=lower))


def _smallest(work: Work) -> Work:
    length = max((row_length(work) - work.dimensions.virtual_tokens) // 2, 1)
    checkpointing = not work.dimensions.prefix_tokens
    changed = _with_training(with_batch(work, 1), max_length=length, activation_checkpointing=checkpointing)
    return changed if work.dimensions.adapter_parameters else with_lora(changed)
