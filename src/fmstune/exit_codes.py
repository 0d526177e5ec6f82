"""How the command ends: 0, 2 for what the user can mend, 1 for what we must, 130 when interrupted."""

import os
import sys

from fmstune.signals import INTERRUPTING

USER_ERROR = 2
INTERNAL_ERROR = 1
INTERRUPTED = 130


def of_process(code: int) -> int:
    """A child's code as ours; negative is the signal that it died of."""
    if code >= 0:
        return code
    return INTERRUPTED if -code in INTERRUPTING else INTERNAL_ERROR


def closed_pipe() -> int:
    """`| head` has seen enough: nothing may be flushed into it at exit; the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return INTERNAL_ERROR
