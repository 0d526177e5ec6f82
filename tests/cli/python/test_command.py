"""One command as a process of its own, tried with small programs in its place."""

import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fmstune.cli.python import command
from fmstune.errors import Problem, UserError

Program = Callable[[str], None]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """Let this code run in place of the command."""

    def put(code: str) -> None:
        monkeypatch.setattr(command, "_COMMAND", (sys.executable, "-c", code))

    with contextlib.suppress(ChildProcessError):
        yield put


def test_its_lines_go_to_the_output_that_the_program_has_now(program: Program) -> None:
    program("import sys; print('plan'); print('step 1', file=sys.stderr)")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        answer = command.call_command([])
    assert (answer.code, answer.out, out.getvalue(), err.getvalue()) == (0, "", "plan\n", "step 1\n")


def test_lines_come_while_it_runs(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the file that is written when its first line has come."""
    program("import os, time\nprint('first')\nwhile not os.path.exists('seen'): time.sleep(0.01)\nprint('last')")
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        (tmp_path / "seen").touch()

    monkeypatch.setattr(command, "_show_out", show)
    assert command.call_command([]).code == 0
    assert "".join(shown) == "first\nlast\n"


def test_kept_output_is_not_shown(program: Program, capfd: pytest.CaptureFixture[str]) -> None:
    program("print('⟦trained⟧' * 20_000)")
    assert command.call_command([], keep=True).out == "⟦trained⟧" * 20_000 + "\n"
    assert capfd.readouterr().out == ""


def test_it_ends_with_the_command_though_what_that_has_started_keeps_its_pipes_open(program: Program) -> None:
    program("import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])")
    begun = time.monotonic()
    assert command.call_command([]).code == 0
    assert time.monotonic() - begun < 30


INTERRUPTED = """
import signal, sys, time
seen = []
signal.signal(signal.SIGINT, lambda *_: seen.append(1))
print("begun")
while not seen: time.sleep(0.01)
time.sleep(0.3)
print("ended in order after", len(seen))
sys.exit(130)
"""


def test_an_interrupt_is_handed_on_once_and_raised_when_the_command_has_ended(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(INTERRUPTED)
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        if "begun" in text:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    monkeypatch.setattr(command, "_show_out", show)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            command.call_command([])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)
    assert "".join(shown) == "begun\nended in order after 1\n"


def test_the_command_is_ended_where_its_lines_cannot_be_shown(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(
        f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); print('x'); time.sleep(60)"
    )

    def fail(_text: str) -> None:
        raise ValueError("I/O operation on closed file")

    monkeypatch.setattr(command, "_show_out", fail)
    with pytest.raises(ValueError, match="closed file"):
        command.call_command([])
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


TELLS = """
import os, sys
from fmstune.errors import Problem
from fmstune.launch import caller
caller.listen()
assert caller.FOLDER not in os.environ and caller.known_job() == "seed: 1\\n"
caller.tell_problems([Problem("peft", "=x: no such choice"), Problem("", "nothing to do")])
sys.exit(2)
"""


def test_what_is_wrong_comes_as_problems_and_in_the_words_of_the_command(program: Program) -> None:
    program(TELLS)
    answer = command.call_command([], job="seed: 1\n")
    with pytest.raises(UserError) as raised:
        answer.raise_if_failed()
    assert raised.value.problems == (Problem("peft", "=x: no such choice"), Problem("", "nothing to do"))
    assert str(raised.value) == "fmstune: 2 errors:\n  1. peft=x: no such choice\n  2. nothing to do"


def test_another_failure_names_the_exit_code(program: Program) -> None:
    program("import sys; sys.exit(1)")
    with pytest.raises(RuntimeError, match="ended with exit code 1; its own words are above"):
        command.call_command([]).raise_if_failed()
