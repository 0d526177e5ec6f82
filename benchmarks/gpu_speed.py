# SPDX-License-Identifier: Apache-2.0
"""Parts b and c of the proof on a GPU: the plan against the memory that was allocated, and tokens a second."""

import dataclasses
import importlib.util
import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from fmstune.hardware import peak_tflops
from gpu_jobs import LIMIT, Failed, Place, Skipped, last_lines, logged, needs_field, train, wait

Found = dict[str, Any]
Shapes = list[tuple[int, int]]
"""Of each row: tokens that all rows share at their beginning, and tokens of its own."""
CHILDREN = Path(__file__).with_name("children")
WITHIN = 0.15
"""How far the plan may be from what was allocated on a GPU, as a share of it."""


def child(at: Place, script: str, *argv: object, limit: float = LIMIT) -> str:
    """Run one of the scripts in `children` and return its output; raises Failed or OutOfTime."""
    log, command = at.folder / f"{Path(script).stem}.log", [sys.executable, str(CHILDREN / script), *map(str, argv)]
    with log.open("w+", encoding="utf-8") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        wait(at, script, process, limit)
        out.seek(0)
        text = out.read()
    if process.returncode:
        raise Failed(f"{script}: exit code {process.returncode}: {last_lines(text)}")
    return text


MODELS = {"speed": "llama2_7b", "plan": "llama_1b"}
"""The model of each part."""
_making = threading.Lock()
_unmade: dict[Path, Failed] = {}


def model(at: Place, shape: str) -> Path:
    """A folder with random weights of this shape, made once; on a CPU a small one. Raises Failed each time."""
    shape = shape if at.on_gpu else "small"
    folder = at.folder / shape
    with _making:
        if folder in _unmade:
            raise _unmade[folder]
        if not folder.exists():
            try:
                child(at, "gpu_model.py", shape, at.device, at.folder / f"{shape}.part")
            except Failed as err:
                _unmade[folder] = err
                raise
            (at.folder / f"{shape}.part").rename(folder)
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
    """The plan of a job over what it took; on a CPU that of the process since the model was loaded, without a bar."""
    folder = model(at, MODELS["plan"])
    own = (f"model.path={folder}", "model=causal_lm", "data.max_length=512", "model.lora_targets=[q_proj, v_proj]")
    found = train(at, f"plan_{name.replace(' ', '_').replace(',', '')}", *own, *PLANNED[name])
    plan = found["plan"]["total"]
    allocated = found["peak_memory_bytes"] - (0 if at.on_gpu else found["memory_before_model_bytes"])
    ratio = plan / allocated
    figures = {"planned": plan, "allocated": allocated, "ratio": round(ratio, 3)}
    if at.on_gpu and abs(ratio - 1) > WITHIN:
        raise Failed(f"the plan is {ratio:.2f} times what was allocated, and may differ by {WITHIN:.0%}", figures)
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
    on_gpu: tuple[str, ...] = ()
    """Words for a GPU alone."""
    at_least: float | None = None
    """Tokens a second on an H100."""
    against: str | None = "trl"
    """`trl` for plain TRL on the same rows, `padded` for fmstune with padded batches of them, or nothing."""
    times: float | None = None
    """How many times the other side's tokens a second it should be, at least."""
    field: str | None = None
    """A field of the job that it needs."""
    package: str | None = None
    """A package that it needs on a GPU."""


def _full(length: int) -> Callable[[int], Shapes]:
    return lambda count: [(0, length)] * count


def _alpaca(count: int) -> Shapes:
    draw = random.Random(0)
    return [(0, min(max(round(draw.lognormvariate(4.5, 0.7)), 16), 1024)) for _ in range(count)]


def _shared(count: int) -> Shapes:
    return [(512, 48)] * count


CHECKPOINTING = "training.activation_checkpointing=true"
LIGER = ("model.kernels=liger",)
SPEEDS = {
    "2x4096 with Liger": Speed(
        _full(4096), 2, 20, 60, on_gpu=LIGER, package="liger_kernel", at_least=13_000, times=1.15
    ),
    "packed alpaca-like rows": Speed(_alpaca, 1, 5, 20, ("training.packing=true",), against="padded", times=3.0),
    "shared beginnings of 512 tokens": Speed(
        _shared, 16, 5, 20, ("data.prefix_sharing=true",), against="padded", times=4.0, field="data.prefix_sharing"
    ),
    "4x1024 with Liger": Speed(
        _full(1024), 4, 10, 30, on_gpu=LIGER, package="liger_kernel", at_least=11_600, against=None
    ),
    "2x4096 with checkpointing and Liger": Speed(
        *(_full(4096), 2, 5, 15, (CHECKPOINTING,)), on_gpu=LIGER, package="liger_kernel", at_least=10_500, against=None
    ),
    "2x4096 with the kernels of transformers": Speed(_full(4096), 2, 5, 15, against=None),
    "2x4096, compiled": Speed(_full(4096), 2, 5, 15, on_gpu=("training.torch_compile=true",), against=None),
}
"""What is measured, in order of worth."""
LIMIT_OF_A_SIDE = 200
"""Seconds that one side of a measurement may take on a GPU."""


