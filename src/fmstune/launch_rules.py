"""Job → problems of its launcher group that show without a device."""

from collections.abc import Iterator

from fmstune import devices
from fmstune.job import Device, Job, Launcher, Prefetch, Sharding, Strategy, is_sharded, tunes_an_adapter
from fmstune.ranks import Rank

_FSDP1_ONLY = {"backward_prefetch": Prefetch.BACKWARD_PRE, "forward_prefetch": False, "use_orig_params": True}
"""Settings that FSDP2 has no use for, with the values that mean nothing was asked."""


def problems(job: Job) -> Iterator[str]:
    """What cannot be launched, or would be passed over."""
    launcher = job.launcher
    for name in ("threads", "num_processes", "num_machines", "rdzv_timeout"):
        value = getattr(launcher, name)
        if value is not None and value < 1:
            yield f"launcher.{name} must be at least 1, got {value}"
    if launcher.strategy is Strategy.single:
        yield from _single(launcher)
    else:
        yield from _processes(launcher)
        yield from _machines(job)
        yield from _together(job)
    if is_sharded(launcher):
        yield from _sharded(job)
    elif launcher.cpu_offload:
        yield "launcher.cpu_offload keeps FSDP's shards in memory; choose launcher=fsdp, or leave it out"


def _single(launcher: Launcher) -> Iterator[str]:
    for name in ("num_processes", "num_machines"):
        value = getattr(launcher, name)
        if (value or 1) > 1:
            yield f"launcher.{name}={value} needs a launcher of several processes; choose launcher=fsdp or launcher=ddp"


def _processes(launcher: Launcher) -> Iterator[str]:
    total, machines = launcher.num_processes, launcher.num_machines
    if launcher.device is Device.mps:
        yield "launcher.device=mps: torch has no way for processes to talk to each other there; choose launcher=local"
    if total is None:
        if local_processes(launcher) == 0:
            yield "launcher.num_processes must be given where there is no GPU, such as launcher.num_processes=2"
    elif total >= 1 and machines >= 1 and total % machines:
        yield (
            f"launcher.num_processes={total} counts the processes of all machines, and cannot be shared out "
            f"evenly among launcher.num_machines={machines}"
        )
    if launcher.strategy is Strategy.ddp and total_processes(launcher) == 1:
        yield "launcher=ddp with one process shares nothing; choose launcher=local, or set launcher.num_processes"


def _machines(job: Job) -> Iterator[str]:
    launcher = job.launcher
    if launcher.num_machines > 1 and job.output_dir is None:
        yield "output_dir must be given with launcher.num_machines above 1, in a folder that all machines share"
    if not 0 <= launcher.machine_rank < max(launcher.num_machines, 1):
        yield (
            f"launcher.machine_rank must be at least 0 and below launcher.num_machines={launcher.num_machines}, "
            f"got {launcher.machine_rank}"
        )
    if launcher.num_machines > 1 and launcher.main_process_ip is None:
        yield "launcher.main_process_ip must be given with several machines: the address of machine 0"
    port = launcher.main_process_port
    if port is not None and not 0 < port < 2**16:
        yield f"launcher.main_process_port must be at least 1 and below {2**16}, got {port}"


def _together(job: Job) -> Iterator[str]:
    """Settings of training that several processes cannot share."""
    if job.training.get("auto_find_batch_size"):
        yield "training.auto_find_batch_size tries again in one process only; set it to false, and a batch size"


def _sharded(job: Job) -> Iterator[str]:
    launcher = job.launcher
    if launcher.fsdp_version not in (1, 2):
        yield f"launcher.fsdp_version must be 1 or 2, got {launcher.fsdp_version}"
    elif launcher.fsdp_version == 2:
        for name, default in _FSDP1_ONLY.items():
            if getattr(launcher, name) != default:
                yield f"launcher.{name} is FSDP1's; choose launcher=fsdp1, or leave it out"
        if launcher.sharding_strategy is Sharding.hybrid_shard:
            yield "launcher.sharding_strategy=hybrid_shard is FSDP1's; choose launcher=fsdp1"
    else:
        if launcher.device is Device.cpu:
            yield "launcher.device=cpu: only FSDP2 can be rehearsed on the CPU; choose launcher=fsdp"
        if tunes_an_adapter(job) and not launcher.use_orig_params:
            yield "launcher.use_orig_params=false cannot freeze some weights of a block; an adapter needs it true"
    if launcher.cpu_offload and launcher.device is Device.cpu:
        yield "launcher.cpu_offload moves shards off a GPU, and launcher.device=cpu; leave it out"
    blocks = launcher.transformer_layer_cls_to_wrap
    names = [blocks] if isinstance(blocks, str) else blocks
    if names is not None and not (isinstance(names, list) and names and all(isinstance(n, str) and n for n in names)):
        yield f"launcher.transformer_layer_cls_to_wrap must be a class name or a list of them, got {blocks!r}"
    for name in ("galore", "apollo", "lomo", "adalomo"):
        if str(job.training.get("optim", "")).startswith(name):
            yield f"training.optim={job.training['optim']} needs whole matrices, which FSDP shards; choose another"


def started_problems(launcher: Launcher, rank: Rank) -> Iterator[str]:
    """Why this process cannot be one of the job's, whoever started it."""
    if launcher.strategy is Strategy.single and rank.processes > 1:
        yield (
            f"the job is for one process (launcher=local), and {rank.processes} were started; "
            "freeze it with launcher=fsdp or launcher=ddp"
        )


def local_processes(launcher: Launcher) -> int:
    """Processes on this machine; 0 where nobody says and there is no GPU."""
    if launcher.strategy is Strategy.single:
        return 1
    if launcher.num_processes is not None:
        return max(launcher.num_processes // max(launcher.num_machines, 1), 1)
    return 0 if launcher.device is Device.cpu else devices.gpus()


def total_processes(launcher: Launcher) -> int:
    """Processes on all machines; those of other machines are taken to be as many as here."""
    if launcher.num_processes is not None:
        return launcher.num_processes
    return local_processes(launcher) * launcher.num_machines
