"""Job → one Slurm job: the script that `sbatch` gets (pure), and submitting it."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fmstune.config.choices import Device, Strategy
from fmstune.config.job import Job, Launcher, Slurm
from fmstune.errors import UserError
from fmstune.launch import process_counts
from fmstune.runs import run_folder
from fmstune.runs.run_folder import QUEUED

SCRIPT = "job.sbatch"
"""The script, in the run folder."""
JOB_ID = "slurm_job_id"
"""File in the run folder with the number of the Slurm job."""
RANKS = ".ranks"
"""Folder in the run folder for the last words of the processes."""

_PORTS = "$((20000 + SLURM_JOB_ID % 12000))"
"""Below those that systems give out by themselves; two jobs that share a node have two."""


def script(job: Job, folder: Path, flags: Sequence[str] = (), *, place: Path | None = None) -> str:
    """The batch script of the job in its run folder; `place` is where it runs, this folder unless it is given.

    Slurm's variables become those of torch's launchers here, where they can be seen (srun(1), "OUTPUT ENVIRONMENT").
    """
    assert job.launcher.slurm is not None
    slurm = job.launcher.slurm
    end = f"{_python('fmstune.launch.slurm_end', folder / run_folder.JOB)} $code"
    again = 'if [ $code -eq 75 ] && [ "$requeue" ]; then scontrol requeue "$SLURM_JOB_ID"; fi'
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in _options(job, slurm, folder)),
        f"# written by fmstune from {run_folder.JOB} beside it; submitted again, it goes on from the newest checkpoint",
        "",
        f"cd {shlex.quote(str(place or Path.cwd()))} || exit 1",
        *slurm.setup,
        *_environment(job.launcher),
        "# scancel ends this shell too, which first says so in the run folder, and does not go back into the queue",
        "requeue=--requeue; trap requeue= TERM" if slurm.requeue else "trap : TERM",
        "",
        *_steps(job.launcher, folder, flags),
        "code=$?",
        "",
        "# says how it ended; 75 where a checkpoint waits to be gone on with",
        *([f"{end} $requeue", "code=$?", again] if slurm.requeue else [end, "code=$?"]),
    ]
    return "\n".join([*lines, "exit $code", ""])


def _options(job: Job, slurm: Slurm, folder: Path) -> Iterator[str]:
    launcher = job.launcher
    yield f"--job-name={job.name}"
    # a percent sign would begin one of Slurm's patterns (sbatch(1), "filename pattern")
    yield f'--output="{str(folder).replace("%", "%%")}/slurm-%j.log"'
    yield "--open-mode=append"
    yield f"--nodes={launcher.num_machines}"
    yield f"--ntasks={process_counts.total_processes(launcher)}"
    yield f"--ntasks-per-node={process_counts.local_processes(launcher)}"
    for name in ("partition", "account", "qos", "constraint", "time", "gpus_per_node", "cpus_per_task", "mem"):
        value = getattr(slurm, name)
        if value is not None:
            yield f"--{name.replace('_', '-')}={value}"
    yield f"--signal={slurm.signal}"
    yield "--requeue" if slurm.requeue else "--no-requeue"
    yield from slurm.sbatch


def _environment(launcher: Launcher) -> Iterator[str]:
    """What the parent sets for a run on its own machine."""
    processes = process_counts.local_processes(launcher)
    threads = launcher.threads or f"${{OMP_NUM_THREADS:-$((SLURM_CPUS_ON_NODE / {processes}))}}"
    yield f"export OMP_NUM_THREADS={threads}"
    if launcher.device is Device.cpu:
        yield "export CUDA_VISIBLE_DEVICES="


def _steps(launcher: Launcher, folder: Path, flags: Sequence[str]) -> Iterator[str]:
    """Commands of which the last one's exit code is that of the run."""
    assert launcher.slurm is not None
    runner = _python("fmstune.runner", folder / run_folder.JOB)
    words = " ".join(shlex.quote(flag) for flag in flags)
    cores = f" --cpus-per-task={launcher.slurm.cpus_per_task}" if launcher.slurm.cpus_per_task else ""
    srun = f"srun --kill-on-bad-exit=1{cores}"
    ranks = shlex.quote(str(folder / RANKS))
    yield f"rm -rf {ranks} && mkdir {ranks} || exit 1"
    yield f"export FMSTUNE_RANKS={ranks}"
    # a notice must neither kill the shell nor what it becomes, and waits until the runner can take it
    said = 'trap "" TERM USR1 USR2; export FMSTUNE_AGENT=1 TORCHELASTIC_ERROR_FILE=$FMSTUNE_RANKS/$SLURM_PROCID.json'
    kept = f"{shlex.quote(sys.executable)} -m fmstune.launch.preemption"
    if launcher.strategy is Strategy.single:
        yield f"{srun} bash -c '{said}; exec \"$@\"' rank \\"
        yield f"  {kept} {runner} {words}".rstrip()
        return
    yield 'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
    yield f"export MASTER_PORT={launcher.main_process_port or _PORTS}"
    yield "# one process tokenises, then all of them start"
    yield f"{runner} --prepare {words}".rstrip() + " &&"
    numbers = "export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS"
    yield f"  {srun} bash -c '{numbers}; {said}; exec \"$@\"' rank \\"
    yield f"  {kept} {runner} {words}".rstrip()


