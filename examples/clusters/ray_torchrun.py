# SPDX-License-Identifier: Apache-2.0
"""A frozen job on machines of a Ray cluster: prepared on one of them, then torchrun on each.

`ray job submit --working-dir . -- python ray_torchrun.py job.yaml --nodes=2 --processes=8 --gpus=8`
"""

import argparse
import subprocess
import sys
from typing import Any

import ray
from ray.remote_function import RemoteFunction
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

PORT = 29500


@ray.remote(max_retries=0)
def address() -> str:
    """Where the machine of this task is met."""
    return ray.util.get_node_ip_address()


@ray.remote(max_retries=0)
def run(*words: str) -> None:
    """Run a module of this Python to its end; the task fails when it does."""
    subprocess.run([sys.executable, "-m", *words], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", help="the frozen job.yaml, in a folder that all machines see")
    parser.add_argument("--nodes", type=int, required=True, help="machines")
    parser.add_argument("--processes", type=int, required=True, help="processes on each")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs on each")
    options = parser.parse_args()
    ray.init()
    machine = {"CPU": 1, **({"GPU": options.gpus} if options.gpus else {})}
    group = placement_group([machine] * options.nodes, strategy="STRICT_SPREAD")
    ray.get(group.ready())
    ray.get(on(group, 0, run, options.gpus).remote("fmstune.runner", options.job, "--prepare"))
    head = ray.get(on(group, 0, address, 0).remote())
    words = (
        "torch.distributed.run",
        f"--nnodes={options.nodes}",
        f"--nproc-per-node={options.processes}",
        f"--master-addr={head}",
        f"--master-port={PORT}",
    )
    started = [
        on(group, node, run, options.gpus).remote(*words, f"--node-rank={node}", "-m", "fmstune.runner", options.job)
        for node in range(options.nodes)
    ]
    ray.get(started)


def on(group: PlacementGroup, node: int, task: RemoteFunction, gpus: int) -> Any:
    """The task on one machine of the group."""
    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=node)
    return task.options(num_cpus=1, num_gpus=gpus, scheduling_strategy=place)


if __name__ == "__main__":
    main()
