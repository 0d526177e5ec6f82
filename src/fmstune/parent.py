"""A runner does not outlive the process that started it: it would write into the folder of the resumed run."""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from fmstune.launch import PARENT

_EVERY_SECONDS = 0.25


def watch(on_death: Callable[[], None]) -> None:
    """End this process soon after its parent's death; `on_death` runs first. No parent named, no watching.

    A thread and not PR_SET_PDEATHSIG: that signal comes when the starting *thread* ends, and only on Linux.
    """
    parent = os.environ.get(PARENT)
    if parent is None or os.getppid() != int(parent):
        return

    def look() -> None:
        while os.getppid() == int(parent):
            time.sleep(_EVERY_SECONDS)
        try:
            on_death()
        finally:
            os._exit(1)

    threading.Thread(target=look, name="parent-watcher", daemon=True).start()


def interrupt_on_sigterm() -> None:
    """SIGTERM ends the run in order, as Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
