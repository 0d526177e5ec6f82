"""Trackio, Hugging Face's tracker."""

import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass

from fmstune.config import freeze
from fmstune.flatten import flatten
from fmstune.training.trackers.base import Outcome, Tracker


@dataclass(kw_only=True)
class TrackioTracker(Tracker):
    """A run of Trackio; its runs are known by their names."""

    project: str = "fmstune"
    """Project of the run."""
    space_id: str | None = None
    """Space on the hub, `OWNER/NAME`; null keeps the run in this machine's database (TRACKIO_DIR)."""

    def __post_init__(self) -> None:
        self.place = self.space_id or self.project

    def start(self, former: str | None) -> str:
        import trackio

        name = former or f"{self.subject.name}-{time.strftime('%Y-%m-%d-%H-%M-%S')}"
        # stdout is for the result; the run waits meanwhile
        with redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=self.project,
                name=name,
                space_id=self.space_id,
                config=flatten({"job": freeze.as_tree(self.subject.job)}),
                resume="allow",
                embed=False,
            )
        return name

    def log(self, metrics: Mapping[str, float], step: int, epoch: float) -> None:
        self._run.log({"epoch": epoch, **metrics}, step=step)

    def close(self, outcome: Outcome) -> None:
        step = outcome.summary.get("steps", self.subject.step)
        with redirect_stdout(sys.stderr):
            self._run.log({f"final.{key}": value for key, value in outcome.figures().items()}, step=step)
            self._run.finish()
