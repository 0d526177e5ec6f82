"""Give running runs notice: each saves a checkpoint and stops."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fmstune.errors import Problem, UserError, raise_if_any
from fmstune.launch import slurm
from fmstune.runs import processes, run_folder
from fmstune.runs.listing import Status, run_folders, run_status, sweep_status

_AGAIN_EVERY_SECONDS = 5.0
"""A process that has only begun may not have taken the first notice."""
_LOOK_EVERY_SECONDS = 0.2
_RECORDED_WITHIN_SECONDS = 10.0
"""A run has its folder before its process records itself there."""


def stop_runs(folder: Path) -> int:
    """Give notice to the run, or to every running point of the sweep, and wait until they have stopped; the exit code.

    Raises UserError where nothing runs, and where a run cannot be reached from this machine.
    """
    seen: dict[Path, float] = {}
    said: dict[Path, float] = {}
    raise_if_any([*_queued(folder), *_ended(folder)])
    while (running := _running(folder)) or _goes_on(folder):
        now = time.monotonic()
        known = [run for run in running if _is_known(run) or now - seen.setdefault(run, now) > _RECORDED_WITHIN_SECONDS]
        raise_if_any([*_queued(folder), *(problem for run in known for problem in _unreachable(run))])
        for run in known:
            if run not in said:
                print(f"notice sent to {run}: it ends its step, saves a checkpoint and stops", flush=True)
            if time.monotonic() - said.get(run, -_AGAIN_EVERY_SECONDS) >= _AGAIN_EVERY_SECONDS:
                said[run] = time.monotonic()
                _send(run)
        time.sleep(_LOOK_EVERY_SECONDS)
    for run in said:
        error = (run_folder.read_summary(run).get("error") or {}).get("message") if run.is_dir() else None
        print(f"{run_status(run) if run.is_dir() else 'stopped'}: {run}" + (f"\n  {error}" if error else ""))
    return 0


def _running(folder: Path) -> list[Path]:
    return [run for run in run_folders(folder) if run_status(run) is Status.running]


def _goes_on(folder: Path) -> bool:
    """Whether the sweep in the folder starts more points."""
    runs = run_folders(folder)
    return runs != [folder] and sweep_status(folder, [run_status(run) for run in runs]) is Status.running


def _ended(folder: Path) -> Iterator[Problem]:
    """Yield that nothing is left to stop."""
    states = [run_status(run) for run in run_folders(folder)]
    if all(status.has_ended for status in states) and not _goes_on(folder):
        ended = ", ".join(sorted(set(map(str, states))))
        yield Problem(str(folder), f": it has ended ({ended}), so there is nothing to stop")


def _queued(folder: Path) -> Iterator[Problem]:
    for run in run_folders(folder):
        if run_status(run) is Status.queued:
            number = slurm.recorded_job(run) or "NUMBER"
            yield Problem(str(run), f": it waits in Slurm's queue; scancel {number} takes it out")


def _is_known(run: Path) -> bool:
    """Whether the run has recorded its process, or its Slurm job."""
    return processes.read_process(run) is not None or slurm.recorded_job(run) is not None


def _unreachable(run: Path) -> Iterator[Problem]:
    """Yield what to do where a running run takes no signal from here: a process of another machine, a Slurm job."""
    number, process = slurm.recorded_job(run), processes.read_process(run)
    if process is not None and process.is_here and process.slurm_job_id is None:
        return
    if number or (process and process.slurm_job_id):
        job = number or (process.slurm_job_id if process else None)
        if shutil.which("scancel") is None:
            words = f"scancel --batch --signal=TERM {job} && scancel --signal=USR1 {job}"
            yield Problem(str(run), f": it is Slurm job {job}; on a machine of the cluster: {words}")
    elif process is None:
        yield Problem(str(run), ": it does not record its process; send SIGUSR1 to its fmstune process")
    else:
        text = f": it runs on {process.host}; there: fmstune stop {run}, or kill -USR1 {process.pid}"
        yield Problem(str(run), text)


def _send(run: Path) -> None:
    """Give notice to a run that can be reached."""
    process = processes.read_process(run)
    job = slurm.recorded_job(run) or (process.slurm_job_id if process else None)
    if job and (process is None or process.slurm_job_id):
        # the batch shell takes SIGTERM as: do not put the job back into the queue; then the processes stop
        for words in (["--batch", "--signal=TERM"], ["--signal=USR1"]):
            done = subprocess.run(["scancel", *words, job], capture_output=True, text=True, check=False)
            if done.returncode:
                raise UserError(str(run), f": scancel refuses the notice ({' '.join(done.stderr.split())})")
    elif process is not None and process.lives:
        with suppress(ProcessLookupError):
            try:
                os.kill(process.pid, signal.SIGUSR1)
            except PermissionError as err:
                text = f": process {process.pid} is not yours; its owner can stop it"
                raise UserError(str(run), text) from err
