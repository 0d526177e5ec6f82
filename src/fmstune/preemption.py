"""A notice that the machine is wanted back: the run ends its step, saves a checkpoint and stops.

SIGUSR1 and SIGUSR2 give it everywhere, as schedulers send them ahead of a time limit. Within a Slurm job SIGTERM does
too: Slurm sends it at the start of the time of grace (slurm.conf, "GraceTime"), and kills at its end.
"""

import os
import signal
import threading
from collections.abc import Mapping
from types import FrameType

from fmstune.run_folder import NOTICES

CODE = 75
"""Exit code of a run that saved a checkpoint and stopped: EX_TEMPFAIL of sysexits.h, "try again later"."""

_given = threading.Event()


def signals(env: Mapping[str, str] | None = None) -> frozenset[signal.Signals]:
    """The signals that give notice to this process."""
    return NOTICES | {signal.SIGTERM} if in_slurm_job(env) else NOTICES


def in_slurm_job(env: Mapping[str, str] | None = None) -> bool:
    """Whether Slurm started this process and ends it, whoever its parent is."""
    return "SLURM_JOB_ID" in (os.environ if env is None else env)


def heed() -> None:
    """Take notice from now on: the run stops after the step that it is in."""

    def take(_number: int, _frame: FrameType | None) -> None:
        _given.set()

    _given.clear()
    for number in signals():
        signal.signal(number, take)


def given() -> bool:
    """Whether notice was given to this process; others of the same run may have had it a step earlier or later."""
    return _given.is_set()
