# SPDX-License-Identifier: Apache-2.0
"""Parts b and c of the proof on a GPU: the plan against the memory that was allocated, and tokens a second."""

import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_jobs import LIMIT, Failed, Place, needs_field, train

Found = dict[str, Any]
Shapes = list[tuple[int, int]]
"""Of each row: tokens that all rows share at their beginning, and tokens of its own."""
CHILDREN = Path(__file__).with_name("children")
WITHIN = 0.15
"""How far the plan may be from what was allocated on a GPU, as a share of it."""


def child(at: Place, script: str, *argv: object) -> str:
    """Run one of the scripts in `children` and return its output; raises Failed."""
    command = [sys.executable, str(CHILDREN / script), *map(str, argv)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(min(LIMIT * 2, at.left()), 1))
    except subprocess.TimeoutExpired:
        raise Failed(f"{script}: took too long") from None
    if done.returncode:
        raise Failed(f"{script}: {' / '.join(done.stderr.strip().splitlines()[-3:])}")
    return done.stdout


def model(at: Place, shape: str) -> Path:
    """A folder with random weights of this shape; on a CPU a small one."""
    shape = shape if at.on_gpu else "small"
    folder = at.folder / shape
    if not (folder / "config.json").exists():
        child(at, "gpu_model.py", shape, at.device, folder)
    return folder


PLANNED = {
    "lora": ("peft=lora",),
    "lora, checkpointing": ("peft=lora", "training.activation_checkpointing=true"),
    "lora, packing": ("peft=lora", "training.packing=true"),
    "lora, all linear layers": ("peft=lora", "peft.target_modules=all-linear"),
    "lora, float32": ("peft=lora", "model.dtype=float32"),
    "full": ("peft=full",),
    "full, checkpointing": ("peft=full", "training.activation_checkpointing=true"),
    "full, bfloat16": ("peft=full", "model.dtype=bfloat16"),
    "full, 16 rows": ("peft=full", "training.per_device_train_batch_size=16"),
    "dora": ("peft=dora",),
    "prompt tuning": ("peft=prompt_tuning",),
    "rslora, padding_free": ("peft=rslora", "training.padding_free=true"),
}


def planned(at: Place, name: str) -> Found:
    """The plan of a job over what it took; on a CPU the process's memory, without a bar."""
    folder = model(at, "llama_1b")
    own = (f"model.path={folder}", "model=causal_lm", "data.max_length=512", "model.lora_targets=[q_proj, v_proj]")
    found = train(at, f"plan_{name.replace(' ', '_').replace(',', '')}", *own, *PLANNED[name])
    ratio = found["plan"]["total"] / found["peak_memory_bytes"]
    figures = {"planned": found["plan"]["total"], "allocated": found["peak_memory_bytes"], "ratio": round(ratio, 3)}
    if at.on_gpu and abs(ratio - 1) > WITHIN:
        raise Failed(f"planned {figures['planned']:,}, allocated {figures['allocated']:,} bytes: {ratio:.2f} times")
    return figures


@dataclass(frozen=True)
class Speed:
    """One measurement of tokens a second."""

    rows: Callable[[int], Shapes]
    """So many rows."""
    batch: int
    warm: int
    timed: int
    words: tuple[str, ...] = ()
    at_least: float | None = None
    """Tokens a second on an H100."""
    against: str = "trl"
    """`trl` for plain TRL on the same rows, or `padded` for fmstune with padded batches of them."""
    times: float | None = None
    """How many times the other side's tokens a second it should be, at least."""
    field: str | None = None
    """A field of the job that it needs."""


def _full(length: int) -> Callable[[int], Shapes]:
    return lambda count: [(0, length)] * count


def _alpaca(count: int) -> Shapes:
    draw = random.Random(0)
    return [(0, min(max(round(draw.lognormvariate(4.5, 0.7)), 16), 1024)) for _ in range(count)]


