#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""What launching costs: time to the first step over bare torchrun, tokens/s of two processes, time to save and resume.

`python benchmarks/launching.py [--repeats 3]` prints a table. All on the CPU with the shipped tiny Llama, so tokens/s
say how much the processes cost each other and nothing about a GPU.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

SCRIPT = str(Path(sys.executable).with_name("fmstune"))
JOB = (
    "launcher.device=cpu",
    "evaluation=none",
    "training.logging_steps=1",
    "training.save_strategy=no",
    "training.gradient_accumulation_steps=1",
)
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "fmstune.runner")
TWO = ("launcher.num_processes=2", "training.per_device_train_batch_size=4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ |= {"FMSTUNE_CACHE": str(Path(folder, "cache")), "OMP_WAIT_POLICY": "passive"}
        launching(repeats)
        speed(repeats)
        saving(repeats)


def launching(repeats: int) -> None:
    """Two processes to their first step: fmstune's own way against torchrun on the same frozen job."""
    words = ("launcher=ddp", *TWO, "training.max_steps=1", "launcher.threads=1", *JOB, "output_dir=run")
    run([SCRIPT, *words])
    job = Path("run/job.yaml").read_text()

    def own() -> float:
        shutil.rmtree("run", ignore_errors=True)
        return first_step([SCRIPT, *words])

    def bare() -> float:
        shutil.rmtree("run", ignore_errors=True)
        Path("run").mkdir()
        Path("run/job.yaml").write_text(job)
        return first_step([sys.executable, *TORCHRUN, "run/job.yaml"])

    own_seconds, bare_seconds = median(own, repeats), median(bare, repeats)
    print(f"to the first step of two processes: {own_seconds:.1f} s, bare torchrun {bare_seconds:.1f} s", end="")
    print(f", ratio {own_seconds / bare_seconds:.2f}", flush=True)


def speed(repeats: int) -> None:
    """Tokens/s with two threads in total and the same rows a step."""
    kinds = {
        "one process": ("launcher=local", "launcher.threads=2", "training.per_device_train_batch_size=8"),
        "ddp, two": ("launcher=ddp", "launcher.threads=1", *TWO),
        "fsdp rehearsal, two": ("launcher=fsdp", "launcher.threads=1", *TWO),
    }
    for name, words in kinds.items():

        def tokens(words: Sequence[str] = words) -> float:
            shutil.rmtree("run", ignore_errors=True)
            run([SCRIPT, *words, *JOB, "training.max_steps=60", "output_dir=run"])
            return float(summary()["tokens_per_second"])

        print(f"{name}: {median(tokens, repeats):,.0f} tokens/s", flush=True)


def saving(repeats: int) -> None:
    """Seconds that a checkpoint adds to a step, and from the command to the first step after a resume."""
    words = ("launcher=local", "launcher.threads=1", *JOB, "training.max_steps=20", "output_dir=run")
    saves = ("training.save_strategy=steps", "training.save_steps=1", "training.save_total_limit=2")

    def seconds(*more: str) -> float:
        shutil.rmtree("run", ignore_errors=True)
        run([SCRIPT, *words, *more])
        return float(summary()["train_seconds"])

    with_checkpoints, without = median(lambda: seconds(*saves), repeats), median(seconds, repeats)
    print(f"a checkpoint: {(with_checkpoints - without) / 20:.3f} s", flush=True)

    def resumed(step: int) -> float:
        shutil.rmtree("run", ignore_errors=True)
        run([SCRIPT, *words, *saves])
        for path in Path("run").glob("checkpoint-*"):
            if int(path.name.rpartition("-")[2]) > step:
                shutil.rmtree(path)
        shutil.rmtree("run/model")
        Path("run/summary.json").write_text('{"status": "running"}')
        return first_step([SCRIPT, *words, *saves], after=step)

    def fresh() -> float:
        shutil.rmtree("run", ignore_errors=True)
        return first_step([SCRIPT, *words, *saves])

    print(
        f"to the first step: fresh {median(fresh, repeats):.1f} s, resumed {median(lambda: resumed(19), repeats):.1f} s"
    )


def first_step(command: Sequence[str], after: int = 0) -> float:
    """Seconds until the step after this one is logged; the run is awaited."""
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not is_logged(after + 1):
        time.sleep(0.02)
    seconds = time.monotonic() - begun
    if process.wait() != 0:
        raise RuntimeError(f"{' '.join(command)} failed")
    return seconds


def is_logged(step: int) -> bool:
    path = Path("run/metrics.jsonl")
    return path.is_file() and f'"step": {step},' in path.read_text()


def run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def summary() -> dict[str, float]:
    found: dict[str, float] = json.loads(Path("run/summary.json").read_text())
    return found


def median(measure: Callable[[], float], repeats: int) -> float:
    return statistics.median(measure() for _ in range(repeats))


if __name__ == "__main__":
    main()
