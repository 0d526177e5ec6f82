"""Event files of TensorBoard."""

from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import indent

from fmstune.config import freeze
from fmstune.files import user_path
from fmstune.flatten import flatten
from fmstune.training.trackers.base import TABLE, Outcome, Tracker, is_trackable


@dataclass(kw_only=True)
class TensorboardTracker(Tracker):
    """Event files of TensorBoard."""

    log_dir: str | None = None
    """Folder of the event files; null takes `tensorboard` in the run folder."""

    def __post_init__(self) -> None:
        self.place = self.log_dir or str(self.subject.folder / "tensorboard")

    def start(self, former: str | None) -> str:
        """The steps that are taken again are hidden where they are in older files."""
        from torch.utils.tensorboard.writer import SummaryWriter

        again = None if former is None else self.subject.step + 1
        self._run = SummaryWriter(str(user_path(self.place)), purge_step=again)
        self._run.add_text("job", indent(freeze.dump(self.subject.job), " " * 4), self.subject.step)
        return self.place

    def log(self, metrics: Mapping[str, float], step: int, epoch: float) -> None:
        for name, value in {"epoch": epoch, **metrics}.items():
            self._run.add_scalar(name, value, step)
        self._run.flush()

    def close(self, outcome: Outcome) -> None:
        job = flatten(freeze.as_tree(self.subject.job))
        given = {name: value if is_trackable(value) else str(value) for name, value in job.items()}
        figures = {f"final/{name}": value for name, value in outcome.figures().items()}
        self._run.add_hparams(given, figures, run_name=".")
        if outcome.table:
            self._run.add_text(TABLE, indent(outcome.table, " " * 4), outcome.summary["steps"])
        self._run.close()