def _shared(count: int) -> Shapes:
    return [(512, 48)] * count


CHECKPOINTING = "training.activation_checkpointing=true"
SPEEDS = {
    "2x4096": Speed(_full(4096), 2, 20, 60, at_least=13_000, times=1.15),
    "packed alpaca-like rows": Speed(_alpaca, 1, 5, 20, ("training.packing=true",), against="padded", times=3.0),
    "shared beginnings of 512 tokens": Speed(
        _shared, 16, 5, 20, ("data.prefix_sharing=true",), against="padded", times=4.0, field="data.prefix_sharing"
    ),
    "4x1024": Speed(_full(1024), 4, 10, 40, at_least=11_600, times=1.0),
    "2x4096, checkpointing": Speed(_full(4096), 2, 5, 20, (CHECKPOINTING,), at_least=10_500),
}
"""What is measured, in order of worth."""


def speed(at: Place, name: str) -> Found:
    """Tokens a second of fmstune and of the other side; padding does not count."""
    one = SPEEDS[name]
    if one.field:
        needs_field(one.field)
    warm, timed = (one.warm, one.timed) if at.on_gpu else (1, 2)
    name = f"speed_{name.replace(' ', '_').replace(',', '')}"
    # enough for packs of 4,096 tokens too
    rows, count = at.folder / f"{name}.jsonl", (warm + timed) * max(one.batch, 4) * (40 if one.batch == 1 else 1)
    _write_rows(rows, one.rows(count), 1 if at.on_gpu else 32)
    folder = model(at, "llama2_7b")
    ours = _fmstune(at, name, one, (folder, rows), (warm, timed))
    if one.against == "padded":
        padded = dataclasses.replace(one, batch=4, words=())
        other = _fmstune(at, f"{name}_padded", padded, (folder, rows), (warm, timed))
    else:
        checkpointing = str(CHECKPOINTING in one.words).lower()
        said = child(at, "gpu_trl.py", folder, rows, one.batch, warm, timed, checkpointing, at.device)
        other = float(said.split("tokens_per_second=")[1].split()[0])
    times = round(ours / other, 3)
    found = {"tokens_per_second": ours, f"{one.against}_tokens_per_second": other, "times": times}
    if at.on_gpu and (ours < (one.at_least or 0) or times < (one.times or 0)):
        raise Failed(f"{found}; the bars are {one.at_least or 0:,.0f} tokens/s and {one.times or 0} times")
    return found


def _write_rows(file: Path, shapes: Shapes, smaller: int) -> None:
    draw = random.Random(1)
    shared = [draw.randrange(5, 1500) for _ in range(shapes[0][0])][::smaller]
    with file.open("w", encoding="utf-8") as out:
        for _, own in shapes:
            tail = [draw.randrange(5, 1500) for _ in range(max(own // smaller, 8))]
            row = {"input_ids": shared + tail, "labels": [-100] * len(shared) + tail}
            out.write(json.dumps(row) + "\n")


def _fmstune(at: Place, name: str, one: Speed, given: tuple[Path, Path], steps: tuple[int, int]) -> float:
    (folder, rows), (warm, timed) = given, steps
    more = (
        *("model=causal_lm", f"model.path={folder}", "data=tokenized", f"data.train={rows}", "data.max_length=4096"),
        *("peft=lora", "peft.r=16", "peft.lora_alpha=32", "peft.lora_dropout=0", "peft.target_modules=all-linear"),
        *(f"training.per_device_train_batch_size={one.batch}", "training.train_sampling_strategy=sequential"),
        *("training.learning_rate=1e-4", f"training.logging_steps={warm if timed % warm == 0 else 1}"),
    )
    found = train(at, name, *more, *one.words, steps=warm + timed)
    speeds = [line["tokens_per_second"] for line in found["log"] if line["step"] > warm]
    if not speeds:
        raise Failed("no step was timed")
    return round(len(speeds) / sum(1 / value for value in speeds), 1)
