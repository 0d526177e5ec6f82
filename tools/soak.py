#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Kill runs with SIGKILL at random moments, some while they save, and go on each time; the end must be the same.

`python tools/soak.py --kills 20` does it for full tuning and LoRA, in one process and in two under FSDP: weights and
losses must equal those of an undisturbed run bit for bit. One more run changes from two processes to one at each kill,
where they may differ by 5e-6. The libraries are imported once: each process is forked from this one, which trains
nothing itself.
"""

import argparse
import dataclasses
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from safetensors.torch import load_file

# not used here: a forked process need not import it again
from fmstune import checkpoints, composition, freeze, runner, verbs
from fmstune.job import Job

COMMON = (
    "++data.max_rows=32",
    "++training.max_steps=10",
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="kills a combination")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(COMBINATIONS)}; all when left out")
    options = parser.parse_args()
    assert verbs is not None
    print(f"seed {options.seed}")
    failed = [
        name for name in options.names or COMBINATIONS if not holds(name, options.kills, random.Random(options.seed))
    ]
    print(f"failed: {', '.join(failed)}" if failed else "all held")
    return int(bool(failed))


def holds(name: str, kills: int, chance: random.Random) -> bool:
    """Whether a run that is killed so many times ends as the undisturbed one."""
    with tempfile.TemporaryDirectory(prefix="fmstune-soak-") as folder:
        place = Path(folder)
        os.environ["FMSTUNE_CACHE"] = str(place / "cache")
        turns = [frozen(words, place / "killed") for words in COMBINATIONS[name]]
        begun = time.monotonic()
        whole = dataclasses.replace(turns[0], output_dir=str(place / "whole"))
        if finish(start(whole, place / "log")) != [0] * processes(whole):
            print((place / "log").read_text()[-4000:])
            return False
        seconds = time.monotonic() - begun
        found = [killed(turns[number % len(turns)], chance, seconds, place / "log") for number in range(kills)]
        codes = finish(start(turns[kills % len(turns)], place / "log"))
        # bit for bit where nothing changes
        same = ended_alike(place / "whole", place / "killed", 0.0 if len(turns) == 1 else 5e-6)
        ok = codes == [0] * len(codes) and same
        saving = sum(at == "saving" for at in found)
        print(f"{name}: {kills} kills, {saving} of them while saving: {'the same' if ok else 'NOT the same'}")
        if not ok:
            print((place / "log").read_text()[-4000:])
        return ok


def frozen(words: Sequence[str], folder: Path) -> Job:
    OmegaConf.register_new_resolver("first", lambda *v: next((x for x in v if x is not None), None), replace=True)
    with initialize_config_module("fmstune.conf", version_base="1.3"):
        tree = composition.tree(compose("job", overrides=[*COMMON, *words]))
    return dataclasses.replace(freeze.freeze(tree).job, output_dir=str(folder))


def processes(job: Job) -> int:
    return job.launcher.num_processes or 1


def start(job: Job, log: Path) -> list[int]:
    """The ranks of a job, as forked processes; the job file is written anew, as the parent does it."""
    folder = Path(job.output_dir or "")
    folder.mkdir(exist_ok=True)
    (folder / "job.yaml").unlink(missing_ok=True)
    freeze.write(job, folder / "job.yaml")
    port = free_port()
    return [forked(lambda rank=rank: runs(job, folder, rank, port, log)) for rank in range(processes(job))]


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


def runs(job: Job, folder: Path, rank: int, port: int, log: Path) -> int:
    """One rank, in its own process."""
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


def killed(job: Job, chance: random.Random, seconds: float, log: Path) -> str:
    """Start a job and kill all its processes at once, at any moment or while it saves; at which it was."""
    saving = Path(job.output_dir or "") / checkpoints.SAVING
    pids = start(job, log)
    while_saving = chance.random() < 0.5
    end = time.monotonic() + (3 * seconds if while_saving else chance.uniform(0.2, seconds))
    while time.monotonic() < end and not (while_saving and saving.exists()):
        time.sleep(0.001)
    if while_saving:
        time.sleep(chance.uniform(0, 0.005))
    at = "saving" if saving.exists() else "training"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    finish(pids)
    return at


def ended_alike(whole: Path, other: Path, tolerance: float) -> bool:
    """The same weights, and the same loss at each step."""
    files = [next((folder / "model").glob("*.safetensors"), None) for folder in (whole, other)]
    if None in files:
        return False
    one, two = (load_file(path) for path in files if path is not None)
    weights = one.keys() == two.keys() and all(
        torch.allclose(one[key], two[key], rtol=0, atol=tolerance) for key in one
    )
    return weights and all(abs(a - b) <= tolerance for a, b in zip(losses(whole), losses(other), strict=True))


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


if __name__ == "__main__":
    sys.exit(main())
