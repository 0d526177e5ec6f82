"""What the verbs that look after runs can be asked, as `config.requests` has it for the others."""

from dataclasses import dataclass
from typing import Annotated

from fmstune.config.flags import POSITIONAL, As


@dataclass(frozen=True, kw_only=True)
class Runs:
    """List the runs and sweeps of a folder, with status, objective, time and size."""

    folder: Annotated[str, POSITIONAL] = "runs"
    json: bool = False
    """Print one JSON list in place of the table."""


@dataclass(frozen=True, kw_only=True)
class Logs:
    """Print what a run or the points of a sweep said."""

    run: Annotated[str, POSITIONAL]
    follow: Annotated[bool, As(flags=("--follow", "-f"))] = False
    """Print what is added until the run ends."""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Let a run save a checkpoint and stop."""

    run: Annotated[str, POSITIONAL]


@dataclass(frozen=True, kw_only=True)
class Clean:
    """Remove checkpoints of runs that have ended; asks first."""

    folder: Annotated[str, POSITIONAL]
    keep: Annotated[str, As("best|last|N")]
    """The checkpoints of each run that stay: the best and the last, the last, or the last N."""
    yes: bool = False
    """Remove without asking."""


@dataclass(frozen=True, kw_only=True)
class Bisect:
    """Find which differences between two runs make the difference in their results, by short runs."""

    a: Annotated[str, POSITIONAL]
    b: Annotated[str, POSITIONAL]
    max_runs: int = 10
    """Most runs that are trained."""
    steps: int | None = None
    """Steps of a run, counted in A's schedule (until the recorded losses are apart)."""
    metric: Annotated[str | None, As("NAME")] = None
    """Figure of summary.json to explain, such as train_loss (the one that compares the runs)."""
    out: Annotated[str | None, As("DIR")] = None
    """Folder of the runs (runs/bisect-A-B-HASH); the same command resumes there."""
    json: bool = False
    """Print one JSON object in place of the text."""
    trusted: Annotated[tuple[str, ...], As("PACKAGE", ("--trust",))] = ()
    """Allow a format, tracker or callback from your own package; repeatable."""


RunCare = Runs | Logs | Stop | Clean
"""Options of a verb that the parent answers from run folders alone."""


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """List experiments, or the files of another group, with one line each."""

    group: Annotated[str, POSITIONAL] = "experiment"


@dataclass(frozen=True, kw_only=True)
class Copy:
    """Copy an experiment, or another file of a group, into your own folder to change it."""

    choice: Annotated[str, POSITIONAL]
    folder: Annotated[str, POSITIONAL]


@dataclass(frozen=True, kw_only=True)
class WriteSchema:
    """Write a JSON schema of the job, or of the files of a group, for editors."""

    group: Annotated[str | None, POSITIONAL] = None
    out_file: Annotated[str | None, As("FILE")] = None
    """Where it goes; without it, it is printed."""


AboutFiles = Recipes | Copy | WriteSchema
"""Options of a verb about the files of groups."""
