# SPDX-License-Identifier: Apache-2.0
"""Whole processes timed in pairs that alternate, so that a machine whose speed drifts is slow for both sides.

This process imports nothing large: on Linux a child's peak memory starts from that of the process that starts it.
"""

import importlib
import os
import runpy
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

A = TypeVar("A")
B = TypeVar("B")

ROOT = Path(__file__).parents[1]
CHILDREN = Path(__file__).parent / "children"
LOOK_EVERY_SECONDS = 0.002
"""How often the lines of a child's file are counted."""


class Child(NamedTuple):
    """What one process took, its own children included."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds, user and system."""
    peak: int
    """Bytes of resident memory, of the largest of its processes."""
    out: str
    lines: list[float]
    """When each line of the watched file was there, in seconds from the start."""


class Spread(NamedTuple):
    """The middle of several figures, and how far they lie apart."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """The median of the values with its range."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def average(values: Sequence[float]) -> Spread:
    """The mean of the values with their range."""
    return Spread(statistics.fmean(values), min(values), max(values), len(values))


def threads() -> int:
    """OMP_NUM_THREADS, else the cores that this process may use; the same for both sides."""
    given = os.environ.get("OMP_NUM_THREADS")
    return int(given) if given else len(os.sched_getaffinity(0))


def environment() -> dict[str, str]:
    """The environment of every child."""
    return {
        **os.environ,
        "OMP_WAIT_POLICY": "passive",
        "OMP_NUM_THREADS": str(threads()),
        "RAYON_NUM_THREADS": str(threads()),
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_OFFLINE": "1",
    }


@contextmanager
def folder(name: str) -> Iterator[Path]:
    """A folder for what a benchmark trains; kept below BENCH_FOLDER where that is set, so that it may go on there."""
    if kept := os.environ.get("BENCH_FOLDER"):
        yield Path(kept).absolute() / name
    else:
        with tempfile.TemporaryDirectory() as made:
            yield Path(made)


def python(script: str, *words: object) -> list[str]:
    """The command line of one of `children/`."""
    return [sys.executable, str(CHILDREN / script), *map(str, words)]


def fmstune(*words: str) -> list[str]:
    """The command line of the tool, by its console script."""
    return [str(Path(sys.executable).with_name("fmstune")), *words]


def run(argv: Sequence[str], *, env: Mapping[str, str] | None = None, watched: Path | None = None) -> Child:
    """Run to the end; raises RuntimeError when it does not go well."""
    start = _forked if _forks and argv[1].startswith(str(CHILDREN)) else _spawned
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.perf_counter()
        pid = start(argv, {**environment(), **(env or {})}, out.fileno(), err.fileno())
        try:
            lines, status, usage = _wait(pid, begun, watched)
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise
        wall = time.perf_counter() - begun
        code = os.waitstatus_to_exitcode(status)
        text, errors = (_read(file.fileno()) for file in (out, err))
    if code != 0:
        raise RuntimeError(f"{' '.join(argv)} exited with {code}\n{text[-2000:]}\n{errors[-4000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Child(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit, text, lines)


_forks = False
"""Whether the scripts of `children/` are forked from this process."""


def fork_children() -> None:
    """From now on, start the scripts of `children/` without the seconds that their imports take.

    For trying them out: their memory and their time to start are no figures then.
    """
    global _forks
    # pyarrow's allocator has a thread of its own, with which a fork can wait for ever
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
    for name in ("fmstune.training.pipeline", "peft", "pyarrow.parquet", "trl"):
        importlib.import_module(name)
    _forks = True


def _spawned(argv: Sequence[str], env: Mapping[str, str], out: int, err: int) -> int:
    process = subprocess.Popen(argv, stdout=out, stderr=err, env=env)
    # it is waited for here, with its usage, and not by subprocess
    process.returncode = 0
    return process.pid


def _forked(argv: Sequence[str], env: Mapping[str, str], out: int, err: int) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.environ.clear()
        os.environ.update(env)
        sys.argv = list(argv[1:])
        # as where Python starts a script
        sys.path[0] = str(CHILDREN)
        runpy.run_path(argv[1], run_name="__main__")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def interleave(first: Callable[[], A], second: Callable[[], B], pairs: int) -> list[tuple[A, B]]:
    """Run both so many times; each goes first in every other pair."""
    made: list[tuple[A, B]] = []
    for number in range(pairs):
        if number % 2 == 0:
            one = first()
            made.append((one, second()))
        else:
            two = second()
            made.append((first(), two))
    return made


def rounds(sides: Mapping[str, Callable[[], A]], count: int) -> list[dict[str, A]]:
    """Run all of them so many times; who goes first changes from round to round."""
    names = list(sides)
    made = []
    for number in range(count):
        turn = number % len(names)
        made.append({name: sides[name]() for name in names[turn:] + names[:turn]})
    return made


def _wait(pid: int, begun: float, watched: Path | None) -> "tuple[list[float], int, os.struct_rusage]":
    """The child's end, and when each line of the watched file appeared."""
    lines: list[float] = []
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG if watched else 0)
        if watched is not None and watched.is_file():
            now = time.perf_counter() - begun
            lines += [now] * (watched.read_bytes().count(b"\n") - len(lines))
        if ended:
            return lines, status, usage
        time.sleep(LOOK_EVERY_SECONDS)


def _read(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0).decode(errors="replace")
