"""What a launcher group cannot ask for: one bad job a rule."""

import dataclasses
from typing import Any

import pytest

from fmstune.checks.launcher import device_problems, launcher_problems
from fmstune.config import freeze
from fmstune.config.job import Job
from fmstune.launch import subprocesses
from tests.config.test_freeze import tree

DDP: dict[str, Any] = {"strategy": "ddp", "num_processes": 2, "device": "cpu"}
FSDP: dict[str, Any] = {"strategy": "fsdp", "num_processes": 2, "device": "cpu"}


def job(launcher: dict[str, Any], **changes: Any) -> Job:
    return freeze.freeze(tree(launcher=launcher, **changes)).job


def test_sensible_launchers_have_no_problem() -> None:
    slurm = {"time": "12:00:00", "gpus_per_node": "a100:4", "sbatch": ["--exclusive"], "setup": ["ml cuda"]}
    on_nodes = {"strategy": "ddp", "num_machines": 2, "slurm": slurm}
    for launcher in ({}, DDP, FSDP, {**FSDP, "fsdp_version": 1, "device": "cuda"}, {"slurm": {}}, on_nodes):
        assert list(launcher_problems(job(launcher))) == []


@pytest.mark.parametrize(
    ("launcher", "start"),
    [
        ({"num_processes": 2}, "launcher.num_processes=2 needs a launcher of several processes; choose"),
        ({"num_machines": 2}, "launcher.num_machines=2 needs a launcher of several processes; choose"),
        ({"cpu_offload": True}, "launcher.cpu_offload keeps FSDP's shards in memory; choose launcher=fsdp"),
        ({**DDP, "num_processes": None}, "launcher.num_processes must be given where no GPU is found"),
        ({**DDP, "num_processes": 1}, "launcher=ddp has one process; choose launcher=local"),
        ({**FSDP, "device": "mps"}, "launcher.device=mps: torch cannot connect processes on it"),
        (
            {**DDP, "machine_rank": 1},
            "launcher.machine_rank must be at least 0 and below launcher.num_machines=1, got 1",
        ),
        ({**FSDP, "fsdp_version": 3}, "launcher.fsdp_version must be 1 or 2, got 3"),
        ({**FSDP, "forward_prefetch": True}, "launcher.forward_prefetch is a setting of FSDP1; choose launcher=fsdp1"),
        (
            {**FSDP, "backward_prefetch": "NO_PREFETCH"},
            "launcher.backward_prefetch is a setting of FSDP1; choose launcher=fsdp1",
        ),
        (
            {**FSDP, "sharding_strategy": "hybrid_shard"},
            "launcher.sharding_strategy=hybrid_shard is a setting of FSDP1",
        ),
        ({**FSDP, "fsdp_version": 1}, "launcher.device=cpu: only FSDP2 can be rehearsed on the CPU"),
        ({**FSDP, "cpu_offload": True}, "launcher.cpu_offload moves shards off a GPU, and launcher.device=cpu"),
        (
            {**FSDP, "fsdp_version": 1, "device": "cuda", "use_orig_params": False},
            "launcher.use_orig_params=false cannot freeze some weights of a block, as an adapter needs; set it to true",
        ),
    ],
)
def test_a_launcher_that_cannot_work_is_refused(launcher: dict[str, Any], start: str) -> None:
    problems = list(map(str, launcher_problems(job(launcher))))
    assert len(problems) == 1, problems
    assert problems[0].startswith(start)


def test_what_needs_gpus_is_refused_where_auto_finds_none() -> None:
    """Torch itself says so only when the ranks have started."""
    early = job({**FSDP, "device": "auto", "fsdp_version": 1, "cpu_offload": True}).launcher
    assert list(device_problems(early, "cuda")) == []
    assert [problem.partition(";")[0] for problem in map(str, device_problems(early, "cpu"))] == [
        "launcher=fsdp1 needs GPUs, and the device is cpu",
        "launcher.cpu_offload moves shards off a GPU, and the device is cpu",
    ]
    assert list(device_problems(job({**FSDP, "device": "auto"}).launcher, "cpu")) == []


def test_several_machines_need_a_shared_folder_and_an_address() -> None:
    assert list(map(str, launcher_problems(job({**DDP, "num_machines": 2, "num_processes": 3})))) == [
        "launcher.num_processes=3 is the number of all processes, and launcher.num_machines=2 does not divide it; "
        "change one of them",
        "output_dir must be given with several machines: a folder that all of them share",
        "launcher.main_process_ip must be given with several machines: the address of machine 0",
    ]


def test_an_optimizer_that_needs_whole_matrices_is_refused_under_fsdp() -> None:
    optim = job(FSDP, training__optim="galore_adamw")
    assert list(map(str, launcher_problems(optim))) == [
        "training.optim=galore_adamw needs whole matrices, which FSDP shards; choose another"
    ]
    assert list(launcher_problems(dataclasses.replace(optim, launcher=job(DDP).launcher))) == []


@pytest.mark.parametrize(
    ("launcher", "local", "total"),
    [
        ({}, 1, 1),
        (DDP, 2, 2),
        ({**DDP, "num_processes": 8, "num_machines": 2}, 4, 8),
        ({**DDP, "num_processes": None}, 0, 0),
        ({**DDP, "num_processes": None, "num_machines": 2, "slurm": {"gpus_per_node": "a100:4"}}, 4, 8),
        ({**DDP, "num_processes": 2, "num_machines": 2, "slurm": {"gpus_per_node": "8"}}, 1, 2),
    ],
)
def test_processes_are_counted_over_all_machines(launcher: dict[str, Any], local: int, total: int) -> None:
    given = job(launcher).launcher
    assert (subprocesses.local_processes(given), subprocesses.total_processes(given)) == (local, total)
