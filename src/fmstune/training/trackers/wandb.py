"""Weights & Biases."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fmstune.config import freeze
from fmstune.runs import run_folder
from fmstune.training.trackers.base import Outcome, Tracker


@dataclass(kw_only=True)
class WandbTracker(Tracker):
    """A run of Weights & Biases."""

    project: str = "fmstune"
    """Project of the run."""
    entity: str | None = None
    """User or team; null takes that of the API key, which is read from WANDB_API_KEY or `wandb login`."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes into the run folder, for `wandb sync`."""

    def __post_init__(self) -> None:
        self.place = "/".join(filter(None, (self.entity, self.project, self.mode)))

    def start(self, former: str | None) -> str:
        import wandb

        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            id=former,
            resume="allow" if former else None,
            name=self.subject.name,
            dir=str(self.subject.folder),
            config={"job": freeze.as_tree(self.subject.job), "provenance": dict(self.subject.provenance)},
            settings=wandb.Settings(console="off", silent=True),
        )
        return str(self._run.id)

    def log(self, metrics: Mapping[str, float], step: int, epoch: float) -> None:
        self._run.log({"epoch": epoch, **metrics}, step=step)

    def close(self, outcome: Outcome) -> None:
        self._run.summary.update({f"final.{key}": value for key, value in outcome.figures().items()})
        self._run.finish(exit_code=0 if outcome.status == run_folder.FINISHED else 1)
