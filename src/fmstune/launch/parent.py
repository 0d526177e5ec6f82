"""A runner does not outlive the process that started it: it would write into the folder of the resumed run."""

import atexit
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from fmstune import ranks
from fmstune.exit_codes import INTERRUPTING, NOTICES, closed_pipe
from fmstune.launch import preemption
from fmstune.launch.subprocesses import PARENT

_at_once = threading.Event()
"""Set where something would keep this process from ending."""
_codes: list[int] = []
"""The exit code, once this process leaves."""


def watch(on_death: Callable[[], None]) -> None:
    """End this process soon after its parent's death; `on_death` runs first.

    The parent is the one named, or that of a process started by a launcher of several, which has its own session.
    A thread and not PR_SET_PDEATHSIG: that signal comes when the starting *thread* ends, and only on Linux.
    """
    if ranks.here().started:
        os.environ.setdefault(PARENT, str(os.getppid()))
    if PARENT not in os.environ:
        return
    # as it is now: the agent names itself to its ranks in the same variable
    parent = int(os.environ[PARENT])

    def look() -> None:
        # at once where it died before this process could look
        while os.getppid() == parent:
            time.sleep(0.25)
        try:
            on_death()
        finally:
            os._exit(1)

    threading.Thread(target=look, name="parent-watcher", daemon=True).start()


def is_gone() -> bool:
    """Whether the process without which this one must not live has died; False where none is named."""
    return PARENT in os.environ and os.getppid() != int(os.environ[PARENT])


def interrupt_once(*, saves: bool = False) -> None:
    """The first Ctrl-C or SIGTERM ends the run in order; at a notice, it `saves` a checkpoint first or ends at once.

    From a terminal the runner gets Ctrl-C twice: from the terminal and from its parent.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        interrupt_no_more()
        raise KeyboardInterrupt

    for number in INTERRUPTING:
        signal.signal(number, interrupt)
    if saves:
        preemption.heed()
    else:
        preemption.end_at_once()


def interrupt_no_more() -> None:
    """Let the process end undisturbed: what runs at its exit is no longer part of the run."""
    for number in (*INTERRUPTING, *NOTICES):
        signal.signal(number, signal.SIG_IGN)


def leave_at_once() -> None:
    """Do not wait for other libraries when this process ends: one of them may never be ready."""
    _at_once.set()


@functools.cache
def take_nothing_apart() -> None:
    """Let `leave` end this process without freeing each of its million objects, which takes 0.2 seconds.

    Call it before libraries are imported: what they register for the end of the process is done before this. Files
    that are left open are not written to the end, so it is not for a run, in which there is code of a user.
    """
    atexit.register(_end)


def _end() -> None:
    if not _codes:
        return
    code = _codes[-1]
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        code = closed_pipe()
    os._exit(code)


def leave(code: int) -> NoReturn:
    """End this process undisturbed, with this exit code.

    One of several does not wait for other libraries: gloo's threads can abort it while Python is taken down ("terminate
    called without an active exception"), and a rank that fails is the failure of a run that is well.
    """
    interrupt_no_more()
    if _at_once.is_set() or ranks.here().started:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _codes.append(code)
    sys.exit(code)
