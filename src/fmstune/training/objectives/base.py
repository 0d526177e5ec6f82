"""The part of an objective that needs torch; `fmstune.config.objective` is the part in its YAML file."""

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar

from datasets import Dataset

from fmstune.config.job import Job
from fmstune.config.metrics import Place, metrics_of, names_at
from fmstune.errors import UserError, did_you_mean
from fmstune.training.trainer import RunMixin


class BaseObjective:
    """An objective of one job: a subclass names its trainer, and changes what else is different."""

    trainer_class: ClassVar[type[RunMixin]]
    """`class X(RunMixin, trl.XTrainer)`; it packs, collates and computes the loss."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def arguments(self) -> dict[str, Any]:
        """Return the fields of the configuration class that the objective decides."""
        # rows are cut already, and TRL would cut or drop more
        return {"max_length": None}

    def rows(self, rows: Any) -> Any:
        """Return the rows with the columns that the trainer reads."""
        return rows.select_columns(list(self.job.objective.columns))

    def prepare_trainer(self, trainer: Any, held_out: Mapping[str, Dataset]) -> None:
        """Set what the trainer needs of the held-out rows; nothing unless a subclass says otherwise."""

    def score(self, trainer: Any, held_out: Mapping[str, Dataset], answered: str) -> dict[str, Any]:
        """Return the figures of all held-out rows, and those of each named set below `sets`.

        The figures are those that the trainer logs when it evaluates. `answered` is `base` or `tuned`.
        """
        names = names_at(metrics_of(self.job), Place.held_out)
        limit = self.job.evaluation.max_rows
        sets = {}
        for name, rows in held_out.items():
            count = min(len(rows), limit or len(rows))
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
    module_name, _, name = job.objective._target_.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as err:
        raise UserError("objective._target_", f": cannot import {module_name} ({err})") from err
    found = vars(module).get(name)
    if not (isinstance(found, type) and issubclass(found, BaseObjective)):
        known = [one for one, value in vars(module).items() if isinstance(value, type)]
        raise UserError(
            "objective._target_",
            f": {module_name} has no class {name!r} that extends fmstune.training.objectives.base.BaseObjective"
            + did_you_mean(name, known),
        )
    return found(job)
