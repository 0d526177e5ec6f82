"""Job → the process that runs it: its command and environment (pure), and starting it and ending with it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from fmstune.job import Device, Job
from fmstune.run_folder import INTERRUPTING

PARENT = "FMSTUNE_PARENT"
"""Environment variable: the process id without which the runner must not live."""


def command(job_file: Path, *flags: str) -> list[str]:
    """The runner's command line for a frozen job."""
    return [sys.executable, "-m", "fmstune.runner", str(job_file), *flags]


def doctor_command(*, clear_cache: bool) -> list[str]:
    """The command line of `fmstune doctor`, which imports torch and so has a process of its own."""
    return [sys.executable, "-m", "fmstune.doctor", *(["--clear-cache"] if clear_cache else [])]


def environment(job: Job, inherited: Mapping[str, str]) -> dict[str, str]:
    """The runner's environment: as many threads as asked, and one device at most in sight."""
    return environment_of(job.launcher.device, job.launcher.threads, inherited)


def environment_of(device: Device, threads: int | None, inherited: Mapping[str, str]) -> dict[str, str]:
    """The same for a runner that has no job."""
    env = {**inherited, PARENT: str(os.getpid())}
    # the parent sets it for itself, to see Hydra's exceptions
    env.pop("HYDRA_FULL_ERROR", None)
    env["OMP_NUM_THREADS"] = str(threads or inherited.get("OMP_NUM_THREADS") or cores())
    if device is Device.cpu:
        env["CUDA_VISIBLE_DEVICES"] = ""
    else:
        # several GPUs in one process would become nn.DataParallel, which SFTTrainer refuses
        env["CUDA_VISIBLE_DEVICES"] = inherited.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return env


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def start(argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Run to the end, hand on Ctrl-C and SIGTERM, and give back the exit code (negative: the signal it died of)."""
    process = subprocess.Popen(argv, env=env)
    with _handing_on(process) as seen:
        code = process.wait()
    # killed because somebody insisted: an interruption, and no failure
    return -seen[0] if seen and code == -signal.SIGKILL else code


@contextmanager
def _handing_on(process: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """While waiting, signals to this process reach the runner, which ends in order; a second one kills it.

    Gives the signals that came.
    """
    seen: list[int] = []

    def hand_on(number: int, _frame: FrameType | None) -> None:
        if seen:
            process.kill()
        else:
            process.send_signal(number)
        seen.append(number)

    former = {number: signal.signal(number, hand_on) for number in INTERRUPTING}
    try:
        yield seen
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
