"""The parent's side of points that fork from one warm process, `fmstune.fork_server`: a sweep imports only once."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from fmstune.launch import subprocesses

_RUNNER = [sys.executable, "-m", "fmstune.runner"]
_SERVER = [sys.executable, "-m", "fmstune.fork_server"]
_SAFE = {
    # pyarrow's allocator would start a thread, and a fork takes none along
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    # ask NVML and not CUDA, which a fork could not use any more (torch/cuda/__init__.py, `is_available`)
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
"""What makes the warm process safe to fork; its points inherit it."""


@dataclass
class _Server:
    """A warm process, and the line to it."""

    process: "subprocess.Popen[bytes]"
    line: IO[str]
    environment: Mapping[str, str]
    point: int | None = None  # process id of the point that runs

    def send_signal(self, number: int) -> None:
        """For the point that runs: the warm process hands it on, or ends of it while it still imports."""
        if number != signal.SIGKILL:
            self.process.send_signal(number)
            return
        with suppress(ProcessLookupError):
            os.kill(self.point or self.process.pid, number)

    def run(self, words: Sequence[str]) -> int:
        """One point to its end; its exit code (negative: the signal it died of)."""
        try:
            print(json.dumps(words), file=self.line, flush=True)
            self.point = json.loads(self.line.readline())
            code: int = json.loads(self.line.readline())
        except (json.JSONDecodeError, OSError):
            # nothing comes any more: the warm process is gone, and its point ends with it
            return self.process.wait() or 1
        finally:
            self.point = None
        return code


_servers: list[_Server] = []
"""The one of this process, if it has one."""


def start_forked(argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Run to the end as `subprocesses.start` does: on Linux a runner with the warm process's environment is forked."""
    # elsewhere the system's own libraries do not allow a fork
    forks = sys.platform == "linux" and [*argv[: len(_RUNNER)]] == _RUNNER
    if forks and (not _servers or _servers[0].process.poll() is not None):
        close()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            number = theirs.fileno()
            process = subprocess.Popen([*_SERVER, str(number)], env={**env, **_SAFE}, pass_fds=(number,))
            # the socket is closed with its file
            _servers.append(_Server(process, ours.makefile("rw", encoding="utf-8"), dict(env)))
    if not forks or _servers[0].environment != dict(env):
        return subprocesses.start(argv, env)
    with subprocesses.handing_on(_servers[0].send_signal) as seen:
        code = _servers[0].run(argv[len(_RUNNER) :])
    return -seen[0] if seen and code == -signal.SIGKILL else code


def close() -> None:
    """End the warm process, where there is one."""
    for server in _servers:
        with suppress(OSError):
            server.line.close()
        server.process.wait()
    _servers.clear()
