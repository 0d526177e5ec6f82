#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""The memory that a job is planned to take, over the memory that it took: 30 jobs, each in its own process."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pairs
from results import Figure, Section, table

SHORT = ("data.max_length=192", "training.per_device_train_batch_size=8")
LONG = ("data.max_length=512", "training.per_device_train_batch_size=4")
PACKED = ("training.packing=true", "data.max_length=512", "training.per_device_train_batch_size=2")
FREE = ("training.padding_free=true", "data.max_length=256", "training.per_device_train_batch_size=4")
CHECKPOINTED = ("training.activation_checkpointing=true",)
ROWS = 24
"""Rows of an epoch, of which a run sees all: so it meets its largest batch."""
STEPS = 8
"""Of each run: the heap of a process grows over the first ones."""
FEW = ("data.max_rows=8", "training.per_device_train_batch_size=2", "data.max_length=256")
"""For the larger models, whose steps take seconds."""


class PlannedJob(NamedTuple):
    """One job: what it is called, the shape of its model, and the words that it is composed from."""

    name: str
    shape: str
    words: tuple[str, ...]


def _jobs() -> Iterator[PlannedJob]:
    lora = ("peft=lora", "peft.target_modules=all-linear")
    methods = {
        "full": ("peft=full",),
        "lora": ("peft=lora",),
        "lora all": lora,
        "dora": ("peft=dora",),
        "pt": ("peft=prompt_tuning",),
    }
    layouts = {"short": SHORT, "long": LONG, "packed": PACKED, "padding_free": FREE}
    wanted = {
        "tiny_llama": (
            *("full short", "full long", "full packed", "full padding_free", "lora short", "lora long"),
            *("lora packed", "lora all long", "pt long", "dora long"),
        ),
        "llama_30m": ("full short", "full long", "lora long", "lora packed", "lora all long", "dora long", "pt long"),
        "llama_135m": ("full short", "full long", "lora short", "lora long", "lora packed", "lora all long"),
        "gpt_bigcode": ("full short", "lora long"),
    }
    for shape, names in wanted.items():
        for name in names:
            method, layout = name.rsplit(" ", 1)
            yield PlannedJob(f"{shape}, {name}", shape, (*methods[method], *layouts[layout]))
    yield PlannedJob("tiny_llama, full long, SGD", "tiny_llama", ("peft=full", *LONG, "training.optim=sgd"))
    yield PlannedJob("llama_30m, full long, checkpointed", "llama_30m", ("peft=full", *LONG, *CHECKPOINTED))
    yield PlannedJob("llama_135m, full long, checkpointed", "llama_135m", ("peft=full", *LONG, *CHECKPOINTED))
    yield PlannedJob("llama_135m, lora long, checkpointed", "llama_135m", (*lora, *LONG, *CHECKPOINTED))
    accumulated = "training.gradient_accumulation_steps=2"
    yield PlannedJob("llama_30m, full short, accumulated", "llama_30m", ("peft=full", *SHORT, accumulated))


JOBS = tuple(_jobs())
QUICK = 6
RUNS = 3
"""Of each job: the peak of one lies up to a twentieth from that of another."""


def measure(*, quick: bool) -> Section:
    """The ratio of plan to measurement of each job, and how many are within a tenth."""
    jobs = JOBS[:: len(JOBS) // QUICK][:QUICK] if quick else JOBS
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for shape in {job.shape for job in jobs}:
            pairs.run(pairs.python("make_model.py", shape, place / shape))
        pairs.run(pairs.python("make_rows.py", ROWS, place / "rows.jsonl"))
        figures = [_figure(job, place, 1 if quick else RUNS) for job in jobs]
    ratios = [figure.value.median for figure in figures]
    near = sum(0.9 <= ratio <= 1.1 for ratio in ratios)
    bars = [
        Figure("share of the jobs within a tenth", pairs.spread([near / len(ratios)]), 0.9, at_least=True),
        Figure("the smallest ratio", pairs.spread([min(ratios)]), 0.95, at_least=True),
    ]
    return Section(
        "The plan's memory",
        f"Planned over measured memory of {len(jobs)} jobs on synthetic rows in the Alpaca shape, random weights, on "
        f"the CPU, {STEPS} steps, {'one run' if quick else f'{RUNS} runs'} of each in processes of their own; the bars "
        "are of the medians. Measured is the peak of resident memory while it trains, less what the "
        "process held before the model was loaded: `peak_memory_bytes` less `memory_before_model_bytes` of "
        "`summary.json`.",
        [*bars, *figures],
    )


def _figure(job: PlannedJob, place: Path, runs: int) -> Figure:
    found = [_run(job, place, place / f"{job.name.replace(' ', '_').replace(',', '')}_{run}") for run in range(runs)]
    planned = found[0].planned
    note = f"{planned / 2**20:,.0f} MiB planned, {median(one.took for one in found) / 2**20:,.0f} MiB taken"
    return Figure(job.name, pairs.spread([one.planned / one.took for one in found]), None, note)


class _Found(NamedTuple):
    """What a run was planned to take, and took, in bytes."""

    planned: int
    took: int


def _run(job: PlannedJob, place: Path, folder: Path) -> _Found:
    argv = pairs.fmstune(
        *("model=causal_lm", f"model.path={place / job.shape}", "data=alpaca", f"data.train={place / 'rows.jsonl'}"),
        *("launcher.device=cpu", "evaluation=none", f"training.max_steps={STEPS}", "training.save_strategy=no"),
        *("training.gradient_accumulation_steps=1", "training.learning_rate=1e-4", "training.warmup_steps=0"),
        *("data.eval=null", "data.untrainable=drop", f"output_dir={folder}", *job.words),
        *(FEW if job.shape == "llama_135m" else ()),
    )
    pairs.run(argv, env={"FMSTUNE_CACHE": str(place / "cache")})
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    took = summary["peak_memory_bytes"] - summary["memory_before_model_bytes"]
    found = _Found(summary["plan"]["total"], took)
    if "BENCH_VERBOSE" in os.environ:
        parts = {part: round(held / 2**20, 1) for part, held in summary["plan"]["memory"].items()}
        print(f"{found.planned / took:.3f} {job.name}: {took / 2**20:,.0f} {parts}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    print(table(measure(quick="--quick" in sys.argv)))
