"""A runner that starts before its job is known: it gets the job's words, or ends with the command."""

import os
import signal
import sys

import pytest

from fmstune.config.job import Launcher
from fmstune.launch import early, subprocesses
from tests.cli.test_main import alive

STAND_IN = """
import json, os, sys
if sys.argv[1] != "--early":
    sys.exit(3)
os.kill(os.getpid(), KILLED)
with open(int(sys.argv[2])) as words:
    sys.exit(40 + len(json.load(words)))
"""
WORDS = ("job.yaml", "--verb=check")


@pytest.fixture(autouse=True)
def _stand_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the runner, which imports for seconds: 42 for two words from the pipe, 3 where it started anew."""
    number = str(getattr(request, "param", 0))
    monkeypatch.setattr(early, "_RUNNER", [sys.executable, "-c", STAND_IN.replace("KILLED", number)])


def environment() -> dict[str, str]:
    return subprocesses.environment(Launcher(), os.environ, computes=False)


def test_the_words_of_the_job_reach_the_runner_that_has_begun() -> None:
    with early.runner_for(["check", "peft=lora"]):
        (begun,) = early._begun
        assert early.start_composed([*early._RUNNER, *WORDS], environment()) == 42
        assert begun.process.returncode == 42
    assert early._begun == []


@pytest.mark.parametrize("other", [{"OMP_NUM_THREADS": "33"}, {"CUDA_VISIBLE_DEVICES": ""}])
def test_a_job_of_another_environment_has_a_runner_of_its_own(other: dict[str, str]) -> None:
    with early.runner_for(["check"]):
        (begun,) = early._begun
        assert early.start_composed([*early._RUNNER, *WORDS], environment() | other) == 3
        assert begun.process.returncode == -signal.SIGKILL


def test_what_is_no_runner_is_started_as_it_is() -> None:
    with early.runner_for(["check"]):
        assert early.start_composed([sys.executable, "-c", "raise SystemExit(5)"], environment()) == 5


def test_a_runner_whose_job_never_comes_ends_with_its_command() -> None:
    with early.runner_for(["modules"]):
        (begun,) = early._begun
    assert not alive(begun.process.pid)
    assert early._begun == []


@pytest.mark.parametrize("_stand_in", [int(signal.SIGKILL)], indirect=True)
def test_a_runner_that_has_ended_before_its_words_come_gives_its_own_code() -> None:
    with early.runner_for(["check"]):
        early._begun[0].process.wait()
        assert early.start_composed([*early._RUNNER, *WORDS], environment()) == -signal.SIGKILL


@pytest.mark.parametrize("words", ["", "--help", "check --help", "check --cfg job", "show-data -m", "train", "seed=3"])
def test_no_runner_begins_for_what_may_need_none(words: str) -> None:
    with early.runner_for(words.split()):
        assert early._begun == []


def test_signals_wait_for_the_handlers_of_the_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import os, signal, sys; os.kill(os.getpid(), signal.SIGINT); print('ready', flush=True)"
    source += "; sys.exit(7 if signal.SIGINT in signal.sigpending() else 8)"
    monkeypatch.setattr(early, "_RUNNER", [sys.executable, "-c", source])
    with early.runner_for(["check"]):
        assert early.start_composed([*early._RUNNER, *WORDS], environment()) == 7
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
