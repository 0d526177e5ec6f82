"""How a process ends: its exit codes, and the signals that end a run or ask it to stop."""

import os
import signal
import sys

USER_ERROR = 2
INTERNAL_ERROR = 1
INTERRUPTED = 130
INTERRUPTING = frozenset(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
)
"""Signals that end a run on purpose: Ctrl-C, a scheduler, a closed terminal, Ctrl-\\."""
NOTICES = frozenset(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""Signals that ask a run to save a checkpoint and stop."""


def exit_code_of(code: int) -> int:
    """Translate a child's return code into this command's exit code; a negative one is the signal that killed it."""
    if code >= 0:
        return code
    return INTERRUPTED if -code in INTERRUPTING else INTERNAL_ERROR


def closed_pipe() -> int:
    """Return the exit code after the reader of stdout has closed it; nothing is flushed into the pipe at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return INTERNAL_ERROR
