"""The process above a machine's ranks: accelerate's own launcher, with one error on top and nobody left behind.

`python -m fmstune.launch.agent RUN/job.yaml [words of accelerate launch] -- [flags of the runner]`
"""

import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from fmstune.exit_codes import INTERRUPTING, NOTICES
from fmstune.launch import parent, preemption
from fmstune.launch.subprocesses import AGENT, PARENT
from fmstune.runs import log, run_folder
from fmstune.tables import show_plain_characters
from fmstune.upstream import quick_imports

LONGEST_WAIT, SHORT_WAIT = 5.0, 1.0
"""Seconds that a failed rank waits to be ended, where its error tells of another rank's end and where it does not.

The agent looks at the ranks ten times a second, and less often on a loaded machine."""
_FOLLOWS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "DistNetworkError", "NCCL", "Gloo")
"""Words of an error that only tells of another process's end."""


class Failure(NamedTuple):
    """How one rank ended."""

    rank: int
    code: int
    """Negative: the signal that it died of."""
    at: float
    """Seconds since 1970."""
    kind: str
    text: str
    """What to show of it."""


def main(words: Sequence[str] | None = None) -> int:
    """Start the ranks and wait; the first failing rank's exit code, shown once."""
    show_plain_characters()
    job_file, *options = sys.argv[1:] if words is None else words
    options, flags = options[: options.index("--")], options[options.index("--") + 1 :]
    # before any thread: a thread that lets notices through would be ended by them
    _hand_on_notices()
    parent.watch(lambda: None)
    folder = Path(job_file).parent
    with log.keep_log(folder):
        return _start_ranks(job_file, options, flags, folder)


def _start_ranks(job_file: str, options: Sequence[str], flags: Sequence[str], folder: Path) -> int:
    # the ranks must not outlive this process, which their own sessions would let them
    os.environ |= {PARENT: str(os.getpid()), AGENT: "1"}
    _import_launcher()
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    arguments = [*options, "--module", "fmstune.runner", job_file, *flags]
    try:
        launch_command(launch_command_parser().parse_args(arguments))
    except ChildFailedError as err:
        return show_failure(first_failure([_failure(*failed) for failed in err.failures.items()]), folder)
    except SignalException as err:
        if preemption.in_slurm_job() and run_folder.is_preempted(folder):
            return preemption.CODE
        return 130 if err.sigval in INTERRUPTING else 128 + int(err.sigval)
    except (RendezvousError, DistError, ConnectionError) as err:
        said = " ".join(str(err).split())[:300] or type(err).__name__
        problem = f"launcher: the other machines cannot be reached ({said})"
        hint = "start all of them, with the same main_process_ip and main_process_port"
        print(f"fmstune: error: {problem}; {hint}", file=sys.stderr)
        return 2
    return 0


def _import_launcher() -> None:
    """The seconds that this process takes; in silence, as torch's launcher has its own words on what is said here."""
    former = os.environ.get("LOGLEVEL")
    os.environ["LOGLEVEL"] = "CRITICAL"
    with quick_imports():
        for name in ("accelerate.commands.launch", "torch.distributed.run"):
            importlib.import_module(name)
    os.environ.pop("LOGLEVEL") if former is None else os.environ.update(LOGLEVEL=former)


