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


RunCare = Runs | Logs | Stop | Clean
"""Options of a verb that the parent answers from run folders alone."""
