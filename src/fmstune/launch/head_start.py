"""A head start for the process above a machine's ranks: it imports torch's launcher while the parent composes.

That takes two seconds, and all that the parent does takes less. What is here imports nothing of ours, to be first.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

AGENT = "fmstune.launch.agent"
"""The module of that process."""

WAIT = "--wait"
"""Its first word when it starts before anybody knows the job; the second is the descriptor to read from."""

_SEVERAL = ("launcher=ddp", "launcher=fsdp", "launcher=fsdp1")


class _Waiting:
    """An agent that imports, and waits for its words on a pipe."""

    def __init__(self) -> None:
        reading, self.pipe = os.pipe()
        # Ctrl-C reaches all processes of a terminal, and this one has nothing to end yet
        former = signal.signal(signal.SIGINT, signal.SIG_IGN)
        # a notice that comes for it while it imports waits
        waiting = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
        try:
            argv = [sys.executable, "-m", AGENT, WAIT, str(reading)]
            self.process = subprocess.Popen(argv, pass_fds=[reading])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, waiting)
            signal.signal(signal.SIGINT, former)
            os.close(reading)


_waiting: list[_Waiting] = []
"""One at most: the parent starts one run."""


def is_likely(words: Sequence[str]) -> bool:
    """Whether a command line looks as if it trains in several processes; a wrong guess costs nothing but the guess."""
    return os.name == "posix" and any(word in _SEVERAL for word in words) and all("=" in word for word in words)


def give() -> None:
    """Start an agent that waits; it ends with this process, if nobody takes it."""
    _waiting.append(_Waiting())
    atexit.register(_drop)


def take(argv: Sequence[str], env: Mapping[str, str]) -> "subprocess.Popen[bytes] | None":
    """The waiting agent, which now is what `argv` would have started with this environment; None where none waits."""
    if not _waiting or list(argv[1:3]) != ["-m", AGENT]:
        return None
    waiting = _waiting.pop()
    said = json.dumps({"words": list(argv[3:]), "environment": dict(env)})
    try:
        with os.fdopen(waiting.pipe, "w", encoding="utf-8") as pipe:
            pipe.write(said)
    except BrokenPipeError:
        # it was ended by others
        waiting.process.wait()
        return None
    return waiting.process


def _drop() -> None:
    for waiting in _waiting:
        with suppress(OSError):
            os.close(waiting.pipe)
        waiting.process.kill()
        waiting.process.wait()
    _waiting.clear()


def wait(descriptor: int) -> list[str]:
    """In the agent: its words, when they come, after making its environment the one that came with them.

    Ends this process where the parent has ended without a word.
    """
    with os.fdopen(descriptor, encoding="utf-8") as pipe:
        said = pipe.read()
    if not said:
        sys.exit(0)
    told = json.loads(said)
    os.environ.clear()
    os.environ.update(told["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return list(told["words"])
