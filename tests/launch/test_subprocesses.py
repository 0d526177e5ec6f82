"""The runner's command and environment, as text; and a process that ends when it is told to."""

import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fmstune import hardware
from fmstune.config import freeze
from fmstune.config.choices import Device
from fmstune.config.job import Job
from fmstune.launch import subprocesses
from tests.config.test_freeze import TREE, tree


def job(device: Device = Device.auto, threads: int | None = None) -> Job:
    made = freeze.freeze(TREE).job
    return dataclasses.replace(made, launcher=dataclasses.replace(made.launcher, device=device, threads=threads))


def test_the_runner_is_this_interpreter_on_the_frozen_job() -> None:
    assert subprocesses.command(Path("run/job.yaml"), "--verb=check") == [
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
    assert subprocesses.environment(job(device).launcher, inherited)["CUDA_VISIBLE_DEVICES"] == expected


@pytest.mark.parametrize(
    ("threads", "inherited", "expected"), [(3, {"OMP_NUM_THREADS": "2"}, "3"), (None, {"OMP_NUM_THREADS": "2"}, "2")]
)
def test_threads_are_the_jobs_else_the_environments(
    threads: int | None, inherited: dict[str, str], expected: str
) -> None:
    assert subprocesses.environment(job(threads=threads).launcher, inherited)["OMP_NUM_THREADS"] == expected


def test_the_hub_is_told_of_a_run_where_the_user_asks_for_it() -> None:
    given = {"HF_HUB_DISABLE_TELEMETRY": "0"}
    assert subprocesses.environment(job().launcher, {})["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert subprocesses.environment(job().launcher, given)["HF_HUB_DISABLE_TELEMETRY"] == "0"


def test_threads_are_the_cores_where_nobody_says() -> None:
    assert subprocesses.environment(job().launcher, {})["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))


STEPS_IN_OUTLINE = """
import ctypes, random
libc = ctypes.CDLL(None)
libc.sbrk.restype = libc.malloc.restype = ctypes.c_void_p
draw, place, kept, most = random.Random(0), ctypes.c_void_p(), [], 0
def tensor():
    libc.posix_memalign(ctypes.byref(place), 64, draw.choice([1, 2, 2, 6]) * 2**20)
    return [place.value, *(libc.malloc(draw.choice([48, 104, 208, 344])) for _ in range(6))]
def drop(*tensors):
    for block in sum(tensors, []):
        libc.free(ctypes.c_void_p(block))
libc.mallopt(-3, 2**25)
start = libc.sbrk(0)
for _ in range(3):
    for block in range(40):
        made = [tensor() for _ in range(6)]
        drop(*made[:2], *made[3:5])
        kept += [made[2], made[5]]
        most = max(most, libc.sbrk(0) - start)
    while kept:
        gradient = tensor()
        drop(kept.pop(), gradient)
        most = max(most, libc.sbrk(0) - start)
print(most)
"""
"""Tensors of three steps, each with small objects; prints the bytes that the heap grows by."""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="asks glibc")
def test_malloc_keeps_no_small_blocks_that_part_the_holes_between_tensors() -> None:
    def grown(env: dict[str, str]) -> int:
        asked = [sys.executable, "-c", STEPS_IN_OUTLINE]
        return int(subprocess.run(asked, env=env, capture_output=True, text=True, check=True).stdout)

    plain = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    assert grown(subprocesses.environment(job().launcher, plain)) < 0.9 * grown(plain)


def test_a_setting_of_malloc_that_is_there_stays() -> None:
    own = {"GLIBC_TUNABLES": "glibc.malloc.check=1"}
    assert subprocesses.environment(job().launcher, own)["GLIBC_TUNABLES"] == "glibc.malloc.check=1"


def test_malloc_keeps_its_own_settings_on_a_gpu_and_where_nothing_is_computed() -> None:
    on_a_gpu = dataclasses.replace(job().launcher, device=Device.cuda)
    assert "GLIBC_TUNABLES" not in subprocesses.environment(on_a_gpu, {})
    assert "GLIBC_TUNABLES" not in subprocesses.environment(job().launcher, {}, computes=False)


def of_two(**changes: Any) -> Job:
    launcher = {"strategy": "fsdp", "num_processes": 4, "device": "cpu", **changes}
    return freeze.freeze(tree(launcher=launcher)).job


def test_several_processes_are_prepared_by_one_and_started_by_an_agent() -> None:
    first, second = subprocesses.commands(of_two(), Path("run/job.yaml"), "--trust=mine")
    assert first[1:] == ["-m", "fmstune.runner", "run/job.yaml", "--prepare", "--trust=mine"]
    assert second[1:4] == ["-m", "fmstune.launch.agent", "run/job.yaml"]
    assert Path(second[4].removeprefix("--config_file=")).name == "accelerate.yaml"
    assert second[5:] == [
        "--num_processes=4",
        "--num_machines=1",
        "--main_process_port=0",
        "--use_fsdp",
        "--",
        "--trust=mine",
    ]


def test_what_is_prepared_already_is_not_prepared_again() -> None:
    _, ranks = subprocesses.commands(of_two(), Path("run/job.yaml"), "--trust=mine")
    assert subprocesses.commands(of_two(), Path("run/job.yaml"), "--trust=mine", prepared=True) == [ranks]


def test_one_process_needs_one_command() -> None:
    assert subprocesses.commands(job(), Path("job.yaml")) == [[sys.executable, "-m", "fmstune.runner", "job.yaml"]]


def test_several_machines_meet_at_machine_0() -> None:
    launcher = of_two(strategy="ddp", num_machines=2, machine_rank=1, main_process_ip="10.0.0.1").launcher
    assert subprocesses.agent_command(launcher, Path("job.yaml"))[5:] == [
        "--num_processes=4",
        "--num_machines=2",
        "--main_process_port=29500",
        "--multi_gpu",
        "--machine_rank=1",
        "--main_process_ip=10.0.0.1",
        "--rdzv_backend=c10d",
        "--rdzv_conf=join_timeout=600,read_timeout=600",
    ]


def test_processes_share_the_cores_and_see_all_devices() -> None:
    env = subprocesses.environment(of_two(num_processes=2, device="auto").launcher, {"CUDA_VISIBLE_DEVICES": "0,1"})
    assert env["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert env["OMP_NUM_THREADS"] == str(max(hardware.cores() // 2, 1))


def test_the_exit_code_of_the_process_is_given_back() -> None:
    assert subprocesses.start([sys.executable, "-c", "raise SystemExit(7)"], os.environ) == 7


def test_a_signal_that_the_process_died_of_is_a_negative_code() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocesses.start([sys.executable, "-c", code], os.environ) == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_that_ends_is_handed_on_and_the_handlers_are_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def terminate() -> None:
        while signal.getsignal(number) is before or not Path("started").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=terminate).start()
    # a shell starts what is in the background with SIGQUIT ignored
    words = f"import pathlib, signal, time; signal.signal({number:d}, signal.SIG_DFL); pathlib.Path('started').touch()"
    code = subprocesses.start([sys.executable, "-c", f"{words}; time.sleep(60)"], os.environ)
    assert code == -number
    assert signal.getsignal(number) is before
