#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Kill runs with SIGKILL at random moments, some while they save, and go on each time; the end must be the same.

`python tools/soak.py --kills 20` does it for full tuning and LoRA, in one process and in two under FSDP: weights and
losses must equal those of an undisturbed run bit for bit. One more run changes from two processes to one at each kill,
where they may differ by 5e-6. Every other kill comes while a checkpoint is being written. The libraries are imported
once: each process is forked from this one, which trains nothing itself.
"""

import argparse
import dataclasses
import gc
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# pyarrow's allocator has a thread of its own, with which a fork can wait for ever
os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")

import torch
from matplotlib.backends import backend_agg
from safetensors.torch import load_file

from fmstune import runner
from fmstune.config import freeze
from fmstune.config.compose import compose_job
from fmstune.config.job import Job
from fmstune.config.overrides import parse_overrides
from fmstune.runs import checkpoints
from fmstune.training import pipeline

COMMON = (
    "++data.max_rows=32",
    "++training.logging_steps=1",
    "++training.save_strategy=steps",
    "++training.save_steps=1",
    "++training.save_total_limit=2",
    "++training.learning_rate=1e-3",
    "++training.gradient_accumulation_steps=1",
    "++training.per_device_train_batch_size=4",
    "++launcher.device=cpu",
    "++launcher.threads=1",
    "evaluation=none",
)
ONE: tuple[str, ...] = ()
TWO = ("launcher=fsdp", "++launcher.num_processes=2")
COPIES = ("launcher=ddp", "++launcher.num_processes=2")
EIGHT = "++training.per_device_train_batch_size=8"
COMBINATIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "full": (("peft=full", *ONE),),
    "lora": (("peft=lora", *ONE),),
    "full-fsdp": (("peft=full", *TWO),),
    "lora-fsdp": (("peft=lora", *TWO),),
    "changing": (("peft=full", *COPIES), ("peft=full", EIGHT)),
}
"""What takes turns: after each kill the next of these goes on."""
TIMED = re.compile("per_second|tflops|mfu|runtime")
"""Figures that no two runs share."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="kills a combination")
    parser.add_argument("--steps", type=int, default=10, help="steps of a run, each with a checkpoint")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(COMBINATIONS)}; all when left out")
    options = parser.parse_args()
    # a forked process need neither import them again nor have its collector look at what is there
    assert pipeline is not None and backend_agg is not None
    gc.freeze()
    print(f"seed {options.seed}")
    chance = random.Random(options.seed)
    failed = [name for name in options.names or COMBINATIONS if not holds(name, options.kills, options.steps, chance)]
    print(f"failed: {', '.join(failed)}" if failed else "all held")
    return int(bool(failed))


def holds(name: str, kills: int, steps: int, chance: random.Random) -> bool:
    """Whether a run that is killed so many times ends as the undisturbed one."""
    with tempfile.TemporaryDirectory(prefix="fmstune-soak-") as folder:
        place = Path(folder)
        os.environ["FMSTUNE_CACHE"] = str(place / "cache")
        turns = [frozen([*words, f"++training.max_steps={steps}"], place / "killed") for words in COMBINATIONS[name]]
        begun = time.monotonic()
        whole = dataclasses.replace(turns[0], output_dir=str(place / "whole"))
        codes = finish(start(whole, place / "log"))
        if any(codes):
            print(f"{name}: the undisturbed run ended with {codes}\n{(place / 'log').read_text()}")
            return False
        seconds = time.monotonic() - begun
        # bit for bit where nothing changes
        alike = partial(ended_alike, place / "whole", place / "killed", 0.0 if len(turns) == 1 else 5e-6)
        saving = 0
        for number in range(kills):
            moment = chance.uniform(0.2, seconds) if number % 2 == 0 else None
            while not killed(turns[number % len(turns)], moment, chance, place / "log"):
                # it came to its end before it could be killed: another one, from the start
                if not alike():
                    print(f"{name}: NOT the same after {number} kills")
                    return False
                shutil.rmtree(place / "killed")
            saving += moment is None
        codes = finish(start(turns[kills % len(turns)], place / "log"))
        ok = not any(codes) and alike()
        end = "the same" if ok else f"NOT the same, ended with {codes}"
        print(f"{name}: {kills} kills, {saving} of them while saving: {end}", flush=True)
        if not ok:
            print((place / "log").read_text())
        return ok


