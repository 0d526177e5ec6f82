"""The log of a run: what its processes say on the terminal is also added to `log.txt` in its folder."""

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

LOG = "log.txt"
"""File of the log, in the run folder."""
SLURM_LOGS = "slurm-*.log"
"""Logs of the Slurm jobs of a run, which hold what was said before its processes began."""
_BAR_EVERY_SECONDS = 5.0
"""A line that is drawn again and again, such as a bar, is logged this often and when it is done."""
_COLORS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Logged:
    """A stream of text whose lines are also added to a file, each of them whole, by several processes at once."""

    def __init__(self, stream: TextIO, path: Path) -> None:
        """Raises OSError where the file cannot be opened."""
        self._stream, self._line, self._drawn = stream, "", 0.0
        self._file: int | None = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def write(self, text: str) -> int:
        """As the stream does; a log that cannot be written any more is left, and the stream is unaffected."""
        written = self._stream.write(text)
        for piece in re.split(r"(?<=[\n\r])", text.replace("\r\n", "\n")) if self._file is not None else ():
            self._line += piece.rstrip("\r\n")
            if piece.endswith("\n"):
                self._add()
            elif piece.endswith("\r"):
                self._redraw()
        return written

    def _redraw(self) -> None:
        """The line is drawn again from its beginning."""
        if time.monotonic() - self._drawn >= _BAR_EVERY_SECONDS and self._line:
            self._drawn = time.monotonic()
            self._add()
        self._line = ""

    def _add(self) -> None:
        line, self._line = _COLORS.sub("", self._line), ""
        try:
            # one call a line: O_APPEND keeps the lines of several processes apart
            os.write(self._file if self._file is not None else -1, f"{line}\n".encode(errors="backslashreplace"))
        except OSError:
            self._file = None

    def close_log(self) -> None:
        """Add what is left of a line, and leave the stream alone from now on."""
        if self._file is not None:
            if self._line:
                self._add()
            os.close(self._file)
        self._file = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def keep_log(folder: Path, *, stdout: bool = True) -> Iterator[None]:
    """Add what this process prints to the folder's log; not its `stdout` where the terminal does not show that."""
    with ExitStack() as restored:
        for name in ("stdout", "stderr") if stdout else ("stderr",):
            former = getattr(sys, name)
            try:
                logged = Logged(former, folder / LOG)
            except OSError:  # such as a folder that is read only: what trains says so
                continue
            setattr(sys, name, logged)
            restored.callback(setattr, sys, name, former)
            restored.callback(logged.close_log)
        yield


def log_files(folder: Path) -> list[Path]:
    """The log of a run; where its processes have not begun, those of its Slurm jobs."""
    own = folder / LOG
    return [own] if own.is_file() else sorted(folder.glob(SLURM_LOGS), key=lambda path: path.stat().st_mtime)
