"""The class that every tracker extends, and the run that it is told about."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fmstune.config.job import Job
from fmstune.flatten import flatten
from fmstune.runs import sweep_folder

TABLE = "final table"


@dataclass(frozen=True)
class Subject:
    """The run that is tracked."""

    job: Job
    folder: Path
    provenance: Mapping[str, Any]
    """The content of `lock.json`."""
    step: int
    """Optimizer steps done before; above 0 in a run that resumes from a checkpoint."""

    @property
    def name(self) -> str:
        """The job's name, with that of the run folder in a sweep."""
        in_sweep = (self.folder.parent / sweep_folder.COMMAND).is_file()
        return f"{self.job.name} {self.folder.name}" if in_sweep else self.job.name


class Outcome(NamedTuple):
    """How the run ended."""

    status: str
    """One of those in `fmstune.runs.run_folder`."""
    summary: Mapping[str, Any]
    """The content of `summary.json`, without the plan and the trackers' own part."""
    table: str
    """Base against tuned, as the terminal shows it; empty without held-out rows."""

    def figures(self) -> dict[str, float]:
        """The numbers of the summary, by dotted names."""
        return {name: value for name, value in flatten(self.summary).items() if is_trackable(value)}


@dataclass(kw_only=True)
class Tracker(abc.ABC):
    """A tracker of one run: its fields are its settings in the job; any method may raise, and may take long."""

    subject: Subject
    """The run; given by fmstune, and no setting."""
    place: str = field(init=False, default="")
    """Where the tracker keeps its runs, in words: an id holds for one place only.

    Set it in `__post_init__`: `start` gets the former run only where its place is the one that this run has by then.
    """
    _run: Any = field(init=False, default=None)

    @abc.abstractmethod
    def start(self, former: str | None) -> str:
        """Begin a run, or continue the `former` one if it still exists; return its id."""

    @abc.abstractmethod
    def log(self, metrics: Mapping[str, float], step: int, epoch: float) -> None:
        """Record the metrics of an optimizer step."""

    @abc.abstractmethod
    def close(self, outcome: Outcome) -> None:
        """End the run."""


def is_trackable(value: Any) -> bool:
    """Whether a tracker can draw it."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
