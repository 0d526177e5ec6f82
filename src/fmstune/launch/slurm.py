"""Job → one Slurm job: the script that `sbatch` gets (pure), and submitting it."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fmstune import files
from fmstune.config.job import Job
from fmstune.errors import UserError
from fmstune.launch import subprocesses
from fmstune.runs import run_folder
from fmstune.runs.run_folder import QUEUED

SCRIPT = "job.sbatch"
"""The script, in the run folder."""
JOB_ID = "slurm_job_id"
"""File in the run folder with the number of the Slurm job."""
RANKS = ".ranks"
"""Folder in the run folder for the last words of the processes."""


def script(job: Job, folder: Path, flags: Sequence[str] = (), *, place: Path | None = None) -> str:
    """The batch script of the job in its run folder; `place` is where it runs, this folder unless it is given.

    Slurm's variables become those of torch's launchers here, where they can be seen (srun(1), "OUTPUT ENVIRONMENT").
    """
    return files.render_template(
        Path(__file__).with_name("job.sbatch.jinja"),
        job=job,
        launcher=job.launcher,
        slurm=job.launcher.slurm,
        processes=subprocesses.total_processes(job.launcher),
        processes_here=subprocesses.local_processes(job.launcher),
        folder=str(folder),
        job_file=shlex.quote(str(folder / run_folder.JOB)),
        ranks=shlex.quote(str(folder / RANKS)),
        place=shlex.quote(str(place or Path.cwd())),
        python=shlex.quote(sys.executable),
        flags="".join(f" {shlex.quote(flag)}" for flag in flags),
    )


def raise_if_not_here() -> None:
    """Raises UserError where nothing can be submitted from this machine."""
    if shutil.which("sbatch") is None:
        text = ": no sbatch on the PATH; submit from a machine of the cluster (in Debian sbatch is in slurm-client), or"
        raise UserError("launcher.slurm", f"{text} choose launcher=fsdp, launcher=ddp or launcher=local to run here")


def submit(job: Job, folder: Path, flags: Sequence[str] = ()) -> str:
    """Write and submit the script; the job's number, or a UserError in sbatch's words and the folder as it was."""
    # of two equal commands at once, the second finds the number that the first has left
    with run_folder.lock_folder(folder):
        raise_if_queued(folder)
        summary = folder / run_folder.SUMMARY
        former = summary.read_text(encoding="utf-8") if summary.is_file() else None
        (folder / SCRIPT).write_text(script(job, folder.resolve(), flags), encoding="utf-8")
        # before it is submitted: it may start at once
        run_folder.update_summary(folder, {"status": QUEUED, "error": None, "name": job.name})
        # the parent sets it for itself, to see Hydra's exceptions
        env = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
        words = ["sbatch", "--parsable", str(folder / SCRIPT)]
        done = subprocess.run(words, env=env, capture_output=True, encoding="utf-8", errors="replace", check=False)
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
    number = recorded_job(folder)
    if not number or number == os.environ.get("SLURM_JOB_ID") or shutil.which("squeue") is None:
        return
    # a job that has ended long ago is an error of squeue's
    words = ["squeue", "--noheader", f"--jobs={number}", "--format=%T"]
    state = subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace", check=False).stdout.strip()
    if state:
        text = f": {folder} is the run of Slurm job {number}, which is {state.splitlines()[0]}; wait for it"
        raise UserError("output_dir", f"{text}, or end it with scancel {number}")


def recorded_job(folder: Path) -> str | None:
    """The number of the Slurm job that was submitted for the run in this folder; None where there is none."""
    file = folder / JOB_ID
    return (file.read_text(encoding="utf-8").strip() if file.is_file() else "") or None


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
