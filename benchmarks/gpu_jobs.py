# SPDX-License-Identifier: Apache-2.0
"""Jobs of the proof on a GPU: a command of fmstune in a folder of its own, with a limit, and what it left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmstune.config.job import Data, Model

LIMIT = 150
"""Seconds that one command may take on a GPU; a CPU is given four times as many."""


class Failed(Exception):
    """What was measured is not what it must be, or the command failed; the text says which.

    `figures` are what was measured all the same.
    """

    def __init__(self, text: str, figures: Mapping[str, Any] | None = None) -> None:
        super().__init__(text)
        self.figures = dict(figures or {})


class Skipped(Exception):
    """It cannot run here; the text says why."""


class OutOfTime(Failed):
    """The proof's time ended before this did."""


@dataclass(frozen=True)
class Place:
    """Where the proof runs."""

    device: str
    """`cuda` or `cpu`."""
    folder: Path
    """Everything is written below it."""
    ends: float
    """When the proof must be over, by `time.monotonic`."""

    @property
    def on_gpu(self) -> bool:
        """Whether sizes are those of a GPU."""
        return self.device == "cuda"

    def left(self) -> float:
        """Seconds that are left."""
        return self.ends - time.monotonic()


def needs_gpu(at: Place, why: str) -> None:
    """Raise Skipped on a CPU."""
    if not at.on_gpu:
        raise Skipped(f"needs a CUDA device: {why}")


def needs_field(field: str) -> None:
    """Raise Skipped where this fmstune has no such field of the job."""
    group, _, name = field.partition(".")
    if name not in {"model": Model, "data": Data}[group].__dataclass_fields__:
        raise Skipped(f"this fmstune has no field {field}")


def words(at: Place, name: str, *more: str, steps: int = 4) -> list[str]:
    """The words of a small training job: the shipped model and rows, few steps, no evaluation."""
    own = {
        "output_dir": str(at.folder / name),
        "launcher.device": at.device,
        "evaluation": "none",
        "training.max_steps": steps,
        "training.per_device_train_batch_size": 4,
        "training.gradient_accumulation_steps": 1,
        "training.warmup_steps": 0,
        "training.save_strategy": "no",
        "training.logging_steps": 1,
    }
    given = {word.partition("=")[0] for word in more}
    return ["train", *(f"{key}={value}" for key, value in own.items() if key not in given), *more]


def start(at: Place, name: str, argv: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a command of fmstune; its output goes into NAME.log."""
    (at.folder / f"{name}.log").parent.mkdir(parents=True, exist_ok=True)
    with (at.folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "fmstune", *argv],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "FMSTUNE_CACHE": str(at.folder / "cache")},
            start_new_session=True,
        )


def run(at: Place, name: str, argv: Sequence[str], limit: float = LIMIT) -> str:
    """Run a command of fmstune to its end and return its output; raises Failed with its last lines."""
    return finish(at, name, start(at, name, argv), limit)


def finish(at: Place, name: str, process: subprocess.Popen[bytes], limit: float = LIMIT) -> str:
    """Wait for a command and return its output; raises Failed where it fails or takes too long, or OutOfTime."""
    wait(at, name, process, limit)
    text = (at.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
    if process.returncode:
        raise Failed(f"{name}: exit code {process.returncode}: {last_lines(text)}")
    return text


def wait(at: Place, name: str, process: subprocess.Popen[bytes], limit: float = LIMIT) -> None:
    """Wait for a process that leads a group; past the limit all of the group are killed."""
    limit, left = limit * (1 if at.on_gpu else 4), max(at.left(), 1)
    try:
        process.wait(min(limit, left))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if left < limit:
            raise OutOfTime(f"{name}: stopped after {left:.0f} s, as the time of the proof was over") from None
        raise Failed(f"{name}: stopped after {limit:.0f} s") from None


def last_lines(text: str) -> str:
    """The end of an output, as one line."""
    return " / ".join(text.strip().splitlines()[-3:])


def train(at: Place, name: str, *more: str, steps: int = 4, limit: float = LIMIT) -> dict[str, Any]:
    """Train a small job and return its summary, with the logged steps under `log`; raises Failed."""
    run(at, name, words(at, name, *more, steps=steps), limit)
    return summary(at, name)


def summary(at: Place, name: str) -> dict[str, Any]:
    """The summary of a run, with the logged steps under `log`."""
    found: dict[str, Any] = json.loads((at.folder / name / "summary.json").read_text(encoding="utf-8"))
    return {**found, "log": logged(at, name)}


def logged(at: Place, name: str) -> list[dict[str, Any]]:
    """The steps that a run has logged so far."""
    file = at.folder / name / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [line for line in map(json.loads, lines) if "loss" in line]


def furthest(one: dict[str, Any], other: dict[str, Any], key: str) -> float:
    """The largest relative difference of a logged figure between two runs, step by step; raises Failed."""
    pairs = list(zip(one["log"], other["log"], strict=True))
    if not pairs:
        raise Failed("no step was logged")
    return max(abs(a[key] - b[key]) / max(abs(b[key]), 1e-12) for a, b in pairs)
