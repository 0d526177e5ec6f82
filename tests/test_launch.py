"""The runner's command and environment, as text; and a process that ends when it is told to."""

import dataclasses
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from fmstune import freeze, launch
from fmstune.job import Device, Job
from tests.test_freeze import TREE


def job(device: Device = Device.auto, threads: int | None = None) -> Job:
    made = freeze.freeze(TREE).job
    return dataclasses.replace(made, launcher=dataclasses.replace(made.launcher, device=device, threads=threads))


def test_the_runner_is_this_interpreter_on_the_frozen_job() -> None:
    assert launch.command(Path("run/job.yaml"), "--verb=check") == [
        sys.executable,
        "-m",
        "fmstune.runner",
        "run/job.yaml",
        "--verb=check",
    ]


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        (Device.auto, None, "0"),
        (Device.auto, "3,5", "3"),
        (Device.cuda, "2", "2"),
        (Device.auto, "", ""),
        (Device.cpu, "0,1", ""),
    ],
)
def test_one_process_sees_one_device_at_most(device: Device, visible: str | None, expected: str) -> None:
    inherited = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert launch.environment(job(device), inherited)["CUDA_VISIBLE_DEVICES"] == expected


@pytest.mark.parametrize(
    ("threads", "inherited", "expected"),
    [(3, {"OMP_NUM_THREADS": "2"}, "3"), (None, {"OMP_NUM_THREADS": "2"}, "2")],
)
def test_threads_are_the_jobs_else_the_environments(
    threads: int | None, inherited: dict[str, str], expected: str
) -> None:
    assert launch.environment(job(threads=threads), inherited)["OMP_NUM_THREADS"] == expected


def test_threads_are_the_cores_where_nobody_says() -> None:
    assert launch.environment(job(), {})["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))


def test_the_exit_code_of_the_process_is_given_back() -> None:
    assert launch.start([sys.executable, "-c", "raise SystemExit(7)"], os.environ) == 7


def test_a_signal_that_the_process_died_of_is_a_negative_code() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert launch.start([sys.executable, "-c", code], os.environ) == -signal.SIGKILL


def test_sigterm_is_handed_on_and_the_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    threading.Timer(0.7, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    begun = time.monotonic()
    code = launch.start([sys.executable, "-c", "import time; time.sleep(30)"], os.environ)
    assert code == -signal.SIGTERM
    assert time.monotonic() - begun < 10
    assert signal.getsignal(signal.SIGTERM) is before
