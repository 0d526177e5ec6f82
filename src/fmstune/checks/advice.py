"""Changes that make a plan fit the device, each with its memory; arithmetic, torch-free."""

from collections.abc import Iterator
from dataclasses import replace

from fmstune.checks.memory import device_memory
from fmstune.checks.memory_plan import Plan, plan_work
from fmstune.checks.plan_inputs import Work, row_length
from fmstune.tables import show_bytes


def memory_advice(plan: Plan, device_bytes: int) -> list[str]:
    """The changes that reduce the memory of a plan that does not fit, with the memory of each; empty when it fits."""
    if plan.total <= device_bytes:
        return []
    changes = list(_changes(plan.work, device_bytes))
    advice = [_advice(text, plan_work(work).total, device_bytes) for text, work in changes]
    if not any(plan_work(work).total <= device_bytes for _, work in changes):
        together = _smallest(plan.work)
        advice.append(_advice("all of these, with a batch of 1", plan_work(together).total, device_bytes))
        if plan_work(together).total > device_bytes:
            over = _first_devices(together, device_bytes)
            advice += [_advice(text, plan_work(work).total, device_bytes) for text, work in over]
            advice.append("take a smaller model or a larger device")
    return advice


def _changes(work: Work, device_bytes: int) -> Iterator[tuple[str, Work]]:
    """Each change that would spare memory, in words and as the changed work."""
    t = work.training
    if (batch := _batch_that_fits(work, device_bytes)) < t.per_device_train_batch_size:
        smaller = with_batch(work, batch)
        accumulation = smaller.training.gradient_accumulation_steps
        words = f"training.per_device_train_batch_size={batch}"
        more = f"training.gradient_accumulation_steps={accumulation}"
        yield f"{words} {more} (the same updates)", smaller
    if not t.activation_checkpointing and not work.dimensions.prefix_tokens:
        changed = replace(work, training=replace(t, activation_checkpointing=True))
        yield "training.activation_checkpointing=true (slower by about a third)", changed
    if (length := row_length(work) - work.dimensions.virtual_tokens) > 1:
        yield f"data.max_length={length // 2} (longer rows are cut)", with_max_length(work, length // 2)
    if work.dimensions.adapter_parameters == 0:
        yield "peft=lora (r=8 on queries and values)", with_lora(work)
    yield from _sharing_changes(work, device_bytes)


_MOST_DEVICES = 1024


def _sharing_changes(work: Work, device_bytes: int) -> Iterator[tuple[str, Work]]:
    """More devices, or FSDP on those that there are: for jobs of several processes."""
    sharing = work.sharing
    if sharing.processes == 1:
        return
    if sharing.sharded_over == 1:
        yield (
            "launcher=fsdp (weights shared out)",
            replace(work, sharing=replace(sharing, sharded_over=sharing.processes)),
        )
        return
    if not sharing.cpu_offload and work.machine.device == "cuda":
        yield "launcher.cpu_offload=true (slower)", replace(work, sharing=replace(sharing, cpu_offload=True))
    if work.machine.device != "cuda":
        # processes on the CPU share one memory
        return
    if (over := _sharded_until(work, device_bytes)) is not None:
        yield f"launcher.num_processes={over.sharing.processes} (more devices)", over


def _first_devices(work: Work, device_bytes: int) -> Iterator[tuple[str, Work]]:
    """Several devices for a job that has one."""
    alone = work.sharing.processes == 1 and work.machine.device == "cuda"
    if alone and (over := _sharded_until(work, device_bytes)) is not None:
        yield f"all of these, and launcher=fsdp launcher.num_processes={over.sharing.processes} (more devices)", over


def _sharded_until(work: Work, device_bytes: int) -> Work | None:
    """The same work sharded over as many devices as make it fit; None where none are enough."""
    processes = work.sharing.processes
    while device_memory(over := with_processes(work, processes)).total > device_bytes and processes < _MOST_DEVICES:
        processes *= 2
    return over if device_memory(over).total <= device_bytes else None


def with_processes(work: Work, processes: int) -> Work:
    """The same work sharded over more devices."""
    factor = processes // work.sharing.processes
    over = work.sharing.sharded_over * factor
    return replace(work, sharing=replace(work.sharing, processes=processes, sharded_over=over))


def _batch_that_fits(work: Work, device_bytes: int) -> int:
    """The largest divisor of the batch that fits, else 1."""
    batch = work.training.per_device_train_batch_size
    divisors = [smaller for smaller in range(batch, 0, -1) if batch % smaller == 0]
    return next((b for b in divisors if device_memory(with_batch(work, b)).total <= device_bytes), 1)


def with_batch(work: Work, batch: int) -> Work:
    """The same updates from smaller batches: what the batch loses, accumulation gains."""
    t = work.training
    rows = t.per_device_train_batch_size * t.gradient_accumulation_steps
    changed = replace(t, per_device_train_batch_size=batch, gradient_accumulation_steps=rows // batch)
    return replace(work, training=changed)


def with_max_length(work: Work, max_length: int) -> Work:
    """The same work on rows cut to `max_length`."""
    return replace(work, training=replace(work.training, max_length=max_length))


def with_lora(work: Work) -> Work:
    """LoRA r=8 on queries and values instead of full tuning; the base in the dtype that is computed in."""
    d, precision = work.dimensions, work.machine.precision
    trained = d.layers * 8 * (2 * d.hidden_size + (d.heads + d.kv_heads) * d.head_dim)
    dimensions = replace(
        d,
        adapter_parameters=trained,
        trainable_parameters=trained,
        linear_inputs=d.layers * d.hidden_size,
        linear_inputs_each=2 * d.layers * d.hidden_size,
    )
    lower = replace(precision, weights=precision.autocast or precision.weights, trained="float32")
    return replace(work, dimensions=dimensions, machine=replace(work.machine, precision=lower))


def _smallest(work: Work) -> Work:
    """Every change at once."""
    length = row_length(work) - work.dimensions.virtual_tokens
    changed = with_max_length(with_batch(work, 1), max(length // 2, 1))
    checkpointing = not work.dimensions.prefix_tokens
    changed = replace(changed, training=replace(changed.training, activation_checkpointing=checkpointing))
    return changed if work.dimensions.adapter_parameters else with_lora(changed)


def _advice(change: str, total: int, device_bytes: int) -> str:
    verdict = "fits" if total <= device_bytes else "still too much"
    return f"{change}: {show_bytes(total)}, {verdict}"
