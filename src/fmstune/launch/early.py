"""A runner that starts before its job is known, and imports its libraries while the parent composes the job."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from fmstune.config.job import Launcher
from fmstune.exit_codes import INTERRUPTING, NOTICES
from fmstune.launch import preemption, subprocesses

FLAG = "--early"
"""The runner's only word but the number of the pipe that brings all others, as JSON."""
_RUNNER = [sys.executable, "-m", "fmstune.runner"]
_VERBS = ("check", "modules", "show-data")
"""They need what trains, and have no run folder that must know of a runner before it imports."""


@dataclass
class _Early:
    """A runner that waits for its words, and the pipe to it."""

    process: "subprocess.Popen[bytes]"
    line: IO[str]
    environment: Mapping[str, str]


_begun: list[_Early] = []
"""The one of this process, if it has one."""


@contextmanager
def runner_for(words: Sequence[str]) -> Iterator[None]:
    """Begin the runner that a command of these words will need; it does not outlive this context.

    None for words with a flag, which may ask for something else, such as `--help`.
    """
    try:
        if words and words[0] in _VERBS and not any(word.startswith("-") for word in words):
            _begin()
        yield
    finally:
        _end()


def _begin() -> None:
    # that of most jobs; this one is not known yet
    env = subprocesses.environment(Launcher(), os.environ, computes=False)
    # signals wait for the handlers of the runner, and until this process knows whom to end
    with preemption.kept_back(INTERRUPTING | NOTICES):
        reads, writes = os.pipe()
        process = subprocess.Popen([*_RUNNER, FLAG, str(reads)], env=env, pass_fds=(reads,))
        os.close(reads)
        _begun.append(_Early(process, os.fdopen(writes, "w", encoding="utf-8"), env))


def _end() -> None:
    for early in _begun:
        early.line.close()
        early.process.kill()
        early.process.wait()
    _begun.clear()


def start_composed(argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Run to the end as `subprocesses.start` does: the runner that has begun, where its environment is this one."""
    if not _begun or [*argv[: len(_RUNNER)]] != _RUNNER or dict(env) != _begun[0].environment:
        _end()
        return subprocesses.start(argv, env)
    # one that has ended already says why itself
    with suppress(BrokenPipeError), _begun[0].line as line:
        json.dump(argv[len(_RUNNER) :], line)
    return subprocesses.wait_for(_begun[0].process)
