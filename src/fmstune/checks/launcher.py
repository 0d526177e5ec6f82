"""Rules on the launcher group: processes, machines, Slurm and FSDP."""

import re
from collections.abc import Iterator
from pathlib import Path

from fmstune.config.choices import Device, Sharding, Strategy
from fmstune.config.job import Job, Launcher, Slurm, is_sharded, tunes_an_adapter
from fmstune.errors import Problem
from fmstune.launch.subprocesses import gpus_per_node, local_processes, total_processes
from fmstune.ranks import Rank

_SBATCH_OWNED = {
    "array": "give several values with -m",
    "chdir": "the job runs in the folder that it is submitted from",
    "job-name": "set name",
    "nodes": "set launcher.num_machines",
    "ntasks": "set launcher.num_processes",
    "ntasks-per-node": "set launcher.num_processes",
    "no-requeue": "set launcher.slurm.requeue",
    "open-mode": "the log is appended to, so that a requeued job does not lose it",
    "output": "the log is in the run folder",
    "parsable": "fmstune reads the job's number itself",
    "wrap": "the script is fmstune's",
}
"""Options that have a field of their own or one meaning here; those of `Slurm` come in addition."""


def launcher_problems(job: Job) -> Iterator[Problem]:
    """Yield a problem for each setting that cannot be launched, or would have no effect."""
    launcher = job.launcher
    if launcher.strategy is Strategy.single:
        for name in ("num_processes", "num_machines"):
            if ((value := getattr(launcher, name)) or 1) > 1:
                text = f"={value} needs a launcher of several processes; choose launcher=fsdp or launcher=ddp"
                yield Problem(f"launcher.{name}", text)
    else:
        yield from _process_problems(job)
        if job.training.get("auto_find_batch_size"):
            text = "works in one process only; set it to false, and set per_device_train_batch_size"
            yield Problem("training.auto_find_batch_size", text)
    if launcher.slurm is not None:
        yield from _slurm_problems(job, launcher.slurm)
    if is_sharded(launcher):
        yield from _fsdp_problems(job)
    elif launcher.cpu_offload:
        yield Problem("launcher.cpu_offload", "keeps FSDP's shards in memory; choose launcher=fsdp, or leave it out")


def _process_problems(job: Job) -> Iterator[Problem]:
    launcher, total, machines = job.launcher, job.launcher.num_processes, job.launcher.num_machines
    if launcher.device is Device.mps:
        yield Problem("launcher.device", "=mps: torch cannot connect processes on it; choose launcher=local")
    if total is None and local_processes(launcher) == 0:
        where = "launcher.slurm.gpus_per_node asks for no GPU" if launcher.slurm is not None else "no GPU is found"
        yield Problem("launcher.num_processes", f"must be given where {where}, such as launcher.num_processes=2")
    if total is not None and total >= 1 and machines >= 1 and total % machines:
        text = f"={total} is the number of all processes, and launcher.num_machines={machines} does not divide it"
        yield Problem("launcher.num_processes", f"{text}; change one of them")
    if launcher.strategy is Strategy.ddp and total_processes(launcher) == 1:
        yield Problem("launcher", "=ddp has one process; choose launcher=local, or set launcher.num_processes")
    if launcher.slurm is not None:
        for name in ("machine_rank", "main_process_ip"):
            if getattr(launcher, name) != getattr(Launcher, name):
                yield Problem(f"launcher.{name}", ": Slurm numbers the nodes and chooses the first; leave it out")
        return
    if machines > 1 and job.output_dir is None:
        yield Problem("output_dir", "must be given with several machines: a folder that all of them share")
    if not 0 <= launcher.machine_rank < max(machines, 1):
        text = f"must be at least 0 and below launcher.num_machines={machines}"
        yield Problem("launcher.machine_rank", f"{text}, got {launcher.machine_rank}")
    if machines > 1 and launcher.main_process_ip is None:
        yield Problem("launcher.main_process_ip", "must be given with several machines: the address of machine 0")


