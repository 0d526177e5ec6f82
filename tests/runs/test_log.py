"""What a terminal shows is added to the log of the run."""

import io
import os
import sys
import time
from pathlib import Path

import pytest

from fmstune.runs import log


def test_both_streams_go_to_the_terminal_and_to_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    with log.keep_log(Path()):
        print("a", 1)
        print("\x1b[31merror\x1b[0m: b", file=sys.stderr)
        print("without an end", end="")
    print("after it")
    assert capsys.readouterr() == ("a 1\nwithout an endafter it\n", "\x1b[31merror\x1b[0m: b\n")
    assert Path("log.txt").read_text() == "a 1\nerror: b\nwithout an end\n"


def test_stdout_that_is_not_shown_is_not_logged() -> None:
    with log.keep_log(Path(), stdout=False):
        print("of another rank")
        print("its error", file=sys.stderr)
    assert Path("log.txt").read_text() == "its error\n"


def test_a_bar_is_logged_now_and_then_and_when_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    logged = log.Logged(io.StringIO(), Path("log.txt"))
    for step in range(12):
        now[0] += 1
        logged.write(f"\rstep {step}")
    logged.write("\rstep 12\n")
    logged.close_log()
    assert Path("log.txt").read_text().splitlines() == ["step 0", "step 5", "step 10", "step 12"]


def test_a_second_process_adds_to_the_log() -> None:
    for word in ("first", "second"):
        with log.keep_log(Path()):
            print(word)
    assert Path("log.txt").read_text() == "first\nsecond\n"


def test_a_log_that_cannot_be_written_leaves_the_terminal_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with log.keep_log(Path("nowhere")):
        print("a")
    logged = log.Logged(sys.stdout, Path("log.txt"))
    os.close(logged._file or 0)
    logged.write("b\n")
    logged.write("c\n")
    logged.close_log()
    assert capsys.readouterr().out == "a\nb\nc\n"


def test_of_a_run_that_has_not_begun_the_logs_of_slurm_are_read() -> None:
    for number, name in enumerate(("slurm-10.log", "slurm-9.log")):
        Path(name).write_text(name)
        os.utime(name, (number, number))
    assert log.log_files(Path()) == [Path("slurm-10.log"), Path("slurm-9.log")]
    Path("log.txt").touch()
    assert log.log_files(Path()) == [Path("log.txt")]
