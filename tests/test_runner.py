"""How a rank ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fmstune import runner
from fmstune.config import freeze
from fmstune.data.preparation import mark_prepared
from fmstune.exit_codes import INTERNAL_ERROR, INTERRUPTED, INTERRUPTING
from fmstune.launch import early, preemption
from tests.config.test_freeze import tree

ENDS = """
import os, signal, sys
from fmstune import runner

class Lost(RuntimeError):
    def __str__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return "lost the other rank"

def act(options, until_the_end):
    raise Lost

runner._act = act
sys.exit(runner.main(["job.yaml"]))
"""


def test_a_signal_while_a_rank_tells_how_it_failed_does_not_change_what_it_tells() -> None:
    """The launcher ends the others as soon as one rank has failed, and those may be failing of that themselves."""
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, env=os.environ, timeout=60)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == "Lost: lost the other rank"
    assert "KeyboardInterrupt" not in done.stderr


def test_a_runner_that_begins_before_its_job_is_known_lets_signals_through_and_ends_without_a_word() -> None:
    reads, writes = os.pipe()
    argv = [sys.executable, "-m", "fmstune.runner", early.FLAG, str(reads)]
    with preemption.kept_back(INTERRUPTING):
        process = subprocess.Popen(argv, pass_fds=(reads,), stderr=subprocess.PIPE, text=True)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == (None, "")
    assert process.returncode == INTERRUPTED
    os.close(reads)
    os.close(writes)


def test_a_runner_never_composes_and_imports_no_hydra() -> None:
    source = "import sys; from fmstune import runner; print('hydra' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_rows_that_are_prepared_already_are_prepared_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a job that Slurm has put back into its queue."""
    job = freeze.freeze(tree(launcher={"strategy": "fsdp", "num_processes": 2})).job
    freeze.write(job, Path("job.yaml"))
    # what trains cannot be imported
    monkeypatch.setitem(sys.modules, "fmstune.training", None)
    assert runner.main(["job.yaml", "--prepare"]) == INTERNAL_ERROR
    mark_prepared(job)
    assert runner.main(["job.yaml", "--prepare"]) == 0
