"""Two machines: network namespaces with a cable between them, each with a host name of its own and a shared folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.test_main import SCRIPT, wait_for
from tests.conftest import FSDP_JOB
from tests.fixtures import forked

PLACES = (f"fmstune-{os.getpid()}a", f"fmstune-{os.getpid()}b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
SETTINGS = ("launcher.num_machines=2", f"launcher.main_process_ip={ADDRESSES[0]}", "launcher.rdzv_timeout=60")


def ip(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["ip", *words], capture_output=True, text=True)


@pytest.fixture(scope="module")
def network() -> Iterator[list[int]]:
    """Two namespaces that see each other and nothing else: a process in each."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        pytest.skip("two machines need network namespaces: Linux with iproute2")
    added = ip("netns", "add", PLACES[0])
    if added.returncode != 0:
        pytest.skip(f"two machines need network namespaces: {added.stderr.strip()}")
    hosts: list[subprocess.Popen[bytes]] = []
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
                made = ip("-n", place, "link", "set", up, "up")
                assert made.returncode == 0, made.stderr
            file = Path("/etc/netns", place, "hosts")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(names)
            hosts.append(subprocess.Popen([*inside(place), "sleep", "infinity"]))
        wait_for(lambda: all(is_within(host.pid) for host in hosts), "the hosts", 10)
        yield [host.pid for host in hosts]
    finally:
        for host in hosts:
            host.kill()
            host.wait()
        for place in PLACES:
            ip("netns", "del", place)
            shutil.rmtree(Path("/etc/netns", place), ignore_errors=True)


def inside(place: str) -> tuple[str, ...]:
    """The words that run a command on one host: its own network and host name."""
    return ("ip", "netns", "exec", place, "unshare", "-u", "bash", "-c", f'hostname {place}; exec "$@"', "host")


def is_within(pid: int) -> bool:
    """Whether a process has got as far as the program that waits there."""
    return Path(f"/proc/{pid}/comm").read_text() == "sleep\n"


def both(network: Sequence[int], *words: str) -> list[forked.Started]:
    """Machine 0 and machine 1, which is there a little earlier."""

    def machine(number: int) -> forked.Started:
        command = [SCRIPT, *FSDP_JOB, *SETTINGS, f"launcher.machine_rank={number}", *words]
        return forked.Started(command, session=True, beside=network[number])

    return [machine(number) for number in (1, 0)][::-1]


def ended(hosts: Sequence[forked.Started]) -> list[str]:
    """What two hosts say that run the job to its end."""
    said = [host.communicate(timeout=200) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    return [out + err for out, err in said]


def below(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += below(int(child))
    return found


def summary(folder: str = "run") -> dict[str, Any]:
    return json.loads(Path(folder, "summary.json").read_text())


def assert_same_weights(two_processes: Path) -> None:
    """Bit for bit those of two processes on one machine."""
    hosts, one = (load_file(folder / "run/model/model.safetensors") for folder in (Path(), two_processes))
    assert hosts.keys() == one.keys()
    assert all(torch.equal(hosts[key], one[key]) for key in hosts)


@pytest.mark.slow
def test_a_lost_host_ends_the_other_and_both_go_on_to_what_one_host_does(
    network: list[int], two_processes: Path
) -> None:
    hosts = both(network)
    wait_for(lambda: Path("run/checkpoint-6").is_dir() or hosts[0].poll() is not None, "a checkpoint", 150)
    for pid in below(hosts[1].pid):
        os.kill(pid, signal.SIGKILL)
    _, err = hosts[0].communicate(timeout=90)
    hosts[1].communicate(timeout=30)
    assert hosts[0].returncode == 1, err
    assert "lost its connection to another rank" in err
    assert "Traceback" not in err
    assert summary()["status"] == "failed"
    first, second = ended(both(network))
    assert "finished: run" in first and "machine 1 ended" in second
    made = summary()
    assert made["status"] == "finished"
    assert 0 < made["steps_here"] < made["steps"] == 24
    assert len(set(made["weight_bytes_by_rank"])) == 1
    assert_same_weights(two_processes)


@pytest.mark.soak
def test_two_hosts_without_a_mishap_do_what_two_processes_of_one_do(network: list[int], two_processes: Path) -> None:
    ended(both(network))
    assert_same_weights(two_processes)
