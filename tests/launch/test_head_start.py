"""The agent that imports while the parent composes: who gets it, what it is told, and that nobody leaves it behind."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fmstune.launch import head_start


@pytest.fixture(autouse=True)
def _nobody_waits() -> Iterator[None]:
    yield
    head_start._drop()


@pytest.mark.parametrize(
    ("words", "likely"),
    [
        (["launcher=ddp"], True),
        (["model=tiny_llama", "launcher=fsdp", "launcher.num_processes=2"], True),
        (["launcher=fsdp1"], True),
        ([], False),
        (["launcher=local"], False),
        (["launcher=slurm"], False),
        (["check", "launcher=fsdp"], False),
        (["-m", "launcher=ddp", "seed=1,2"], False),
        (["launcher=ddp", "--cfg", "job"], False),
        (["launcher=ddp", "--help"], False),
    ],
)
def test_it_is_for_runs_of_several_processes(words: list[str], likely: bool) -> None:
    assert head_start.is_likely(words) is likely


def test_it_is_for_the_agent_only_and_once() -> None:
    head_start.give()
    assert head_start.take([sys.executable, "-m", "fmstune.runner", "run/job.yaml"], os.environ) is None
    agent = [sys.executable, "-m", "fmstune.launch.agent", "run/job.yaml", "--", "--trust=a"]
    taken = head_start.take(agent, {**os.environ, "GIVEN": "1"})
    assert taken is not None
    taken.kill()
    taken.wait()
    assert head_start.take(agent, os.environ) is None


def test_the_agent_is_told_its_words_and_its_environment(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    code = (
        "import json, os, sys; from fmstune.launch import head_start\n"
        "words = head_start.wait(int(sys.argv[1]))\n"
        "print(json.dumps([words, dict(os.environ)]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(reading)], pass_fds=[reading], stdout=subprocess.PIPE, text=True
    )
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        json.dump({"words": ["job.yaml", "--"], "environment": {"OMP_NUM_THREADS": "3"}}, pipe)
    out, _ = process.communicate(timeout=60)
    assert json.loads(out) == [["job.yaml", "--"], {"OMP_NUM_THREADS": "3"}]


def test_one_that_was_ended_by_others_is_not_taken() -> None:
    head_start.give()
    process = head_start._waiting[0].process
    process.kill()
    process.wait()
    assert head_start.take([sys.executable, "-m", "fmstune.launch.agent", "job.yaml", "--"], os.environ) is None


@pytest.mark.slow
def test_it_does_not_outlive_a_parent_that_is_killed() -> None:
    code = "from fmstune.launch import head_start; head_start.give()\n"
    code += "print(head_start._waiting[0].process.pid, flush=True)\n"
    code += "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    end = time.monotonic() + 60
    while psutil.pid_exists(int(done.stdout)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not psutil.pid_exists(int(done.stdout))


def test_a_wrong_command_leaves_nobody_behind(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("fmstune")
    argv = [script, "launcher=ddp", "launcher.num_proceses=2"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, "num_processes" in done.stderr, "Traceback" in done.stderr) == (2, True, False)
    waiting = [each for each in psutil.process_iter(["cmdline"]) if head_start.WAIT in (each.info["cmdline"] or [])]
    assert not [each for each in waiting if str(tmp_path) in each.cwd()]
