"""Which of several failing ranks is shown, and where its last words go."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fmstune.launch import agent
from fmstune.launch.agent import Failure
from fmstune.launch.subprocesses import PARENT
from fmstune.runs import run_folder


def failure(rank: int, code: int = 1, at: float = 0.0, kind: str = "internal", text: str = "why") -> Failure:
    return Failure(rank, code, at, kind, text)


def test_the_first_failure_is_shown() -> None:
    assert agent.first_failure([failure(0, at=2.0), failure(1, at=1.5)]).rank == 1


@pytest.mark.parametrize(
    "follower",
    [
        failure(0, at=1.0, text="RuntimeError: Connection closed by peer [127.0.0.1]:9653"),
        failure(0, code=130, at=1.0, kind="interrupted"),
        failure(0, code=-signal.SIGTERM, at=1.0, kind="signal"),
    ],
)
def test_a_rank_that_only_lost_another_one_is_not_the_cause(follower: Failure) -> None:
    cause = failure(1, code=-signal.SIGKILL, at=2.0, kind="signal", text="rank 1 died of SIGKILL")
    assert agent.first_failure([follower, cause]) is cause


KILLED = failure(1, code=-signal.SIGKILL, at=9.0, kind="signal", text="rank 1 died of SIGKILL")


@pytest.mark.parametrize(
    "partner",
    [
        # words that no list has, and an earlier time: the agent's clock of a killed rank counts whole seconds
        failure(0, at=1.0, text="Traceback …\nRuntimeError: Socket Timeout"),
        failure(0, at=1.0, text="Traceback …\nRuntimeError: Application timeout caused pair closure"),
        failure(0, code=2, at=1.0, kind="user", text="fmstune: error: loss is nan"),
        failure(0, code=-signal.SIGABRT, at=1.0, kind="signal", text="rank 0 died of SIGABRT"),
    ],
)
def test_a_killed_rank_is_the_cause_whatever_its_partner_says_and_when(partner: Failure) -> None:
    assert agent.first_failure([partner, KILLED]) is KILLED


def test_a_rank_that_threads_of_a_library_abort_follows_from_one_with_an_error() -> None:
    aborted = failure(0, code=-signal.SIGABRT, at=1.0, kind="signal", text="rank 0 died of SIGABRT")
    error = failure(1, at=2.0, text="ValueError: mine")
    assert agent.first_failure([aborted, error]) is error


def test_a_rank_that_lost_another_one_waits_to_be_ended_and_says_nothing(tmp_path: Path) -> None:
    """The agent ends it once it has seen the other one, and takes its error for no cause."""
    code = (
        "import sys, signal; from fmstune.launch import agent; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "agent.LONGEST_WAIT = 60.0; agent.tell_agent('internal', 'Connection closed by peer')"
    )
    said = tmp_path / "error.json"
    env = {**os.environ, "TORCHELASTIC_ERROR_FILE": str(said), agent.AGENT: "1"}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE)
    while not (said.exists() and said.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.2)
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (1, b"")


def test_the_last_words_go_to_the_agent_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert not agent.tell_agent("user", "words")
    monkeypatch.setenv("FMSTUNE_AGENT", "1")
    assert agent.tell_agent("user", "words")
    said = json.loads((tmp_path / "error.json").read_text())["message"]
    assert (said["fmstune"]["kind"], said["fmstune"]["text"]) == ("user", "words")


@pytest.mark.parametrize(
    ("status", "shown", "kept"),
    [
        ("running", failure(1, text="cause"), "cause"),
        ("failed", failure(1, text="cause"), "cause"),
        ("failed", failure(1, text="Connection closed by peer"), "first"),
        ("running", failure(1, text="Connection closed by peer"), "rank 1 lost its connection to another rank"),
    ],
)
def test_the_cause_is_recorded_over_what_followed_from_it(
    tmp_path: Path, status: str, shown: Failure, kept: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder.update_summary(tmp_path, {"status": status, "error": {"kind": "internal", "message": "first"}})
    assert agent.show_failure(shown, tmp_path) == 1
    assert run_folder.read_summary(tmp_path)["error"]["message"].startswith(kept)
    assert capsys.readouterr().err.count("\n") == 1


def test_the_agent_lives_on_when_it_names_itself_to_its_ranks() -> None:
    code = (
        "import os, time; from fmstune.launch import parent; parent.watch(lambda: None); "
        f"os.environ['{PARENT}'] = str(os.getpid()); time.sleep(0.6); print('alive')"
    )
    env = {**os.environ, PARENT: str(os.getpid())}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("alive\n", 0)
