"""One command as a process of its own: its lines stream to this program's, an interrupt is handed on, errors rise.

Nothing of this process is changed: no handler of a signal, no working directory, no environment, no state of Hydra's.
"""

import codecs
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmstune.errors import Problem, UserError, render
from fmstune.exit_codes import USER_ERROR
from fmstune.launch import caller
from fmstune.launch.subprocesses import PARENT

_COMMAND = (sys.executable, "-m", "fmstune")
_WAIT = 0.5
"""Seconds between two looks at whether the command has ended: what it has started may keep its pipes open."""


class ShownError(UserError):
    """Problems as the command shows them, all in one text."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("", "")
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return render(self.problems)

    def __reduce__(self) -> Any:
        return (ShownError, (self.problems,))


@dataclass(frozen=True)
class Answer:
    """What a command has said and left."""

    code: int
    out: str
    """Its standard output, where that was to be kept."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """The files of `fmstune.launch.caller`, by their names."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with what the user gave."""
        return tuple(Problem(*one) for one in self.told.get(caller.PROBLEMS, ()))

    @property
    def place(self) -> Path | None:
        """The folder of the run or of the sweep, where there is one."""
        return Path(self.told[caller.PLACE]) if caller.PLACE in self.told else None

    def raise_if_failed(self) -> None:
        """Raise UserError with all problems, or RuntimeError where the command has failed for another reason."""
        if self.code == USER_ERROR and self.problems:
            raise ShownError(self.problems)
        if self.code:
            raise RuntimeError(f"fmstune ended with exit code {self.code}; its own words are above")


def call_command(words: Sequence[str], *, keep: bool = False, job: str | None = None) -> Answer:
    """Run `fmstune WORDS` to its end; with `keep`, its standard output is kept and not shown.

    `job` is the YAML of the job that the words made before: the command refuses to run another one.
    Raises KeyboardInterrupt after the command has ended in order, and again at once for a second one.
    """
    with tempfile.TemporaryDirectory(prefix="fmstune-") as name:
        folder = Path(name)
        if job is not None:
            (folder / caller.JOB).write_text(job, encoding="utf-8")
        own = {caller.FOLDER: name, PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [*_COMMAND, *words],
            env={**os.environ, **own},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Jupyter interrupts all processes of the kernel's group, and a terminal those of the foreground
            process_group=0,
        )
        kept: list[str] = []
        out, err = (kept.append if keep else _show_out), _show_err
        with process:
            code = _wait_for(process, out, err)
        return Answer(code, "".join(kept), _read(folder))


def _show_out(text: str) -> None:
    # as it is now: a notebook and redirect_stdout replace it
    sys.stdout.write(text)
    sys.stdout.flush()


def _show_err(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _wait_for(process: "subprocess.Popen[bytes]", out: Callable[[str], object], err: Callable[[str], object]) -> int:
    """Show what the process says until it ends; its exit code. An interrupt is handed on, and raised at the end."""
    assert process.stdout is not None and process.stderr is not None
    interrupted = False
    with selectors.DefaultSelector() as pipes:
        for pipe, show in ((process.stdout, out), (process.stderr, err)):
            decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
            pipes.register(pipe, selectors.EVENT_READ, (show, decoder))
        while True:
            try:
                _show_all(process, pipes)
                code = process.wait()
                break
            except KeyboardInterrupt:
                # the second one kills a run, as at a terminal
                interrupted = True
                process.send_signal(signal.SIGINT)
            except BaseException:
                process.terminate()
                raise
    if interrupted:
        raise KeyboardInterrupt
    return code


def _show_all(process: "subprocess.Popen[bytes]", pipes: selectors.BaseSelector) -> None:
    """Read both pipes until they are closed, or until the process has ended and nothing is left in them."""
    while pipes.get_map():
        ready = pipes.select(_WAIT)
        if not ready and process.poll() is not None:
            return
        for key, _ in ready:
            show, decoder = key.data
            data = os.read(key.fd, 1 << 16)
            if text := decoder.decode(data, final=not data):
                show(text)
            if not data:
                pipes.unregister(key.fileobj)


def _read(folder: Path) -> dict[str, Any]:
    """What was told, by the names of the files; the job as it is, as YAML."""
    files = (folder / name for name in (caller.JOB, caller.SOURCES, caller.PLAN, caller.PROBLEMS, caller.PLACE))
    texts = {file.name: file.read_text(encoding="utf-8") for file in files if file.is_file()}
    return {name: text if name == caller.JOB else json.loads(text) for name, text in texts.items()}
