"""Model FLOPs of a whole run, and the hours and the cost of it: arithmetic, torch-free."""

from dataclasses import dataclass, replace

from fmstune.checks.plan_inputs import Work, pairs_of_row

USUAL_MFU = 0.4
"""Share of a device's peak that training is planned to reach where none was measured: large models on many GPUs reach
38 to 43 % (Llama 3, arXiv:2407.21783, table 4)."""


@dataclass(frozen=True)
class Speed:
    """What a run computes, and how long it takes."""

    flops: float
    """Model FLOPs of the whole run, on all devices together."""
    mfu: float
    """Share of the peak that the devices are taken to reach."""
    mfu_measured: bool
    hours: float | None
    """Of the optimizer steps; null where the peak of a device is not known."""
    cost: float | None
    """Of all devices for these hours; null without `launcher.price_per_hour`."""


def plan_speed(work: Work, epochs: float, mfu: float | None = None) -> Speed:
    """The speed of so many epochs, at the MFU that a former run has reached, else at the usual one."""
    flops, share = epoch_flops(work) * epochs, USUAL_MFU if mfu is None else mfu
    peak, price, devices = work.machine.tflops, work.machine.price_per_hour, work.sharing.processes
    hours = None if peak is None else flops / (devices * peak * 1e12 * share) / 3600
    cost = None if hours is None or price is None else hours * devices * price
    return Speed(flops, share, mfu is not None, hours, cost)


def epoch_flops(work: Work) -> float:
    """Model FLOPs of an epoch's rows: padding does not count, and documents of a packed row see themselves alone.

    Rows whose lengths are not known are taken to be as long as the mean.
    """
    d, rows, texts = work.dimensions, work.rows, work.training.texts_in_row
    before = d.virtual_tokens - d.prefix_tokens
    count = max(rows.rows * texts, 1)
    lengths = rows.lengths or ((round(rows.tokens / count), count),)
    positions = sum((length + before) * count for length, count in lengths)
    pairs: list[float] = [
        sum(count * pairs_of_row(length + before, window) for length, count in lengths) + d.prefix_tokens * positions
        for window in d.flops.windows
    ]
    scored = rows.tokens * rows.supervised_share if work.training.scores_vocabulary else 0
    if rows.shared is not None and positions:
        # a shared beginning has fewer pairs than the rest, which are therefore counted a little low
        pairs = [one * rows.shared.shared / positions for one in pairs]
        positions = rows.shared.shared
    return d.flops.total(positions, scored, pairs, frozen_copies=work.training.frozen_copies)


def sharing_speed(work: Work) -> float:
    """Model FLOPs of the rows alone, by those of the rows that share their beginnings."""
    alone = replace(work, rows=replace(work.rows, shared=None))
    return epoch_flops(alone) / max(epoch_flops(work), 1)


def speed_lines(speed: Speed, work: Work) -> list[tuple[str, str]]:
    """What the plan shows of it: label and text of each line."""
    if not speed.flops:
        return []
    total = f"{show_flops(speed.flops)} of the model, for all steps"
    peak, devices = work.machine.tflops, work.sharing.processes
    if speed.hours is None or peak is None:
        more = "; launcher.device_tflops gives hours" if work.machine.device == "cuda" else ""
        return [("compute", total + more)]
    lines = [("compute", total)]
    how = "as the former run in this folder" if speed.mfu_measured else "assumed"
    each = f"each of {devices} devices" if devices > 1 else "the device"
    lines.append(
        ("time", f"≈ {show_hours(speed.hours)} of steps: MFU {speed.mfu:.1%} ({how}) of {peak:g} TFLOP/s of {each}")
    )
    if speed.cost is not None:
        lines.append(("cost", f"≈ {speed.cost:,.2f}, at {work.machine.price_per_hour:g} an hour and device"))
    return lines


def missing_peak(work: Work) -> str | None:
    """Say which field gives the cost, where a price is given and the peak of the device is not known."""
    if work.machine.price_per_hour is None or work.machine.tflops is not None:
        return None
    peak = "the peak of one device in dense TFLOP/s (989 of an H100 in bfloat16)"
    return f"launcher.price_per_hour gives no cost without launcher.device_tflops, {peak}"


def show_hours(hours: float) -> str:
    """A time as a reader says it: in hours, or in minutes or seconds where it is short."""
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{hours * 60:.1f} minutes" if hours * 60 >= 1 else f"{hours * 3600:.1f} seconds"


def show_flops(flops: float) -> str:
    """Floating-point operations with the prefix that leaves one to three digits before the point."""
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G")):
        if flops >= 10**power:
            return f"{flops / 10**power:,.3g} {prefix}FLOPs"
    return f"{flops / 10**6:,.3g} MFLOPs"