def _python(module: str, file: Path) -> str:
    return f"{shlex.quote(sys.executable)} -m {module} {shlex.quote(str(file))}"


def raise_if_not_here() -> None:
    """Raises UserError where nothing can be submitted from this machine."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "launcher.slurm",
            ": no sbatch on the PATH; submit from a machine of the cluster (in Debian sbatch is in "
            "slurm-client), or choose launcher=fsdp, launcher=ddp or launcher=local to run here",
        )


def submit(job: Job, folder: Path, flags: Sequence[str] = ()) -> str:
    """Write the script into the run folder and submit it; the number of the Slurm job.

    Raises UserError with sbatch's own words where it refuses; the folder is then as it was.
    """
    # of two equal commands at once, the second finds the number that the first has left
    with run_folder.lock_folder(folder):
        raise_if_queued(folder)
        return _submit(job, folder, flags)


def _submit(job: Job, folder: Path, flags: Sequence[str]) -> str:
    text = script(job, folder.resolve(), flags)
    summary = folder / run_folder.SUMMARY
    former = summary.read_text(encoding="utf-8") if summary.is_file() else None
    (folder / SCRIPT).write_text(text, encoding="utf-8")
    # before it is submitted: it may start at once
    run_folder.update_summary(folder, {"status": QUEUED, "error": None, "name": job.name})
    # the parent sets it for itself, to see Hydra's exceptions
    env = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    words = ["sbatch", "--parsable", str(folder / SCRIPT)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        (folder / SCRIPT).unlink()
        summary.unlink() if former is None else summary.write_text(former, encoding="utf-8")
        said = " ".join(done.stderr.replace("sbatch: error: ", "").split())
        raise UserError("launcher.slurm", f": sbatch refuses the job ({said})")
    # with several clusters it is NUMBER;CLUSTER
    number = done.stdout.strip().partition(";")[0]
    (folder / JOB_ID).write_text(number + "\n", encoding="utf-8")
    return number


def raise_if_queued(folder: Path) -> None:
    """Raises UserError while a Slurm job that runs in this folder waits or runs, unless this is that job."""
    file = folder / JOB_ID
    number = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    if not number or number == os.environ.get("SLURM_JOB_ID") or shutil.which("squeue") is None:
        return
    # a job that has ended long ago is an error of squeue's
    words = ["squeue", "--noheader", f"--jobs={number}", "--format=%T"]
    state = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    if state:
        raise UserError(
            "output_dir",
            f": {folder} is the run of Slurm job {number}, which is {state.splitlines()[0]}; wait for it, "
            f"or end it with scancel {number}",
        )


def submitted(number: str, folder: Path) -> str:
    """What to tell of a job that was submitted."""
    facts = {
        "run": folder,
        "log": folder / f"slurm-{number}.log",
        "script": folder / SCRIPT,
        "watch": f"squeue -j {number}",
        "cancel": f"scancel {number}",
    }
    return "\n".join([f"submitted: Slurm job {number}", *(f"  {name:<7} {fact}" for name, fact in facts.items())])