def frozen(words: Sequence[str], folder: Path) -> Job:
    tree = compose_job(parse_overrides([*COMMON, *words])).tree()
    return dataclasses.replace(freeze.freeze(tree).job, output_dir=str(folder))


def processes(job: Job) -> int:
    return job.launcher.num_processes or 1


def start(job: Job, log: Path, dies: int | None = None) -> list[int]:
    """The ranks of a job, as forked processes; the job file is written anew, as the parent does it.

    `dies` kills the first of them at that file of a checkpoint.
    """
    folder = Path(job.output_dir or "")
    folder.mkdir(exist_ok=True)
    (folder / "job.yaml").unlink(missing_ok=True)
    freeze.write(job, folder / "job.yaml")
    port = free_port()
    deaths = [dies, *[None] * (processes(job) - 1)]
    return [forked(lambda rank=rank, dies=dies: runs(job, rank, port, log, dies)) for rank, dies in enumerate(deaths)]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def forked(action: Callable[[], int]) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = action()
        finally:
            os._exit(code)
    return pid


def runs(job: Job, rank: int, port: int, log: Path, dies: int | None) -> int:
    """One rank, in its own process."""
    folder = Path(job.output_dir or "")
    if dies is not None:
        sys.addaudithook(dies_at(dies, folder / checkpoints.SAVING))
    os.environ["OMP_NUM_THREADS"] = "1"
    if processes(job) > 1:
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes(job))}
        os.environ |= {**where, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes(job))}
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    return runner.main([str(folder / "job.yaml")])


def finish(pids: Sequence[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def killed(job: Job, moment: float | None, chance: random.Random, log: Path) -> bool:
    """Start a job and kill all its processes at once, after so many seconds or else while it saves.

    False where the job came to its end before that.
    """
    pids = start(job, log, None if moment is not None else chance.randrange(1, 20))
    end = time.monotonic() + moment if moment is not None else math.inf
    while time.monotonic() < end and not any(map(has_ended, pids)):
        time.sleep(0.001)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return finish(pids)[0] != 0


def dies_at(number: int, folder: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """What kills this process with SIGKILL when it opens or renames something in a folder for the so-manieth time."""
    seen = itertools.count(1)

    def hook(event: str, words: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename") and str(words[0]).startswith(str(folder)) and next(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def has_ended(pid: int) -> bool:
    """Whether a process has ended, which `finish` will still be told."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def ended_alike(whole: Path, other: Path, tolerance: float) -> bool:
    """The same weights, and the same loss at each step."""
    files = [next((folder / "model").glob("*.safetensors"), None) for folder in (whole, other)]
    if None in files:
        return False
    one, two = (load_file(path) for path in files if path is not None)
    weights = one.keys() == two.keys() and all(
        torch.allclose(one[key], two[key], rtol=0, atol=tolerance) for key in one
    )
    pairs = zip(figures(whole), figures(other), strict=True)
    return weights and all(
        name == same and (abs(a - b) <= tolerance * max(abs(a), 1) if loss_like(name) else a == b)
        for (name, a), (same, b) in pairs
    )


def loss_like(name: str) -> bool:
    """Whether a figure may differ as the weights do."""
    return any(word in name for word in ("loss", "grad_norm", "entropy", "accuracy"))


def figures(folder: Path) -> list[tuple[str, float]]:
    """The numbers of every logged step and of the summary, without those of time and memory."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    names = "train_loss steps epochs tokens_trained_on tokens_padded positions padding_share total_parameters"
    logged = [(key, value) for line in lines for key, value in sorted(line.items()) if not TIMED.search(key)]
    return [*logged, *((name, summary[name]) for name in names.split())]


if __name__ == "__main__":
    sys.exit(main())
