"""Job → the processes that run it: how many, their command and environment (pure), starting and ending with them."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from fmstune import files, hardware
from fmstune.config.choices import Device, Strategy
from fmstune.config.job import Job, Launcher, Slurm, is_sharded
from fmstune.exit_codes import INTERRUPTING, NOTICES
from fmstune.launch import caller, preemption

PARENT = "FMSTUNE_PARENT"
"""Environment variable: the process id without which the runner must not live."""

AGENT = "FMSTUNE_AGENT"
"""Environment variable: set where an agent shows the ranks' errors."""


def local_processes(launcher: Launcher) -> int:
    """Processes on this machine; 0 if the number is not set and no GPU is found."""
    if launcher.strategy is Strategy.single:
        return 1
    if launcher.num_processes is not None:
        return max(launcher.num_processes // max(launcher.num_machines, 1), 1)
    if launcher.slurm is not None:
        return gpus_per_node(launcher.slurm)
    return 0 if launcher.device is Device.cpu else hardware.gpus()


def total_processes(launcher: Launcher) -> int:
    """Processes on all machines; those of other machines are taken to be as many as here."""
    if launcher.num_processes is not None:
        return launcher.num_processes
    return local_processes(launcher) * launcher.num_machines


def gpus_per_node(slurm: Slurm) -> int:
    """How many GPUs of each node are asked for; 0 where none are, or where the number cannot be read."""
    found = re.fullmatch(r"(?:[\w.-]+:)?([1-9]\d*)", slurm.gpus_per_node or "")
    return int(found[1]) if found else 0


def command(job_file: Path, *flags: str) -> list[str]:
    """The runner's command line for a frozen job."""
    return [sys.executable, "-m", "fmstune.runner", str(job_file), *flags]


def commands(job: Job, job_file: Path, *flags: str, prepared: bool = False) -> list[list[str]]:
    """What to run in turn for a job on this machine: one process tokenises the rows for several, unless `prepared`."""
    if job.launcher.strategy is Strategy.single:
        return [command(job_file, *flags)]
    ranks = [*agent_command(job.launcher, job_file), "--", *flags]
    return [ranks] if prepared else [command(job_file, "--prepare", *flags), ranks]


def agent_command(launcher: Launcher, job_file: Path) -> list[str]:
    """The command line of the process that starts this machine's ranks, in the words of `accelerate launch`."""
    machines, wait = launcher.num_machines, launcher.rdzv_timeout
    # instead of the user's default file, which could say anything
    neutral = files.resolve("package:accelerate.yaml")
    # 29500 is torch's own default; 0: accelerate finds a free one
    port = launcher.main_process_port or (29500 if machines > 1 else 0)
    words = [sys.executable, "-m", "fmstune.launch.agent", str(job_file), f"--config_file={neutral}"]
    words += [f"--num_processes={total_processes(launcher)}", f"--num_machines={machines}"]
    # accelerate takes --multi_gpu for two and more only; the runner configures FSDP itself, from the job
    words += [f"--main_process_port={port}", "--use_fsdp" if is_sharded(launcher) else "--multi_gpu"]
    if machines > 1:
        words += [f"--machine_rank={launcher.machine_rank}", f"--main_process_ip={launcher.main_process_ip}"]
        words += ["--rdzv_backend=c10d", f"--rdzv_conf=join_timeout={wait},read_timeout={wait}"]
    return words


_TUNABLES, _MERGE_AT_ONCE = "GLIBC_TUNABLES", "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
"""glibc's malloc keeps no small blocks aside, so that free memory around them merges and holds the next tensor.

With its caches, which a step fills and empties in any order, holes between the tensors of a CPU stay apart. Importing
takes a twentieth longer without them.
"""


def environment(launcher: Launcher, inherited: Mapping[str, str], *, computes: bool = True) -> dict[str, str]:
    """The runner's environment: as many threads as asked, and where it is alone, one device at most in sight.

    `computes` is false for one that only checks a job, shows its rows or compares files.
    """
    env = {**inherited, PARENT: str(os.getpid()), **caller.handed_on()}
    if computes and launcher.device is not Device.cuda:
        env.setdefault(_TUNABLES, _MERGE_AT_ONCE)
    # the parent sets it for itself, to see Hydra's exceptions
    env.pop("HYDRA_FULL_ERROR", None)
    # else huggingface_hub asks its hub about the caller, even for files that are here, and TRL tells it of the run
    env.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    cores = max(hardware.cores() // max(local_processes(launcher), 1), 1)
    env["OMP_NUM_THREADS"] = str(launcher.threads or inherited.get("OMP_NUM_THREADS") or cores)
    if launcher.device is Device.cpu:
        env["CUDA_VISIBLE_DEVICES"] = ""
    elif launcher.strategy is Strategy.single:
        # several GPUs in one process would become nn.DataParallel, which SFTTrainer refuses
        env["CUDA_VISIBLE_DEVICES"] = inherited.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return env


def start(argv: Sequence[str], env: Mapping[str, str], *, talks: bool = False) -> int:
    """Run to the end, hand on Ctrl-C and SIGTERM, and give back the exit code (negative: the signal it died of).

    One that `talks` gets Ctrl-C from the terminal, as often as it is typed, and does not end by it.
    """
    with preemption.kept_back():
        process = subprocess.Popen(argv, env=env)
    return wait_for(process, talks=talks)


def wait_for(process: "subprocess.Popen[bytes]", *, talks: bool = False) -> int:
    """Wait for a process as `start` does for its own."""
    with handing_on(process.send_signal) as seen:
        if talks and sys.stdin.isatty():
            signal.signal(signal.SIGINT, lambda *_: None)
        code = process.wait()
    # killed because somebody insisted: an interruption, and no failure
    return -seen[0] if seen and code == -signal.SIGKILL else code


@contextmanager
def handing_on(send: Callable[[int], None]) -> Iterator[list[int]]:
    """Hand signals on to the runner, which ends in order; a second one that is not a notice kills it. Yields them."""
    seen: list[int] = []

    def hand_on(number: int, _frame: FrameType | None) -> None:
        send(signal.SIGKILL if seen and number not in NOTICES else number)
        if number not in NOTICES:
            seen.append(number)

    former = {number: signal.signal(number, hand_on) for number in (*INTERRUPTING, *NOTICES)}
    try:
        with preemption.kept_back(how=signal.SIG_UNBLOCK):
            yield seen
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
