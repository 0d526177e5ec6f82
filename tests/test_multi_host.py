"""Two machines: network namespaces with a cable between them, each with a host name of its own and a shared folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.test_cli import SCRIPT, wait_for

pytestmark = pytest.mark.soak

PLACES = ("fmstune-a", "fmstune-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
JOB = (
    "launcher=fsdp",
    "launcher.device=cpu",
    "launcher.threads=1",
    "launcher.num_processes=2",
    "training.per_device_train_batch_size=4",
    "training.gradient_accumulation_steps=1",
    "training.save_strategy=steps",
    "training.save_steps=2",
    "training.learning_rate=1e-3",
    "data.max_rows=32",
    "evaluation=none",
)
SETTINGS = ("launcher.num_machines=2", f"launcher.main_process_ip={ADDRESSES[0]}", "launcher.rdzv_timeout=60")


def ip(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["ip", *words], capture_output=True, text=True)


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """Two namespaces that see each other and nothing else."""
    if sys.platform != "linux" or ip("netns", "add", PLACES[0]).returncode != 0:
        pytest.skip("two machines need network namespaces: Linux, iproute2 and root")
    try:
        ip("netns", "add", PLACES[1])
        ip("link", "add", "fmt-a", "netns", PLACES[0], "type", "veth", "peer", "name", "fmt-b", "netns", PLACES[1])
        names = "127.0.0.1 localhost\n" + "".join(
            f"{address} {place}\n" for address, place in zip(ADDRESSES, PLACES, strict=True)
        )
        for place, address in zip(PLACES, ADDRESSES, strict=True):
            device = f"fmt-{place[-1]}"
            ip("-n", place, "addr", "add", f"{address}/24", "dev", device)
            for up in ("lo", device):
                ip("-n", place, "link", "set", up, "up")
            hosts = Path("/etc/netns", place, "hosts")
            hosts.parent.mkdir(parents=True, exist_ok=True)
            hosts.write_text(names)
        yield
    finally:
        for place in PLACES:
            ip("netns", "del", place)
            shutil.rmtree(Path("/etc/netns", place), ignore_errors=True)


def machine(number: int, *words: str) -> "subprocess.Popen[str]":
    """One host: its own network and host name."""
    command = " ".join([str(SCRIPT), *JOB, *SETTINGS, f"launcher.machine_rank={number}", *words])
    script = f"hostname {PLACES[number]}; exec {command}"
    return subprocess.Popen(
        ["ip", "netns", "exec", PLACES[number], "unshare", "-u", "bash", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def both(*words: str) -> list[str]:
    """What two hosts say that run the job to its end."""
    hosts = [machine(number, *words) for number in (1, 0)]
    said = [host.communicate(timeout=200) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    return [out + err for out, err in reversed(said)]


def below(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += below(int(child))
    return found


def summary(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "summary.json").read_text())


def test_two_hosts_do_what_two_processes_of_one_do(network: None) -> None:
    first, second = both("output_dir=hosts", "training.max_steps=4")
    assert "finished: hosts" in first and "machine 1 ended" in second
    one = subprocess.run([SCRIPT, *JOB, "output_dir=one", "training.max_steps=4"], capture_output=True, timeout=200)
    assert one.returncode == 0
    weights = [load_file(Path(folder, "model", "model.safetensors")) for folder in ("hosts", "one")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert len(set(summary("hosts")["weight_bytes_by_rank"])) == 1


def test_a_lost_host_ends_the_other_with_a_clear_error_and_both_go_on(network: None) -> None:
    steps = "training.max_steps=60"
    hosts = [machine(number, steps, "output_dir=run") for number in (1, 0)]
    wait_for(lambda: Path("run/checkpoint-2").is_dir() or hosts[1].poll() is not None, "a checkpoint", 150)
    for pid in below(hosts[0].pid):
        os.kill(pid, signal.SIGKILL)
    _, err = hosts[1].communicate(timeout=90)
    hosts[0].communicate(timeout=30)
    assert hosts[1].returncode == 1, err
    assert "has lost another one, on another machine" in err
    assert "Traceback" not in err
    assert summary("run")["status"] == "failed"
    both(steps, "output_dir=run")
    ended = summary("run")
    assert ended["status"] == "finished"
    assert 0 < ended["steps_here"] < ended["steps"] == 60
