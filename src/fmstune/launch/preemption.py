"""A notice that the machine is wanted back: the run ends its step, saves a checkpoint and stops.

SIGUSR1 and SIGUSR2 give it everywhere, as schedulers send them ahead of a time limit. Within a Slurm job SIGTERM does
too: Slurm sends it at the start of the time of grace (slurm.conf, "GraceTime"), and kills at its end.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from fmstune.errors import Preempted
from fmstune.exit_codes import NOTICES

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
    _given.clear()
    _handle(signals(), lambda _number, _frame: _given.set())


def end_at_once() -> None:
    """End this process at a notice from now on, as it has nothing to save; raises Preempted."""

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        raise Preempted("stopped at a notice, before anything was trained; the same command starts again")

    _handle(NOTICES, end)


def _handle(numbers: Collection[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> None:
    for number in numbers:
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


@contextmanager
def kept_back(numbers: Collection[signal.Signals] = NOTICES, how: int = signal.SIG_BLOCK) -> Iterator[None]:
    """Let notices wait, also for processes that are started in here: one would end a process without a handler yet.

    Within this, SIG_UNBLOCK lets notices through to a process that handles them.
    """
    former = signal.pthread_sigmask(how, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def given() -> bool:
    """Whether notice was given to this process; others of the same run may have had it a step earlier or later."""
    return _given.is_set()


if __name__ == "__main__":
    # python -m fmstune.launch.preemption COMMAND…: what `kept_back` does, where a shell starts the process
    with kept_back(signals()):
        os.execvp(sys.argv[1], sys.argv[1:])