def _slurm_problems(job: Job, slurm: Slurm) -> Iterator[Problem]:
    """Yield a problem for each option that `sbatch` would refuse or misread in its script."""
    owned = {name.replace("_", "-"): f"set launcher.slurm.{name}" for name in Slurm.__dataclass_fields__}
    owned |= _SBATCH_OWNED
    for option in slurm.sbatch:
        found = re.fullmatch(r"--([a-z][a-z-]*)(=[^\n\r]*)?", option) if isinstance(option, str) else None
        if found is None:
            text = f"must hold options such as --exclusive or --mail-type=END, got {option!r}"
            yield Problem("launcher.slurm.sbatch", text)
        elif found[1] in owned:
            yield Problem("launcher.slurm.sbatch", f": --{found[1]}: {owned[found[1]]}")
    for line in slurm.setup:
        if not isinstance(line, str) or not line.strip() or "\n" in line or "\r" in line:
            yield Problem("launcher.slurm.setup", f"must hold lines of shell, one text for each, got {line!r}")
    out = str(Path(job.output_dir or "runs").absolute())
    if re.search(r'["\\\n\r]', out):
        yield Problem("output_dir", f": sbatch takes no quote, backslash or line break in a folder's name, got {out!r}")
    if job.launcher.strategy is Strategy.single and gpus_per_node(slurm) > 1:
        text = ": launcher.strategy=single uses one GPU; choose fsdp or ddp, or ask for 1"
        yield Problem("launcher.slurm.gpus_per_node", text)
    if slurm.requeue and job.training.get("save_only_model"):
        text = "leaves out the state to resume a requeued job from; set it to false, or launcher.slurm.requeue=false"
        yield Problem("training.save_only_model", text)


def _fsdp_problems(job: Job) -> Iterator[Problem]:
    launcher = job.launcher
    if launcher.fsdp_version not in (1, 2):
        yield Problem("launcher.fsdp_version", f"must be 1 or 2, got {launcher.fsdp_version}")
    elif launcher.fsdp_version == 2:
        for name in ("backward_prefetch", "forward_prefetch", "use_orig_params"):
            if getattr(launcher, name) != getattr(Launcher, name):
                yield Problem(f"launcher.{name}", "is a setting of FSDP1; choose launcher=fsdp1, or leave it out")
        if launcher.sharding_strategy is Sharding.hybrid_shard:
            yield Problem("launcher.sharding_strategy", "=hybrid_shard is a setting of FSDP1; choose launcher=fsdp1")
    else:
        if launcher.device is Device.cpu:
            yield Problem("launcher.device", "=cpu: only FSDP2 can be rehearsed on the CPU; choose launcher=fsdp")
        if tunes_an_adapter(job) and not launcher.use_orig_params:
            text = "=false cannot freeze some weights of a block, as an adapter needs; set it to true"
            yield Problem("launcher.use_orig_params", text)
    if launcher.cpu_offload and launcher.device is Device.cpu:
        yield Problem("launcher.cpu_offload", "moves shards off a GPU, and launcher.device=cpu; leave it out")
    optim = str(job.training.get("optim", ""))
    if optim.startswith(("galore", "apollo", "lomo", "adalomo")):
        yield Problem("training.optim", f"={optim} needs whole matrices, which FSDP shards; choose another")


def device_problems(launcher: Launcher, device: str) -> Iterator[Problem]:
    """Yield a problem for each setting of FSDP that the device found by `launcher.device=auto` cannot do."""
    if launcher.strategy is not Strategy.fsdp or launcher.device is not Device.auto or device == "cuda":
        return
    instead = "or plan for GPUs with fmstune check launcher.device=cuda"
    if launcher.fsdp_version == 1:
        yield Problem("launcher", f"=fsdp1 needs GPUs, and the device is {device}; choose launcher=fsdp, {instead}")
    if launcher.cpu_offload:
        text = f"moves shards off a GPU, and the device is {device}; leave it out, {instead}"
        yield Problem("launcher.cpu_offload", text)


def rank_problems(launcher: Launcher, rank: Rank) -> Iterator[Problem]:
    """Yield a problem where more processes were started than the job is for."""
    if launcher.strategy is Strategy.single and rank.processes > 1:
        text = f": the job is for one process (launcher=local), and {rank.processes} were started"
        yield Problem("launcher", f"{text}; freeze it with launcher=fsdp or launcher=ddp")
