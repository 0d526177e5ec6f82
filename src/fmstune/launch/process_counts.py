"""How many processes a launcher group starts, here and on all machines; needs no device."""

import re

from fmstune import hardware
from fmstune.config.choices import Device, Strategy
from fmstune.config.job import Launcher, Slurm


def local_processes(launcher: Launcher) -> int:
    """Processes on this machine; 0 if the number is not set and no GPU is found."""
    if launcher.strategy is Strategy.single:
        return 1
    if launcher.num_processes is not None:
        return max(launcher.num_processes // max(launcher.num_machines, 1), 1)
    if launcher.slurm is not None:
        return gpus_per_node(launcher.slurm) or 0
    return 0 if launcher.device is Device.cpu else hardware.gpus()


def total_processes(launcher: Launcher) -> int:
    """Processes on all machines; those of other machines are taken to be as many as here."""
    if launcher.num_processes is not None:
        return launcher.num_processes
    return local_processes(launcher) * launcher.num_machines


def gpus_per_node(slurm: Slurm) -> int | None:
    """How many GPUs of each node are asked for: 0 where none are, None where that cannot be read."""
    if slurm.gpus_per_node is None:
        return 0
    found = re.fullmatch(r"(?:[\w.-]+:)?([1-9]\d*)", slurm.gpus_per_node)
    return int(found[1]) if found else None
