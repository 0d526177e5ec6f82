"""The part of an objective that needs torch; `fmstune.config.job.Objective` is the part in its YAML file."""

from collections.abc import Mapping
from typing import Any, ClassVar

from datasets import Dataset

from fmstune.config.job import Job
from fmstune.config.metrics import Place, metrics_of, names_at
from fmstune.errors import UserError
from fmstune.runs.learning_rate import is_rate_open
from fmstune.runs.looks import RowLosses
from fmstune.runs.losers import what_stops
from fmstune.training.named_classes import find_class
from fmstune.training.trainer import RunMixin


class BaseObjective:
    """An objective of one job: a subclass names its trainer, and changes what else is different."""

    trainer_class: ClassVar[type[RunMixin]]
    """`class X(RunMixin, trl.XTrainer)`; it packs, collates and computes the loss."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def arguments(self) -> dict[str, Any]:
        """Return the fields of the configuration class that the objective decides."""
        # rows are cut to length before, and TRL would cut or drop more
        return {"max_length": None}

    def rows(self, rows: Any) -> Any:
        """Return the rows with the columns that the trainer reads."""
        return rows.select_columns(list(self.job.objective.columns))

    def held_out_rows(self, rows: Any, number: int) -> Any:
        """Return the rows of a held-out set for the trainer's own evaluation; `number` is the set's, from 0."""
        return self.rows(rows)

    def prepare_trainer(self, trainer: Any, held_out: Mapping[str, Dataset]) -> None:
        """Give the trainer what it needs of the held-out rows; does nothing unless a subclass says otherwise."""

    def row_losses(self, trainer: Any, held_out: Mapping[str, Dataset]) -> RowLosses:
        """Return the loss of each held-out row that is evaluated; a sweep that stops losers needs it."""
        raise NotImplementedError

    def score(self, trainer: Any, held_out: Mapping[str, Dataset], answered: str) -> dict[str, Any]:
        """Return the figures that the trainer logs, of all rows and of each set; `answered` is `base` or `tuned`."""
        names = names_at(metrics_of(self.job), Place.held_out)
        sets = {}
        for name, rows in held_out.items():
            count = min(len(rows), self.job.evaluation.max_rows or len(rows))
            found = trainer.score_rows(self.rows(rows.select(range(count))))
            figures = {metric: found[metric] for metric in names if metric in found}
            sets[name] = {**figures, "rows": count, "rows_left_out": len(rows) - count}
        if "" in sets:
            return sets[""]
        counts = {key: sum(one[key] for one in sets.values()) for key in ("rows", "rows_left_out")}
        means = {
            metric: sum(one[metric] * one["rows"] for one in sets.values()) / counts["rows"]
            for metric in names
            if all(metric in one for one in sets.values())
        }
        return {**means, **counts, "sets": sets}


def load_objective(job: Job) -> BaseObjective:
    """Return the objective that the job names; raises UserError if the class does not exist."""
    made: BaseObjective = find_class("objective", job.objective._target_, BaseObjective)(job)
    if is_rate_open(job) and type(made).row_losses is BaseObjective.row_losses:
        text = f"=auto compares rates by the loss of each held-out row, which {job.objective._target_} does not give"
        raise UserError("training.learning_rate", f"{text}; give a number, or add row_losses to the class")
    if (stopped_by := what_stops(job.sweep)) and type(made).row_losses is BaseObjective.row_losses:
        field, value = stopped_by
        text = f"={value} compares points by the loss of each held-out row"
        off = "false" if job.sweep.stop_losers else "null"
        hint = f"set it to {off}, or add row_losses to the class"
        raise UserError(field, f"{text}, which {job.objective._target_} does not give; {hint}")
    return made
