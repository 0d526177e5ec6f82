"""The warm process of a sweep: imports what a runner needs, once, then forks a runner for each point.

`python -m fmstune.fork_server FD`, where FD is a socket: it gets the runner's words as one JSON line a point, and
answers with two, the process id and the exit code. `fmstune.sweeps.warm` is the other side.

A fork is safe as nothing but imports has happened: one thread, no operation of torch, no use of CUDA.
"""

import importlib
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import IO

from fmstune import runner
from fmstune.exit_codes import INTERRUPTED, INTERRUPTING, NOTICES
from fmstune.launch import parent
from fmstune.launch.subprocesses import PARENT
from fmstune.upstream import quick_imports

_LATE = ("matplotlib.figure", "matplotlib.backends.backend_agg", "peft.utils.transformers_weight_conversion")
"""What the libraries import when they are first used."""
_points: list[int] = []
"""Process id of the point that runs."""
_early: list[int] = []
"""Notices that came when no point was there to take them."""


def main() -> None:
    """Import, then run points until the parent closes the line or is gone."""
    above = int(os.environ[PARENT])
    for number in (*INTERRUPTING, *NOTICES):
        signal.signal(number, _hand_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NOTICES)  # the parent starts with them kept back
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        line = connection.makefile("rw", encoding="utf-8")
    # frozen by this: what the garbage collector touches would be copied into each point
    with quick_imports():
        importlib.import_module("fmstune.training.pipeline")
        for module in _LATE:
            importlib.import_module(module)
    for words in line:
        _run(json.loads(words), line, above)


def _hand_on(number: int, _frame: FrameType | None) -> None:
    """Signals are for the point that runs; without one, a notice waits for it, and an interruption ends all."""
    for point in _points:
        with suppress(ProcessLookupError):
            os.kill(point, number)
    if not _points and number in INTERRUPTING:
        os._exit(INTERRUPTED)
    if not _points:
        _early.append(number)


def _run(words: list[str], line: IO[str], above: int) -> None:
    # none may come between the fork and the point's own handlers
    waiting = signal.pthread_sigmask(signal.SIG_BLOCK, {*INTERRUPTING, *NOTICES})
    point = os.fork()
    if point == 0:
        line.close()
        os.environ[PARENT] = str(os.getppid())
        for number in (*INTERRUPTING, *NOTICES):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, {*waiting, *NOTICES})
        parent.leave(runner.main(words))
    _points.append(point)
    while _early:
        os.kill(point, _early.pop())
    signal.pthread_sigmask(signal.SIG_SETMASK, waiting)
    print(point, file=line, flush=True)
    while not (ended := os.waitpid(point, os.WNOHANG))[0]:
        if os.getppid() != above:
            os._exit(1)  # the point ends with this process, and this one with the parent
        time.sleep(0.02)
    _points.clear()
    print(os.waitstatus_to_exitcode(ended[1]), file=line, flush=True)


if __name__ == "__main__":
    main()
