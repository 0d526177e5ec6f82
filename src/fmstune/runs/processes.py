"""Which process does a run: recorded in its folder, so that others see whether it lives and can signal it."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fmstune.files import read_json, write_json

FILE = ".process.json"
"""File of the record, in the folder of a run or of a sweep; a process that ends in order removes it."""
_SAME = 5.0
"""Seconds by which the start of one process may be read differently, as the clock was set."""


@dataclass(frozen=True)
class Recorded:
    """The process that writes into a folder."""

    host: str
    pid: int
    started: float
    """Seconds since 1970, so that another process with this number is not taken for it."""
    slurm_job_id: str | None = None

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this machine."""
        return self.host == socket.gethostname()

    @property
    def lives(self) -> bool:
        """Whether it lives; known on its own machine alone."""
        import psutil  # here and in `record_process`: a command that composes a job need not wait for it

        try:
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - self.started) < _SAME
        except psutil.Error:
            return False


@contextmanager
def record_process(folder: Path) -> Iterator[None]:
    """Record this process in the folder until it leaves this block; nothing where the folder cannot be written."""
    import psutil

    host, slurm = socket.gethostname(), os.environ.get("SLURM_JOB_ID")
    own = Recorded(host, os.getpid(), psutil.Process().create_time(), slurm)
    with suppress(OSError):
        write_json(folder / FILE, asdict(own))
    try:
        yield
    finally:
        if read_process(folder) == own:
            with suppress(OSError):
                (folder / FILE).unlink()


def read_process(folder: Path) -> Recorded | None:
    """The process that the folder records; None where it records none."""
    try:
        found = Recorded(**read_json(folder / FILE))
        return found if isinstance(found.pid, int) and found.pid > 0 and isinstance(found.started, float) else None
    except (OSError, ValueError, TypeError):
        return None