def speed(at: Place, name: str) -> Found:
    """Tokens a second of fmstune and of the other side; padding does not count."""
    one = SPEEDS[name]
    if one.field:
        needs_field(one.field)
    if at.on_gpu and one.package and importlib.util.find_spec(one.package) is None:
        raise Skipped(f"the package {one.package} is not installed")
    warm, timed = (one.warm, one.timed) if at.on_gpu else (1, 2)
    run = f"speed_{name.replace(' ', '_').replace(',', '')}"
    # enough for packs of 4,096 tokens too
    rows, count = at.folder / f"{run}.jsonl", (warm + timed) * max(one.batch, 4) * (40 if one.batch == 1 else 1)
    _write_rows(rows, one.rows(count), 1 if at.on_gpu else 32)
    given, steps = (model(at, MODELS["speed"]), rows), (warm, timed)
    ours = _fmstune(at, run, one, given, steps)
    found: Found = {"tokens_per_second": ours, **_share_of_peak(at, ours, one.rows(8))}
    if one.against:
        try:
            other = _other(at, run, one, given, steps)
        except Failed as err:
            raise type(err)(f"the other side: {err}", found) from err
        found |= {f"{one.against}_tokens_per_second": other, "times": round(ours / other, 3)}
    if at.on_gpu and (ours < (one.at_least or 0) or found.get("times", 0) < (one.times or 0)):
        raise Failed(f"the bars are {one.at_least or 0:,.0f} tokens/s and {one.times or 0} times", found)
    return found


def _other(at: Place, run: str, one: Speed, given: tuple[Path, Path], steps: tuple[int, int]) -> float:
    """Tokens a second of the other side."""
    if one.against == "padded":
        padded = dataclasses.replace(one, batch=4, words=())
        return _fmstune(at, f"{run}_padded", padded, given, steps)
    said = child(at, "gpu_trl.py", *given, one.batch, *steps, at.device, limit=LIMIT_OF_A_SIDE)
    return float(said.split("tokens_per_second=")[1].split()[0])


def _share_of_peak(at: Place, tokens_per_second: float, rows: Shapes) -> Found:
    """Model FLOPs utilisation of LoRA, of rows of one length that share nothing, on a card that is known."""
    peak = peak_tflops(torch.cuda.get_device_name(), "bfloat16") if at.on_gpu else None
    if peak is None or len(set(rows)) > 1 or rows[0][0]:
        return {}
    config = LlamaConfig.from_pretrained(at.folder / MODELS["speed"])
    return {"share_of_peak": round(tokens_per_second * lora_flops(config, rows[0][1]) / peak / 1e12, 3)}


def lora_flops(config: LlamaConfig, length: int) -> int:
    """Products of a token of a row of this length, as twice as many operations; those of the adapter are left out.

    Each weight is multiplied forward, and backward for the gradient of its input alone. Attention is causal, so that a
    token sees half a row, and takes twice as much backward as forward.
    """
    layers, hidden = config.num_hidden_layers, config.hidden_size
    weights = layers * (4 * hidden**2 + 3 * hidden * config.intermediate_size) + hidden * config.vocab_size
    return int(4 * weights + 3 * 2 * layers * hidden * length)


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
    more += one.words + (one.on_gpu if at.on_gpu else ())
    try:
        train(at, name, *more, steps=warm + timed, limit=LIMIT_OF_A_SIDE)
    except Failed as err:
        if speeds := _speeds(at, name, warm):
            raise type(err)(str(err), {"tokens_per_second_until_then": _mean(speeds)}) from err
        raise
    if not (speeds := _speeds(at, name, warm)):
        raise Failed("no step was timed")
    return _mean(speeds)


def _speeds(at: Place, name: str, warm: int) -> list[float]:
    """Tokens a second of each window that was logged after the warm-up."""
    return [line["tokens_per_second"] for line in logged(at, name) if line["step"] > warm]


def _mean(speeds: list[float]) -> float:
    """Of windows of as many tokens."""
    return round(len(speeds) / sum(1 / value for value in speeds), 1)