def _hand_on_notices() -> None:
    """A notice to stop is for the ranks, also for those that start after it came.

    Torch's launcher knows of signals that end only. The ranks are started with notices kept back, as they are here.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, NOTICES)
    told: set[int] = set()

    def hand_on() -> None:
        number = signal.sigwait(NOTICES)
        while True:
            for child in psutil.Process().children():
                with suppress(psutil.NoSuchProcess):
                    if child.pid not in told and "fmstune.runner" in child.cmdline():
                        child.send_signal(number)
                        told.add(child.pid)
            time.sleep(0.25)

    threading.Thread(target=hand_on, name="notices", daemon=True).start()


def _failure(rank: int, failed: Any) -> Failure:
    """What torch's launcher knows of a rank's end; the rank itself says more in its error file."""
    said = failed.error_file_data.get("message")
    if isinstance(said, dict) and "fmstune" in said:
        return Failure(rank, failed.exitcode, **said["fmstune"])
    kind, text = "internal", f"rank {rank} ended with code {failed.exitcode}, and its own words are above"
    if failed.exitcode < 0:
        name = signal.Signals(-failed.exitcode).name
        hint = "; SIGKILL often means that the machine ran out of memory" if name == "SIGKILL" else ""
        kind, text = "signal", f"rank {rank} died of {name}{hint}"
    return Failure(rank, failed.exitcode, float(failed.timestamp), kind, text)


def first_failure(failures: Sequence[Failure]) -> Failure:
    """The failure that the others follow from: a process that has lost another one fails too, and may be the faster."""
    return min(failures, key=lambda failure: (_distance(failure), failure.at))


def _distance(failure: Failure) -> int:
    """How far a failure may be from the cause, whatever the times: 0 is nothing that another process can bring about.

    A killed process says nothing, and what its partners then raise has many words; gloo's threads may also abort them.
    """
    if failure.kind == "interrupted" or failure.code in (-signal.SIGTERM, -signal.SIGINT):
        return 4
    if failure.kind == "internal" and tells_of_another(failure.text):
        return 3
    if failure.code == -signal.SIGABRT:
        return 2
    return 0 if failure.code < 0 else 1


def tells_of_another(text: str) -> bool:
    """Whether an error only tells of the end of another process."""
    return any(word in text for word in _FOLLOWS)


def show_failure(failure: Failure, folder: Path) -> int:
    """Say it once, and record it where the main rank could not do so itself; the exit code."""
    number = -failure.code if failure.code < 0 else None
    if number in INTERRUPTING or failure.kind == "interrupted":
        return 130
    if failure.kind == run_folder.PREEMPTED:
        print(failure.text, file=sys.stderr)
        return preemption.CODE
    if lost := tells_of_another(failure.text) and failure.kind == "internal":
        # of several machines, all ranks of this one are as they should be
        text = f"fmstune: error: rank {failure.rank} lost its connection to another rank, which has failed"
        hint = "or cannot be reached any more; see what it says, and start the same command (on all machines) to resume"
        failure = failure._replace(text=f"{text} {hint} ({failure.text.splitlines()[-1][:300]})")
    print(failure.text, file=sys.stderr)
    summary = run_folder.read_summary(folder)
    known = (summary.get("error") or {}).get("message", "")
    # another machine may have recorded the cause already
    if summary and not (lost and summary.get("status") == run_folder.FAILED and not tells_of_another(known)):
        last = failure.text.strip().splitlines()[-1]
        run_folder.mark_ended(folder, run_folder.FAILED, failure.kind, last.removeprefix("fmstune: error: "))
    return 1 if number is not None else failure.code


def tell_agent(kind: str, text: str) -> bool:
    """Leave this rank's last words for the agent; False where no agent waits for them, and they must be printed."""
    place = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if place is None or AGENT not in os.environ:
        return False
    now = time.time()
    own = {"kind": kind, "text": text, "at": now}
    # the form that torch's launcher reads (torch/distributed/elastic/multiprocessing/errors)
    said = {"message": text, "extraInfo": {"py_callstack": text, "timestamp": str(int(now))}, "fmstune": own}
    Path(place).write_text(json.dumps({"message": said}), encoding="utf-8")
    if kind == "internal":
        _wait_for_end(LONGEST_WAIT if tells_of_another(text) else SHORT_WAIT)
    return True


def _wait_for_end(seconds: float) -> None:
    """Let the agent see the end of another rank first: it ends this one then, and its error is no cause."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(1))
    time.sleep(seconds)


if __name__ == "__main__":
    sys.exit(main())
