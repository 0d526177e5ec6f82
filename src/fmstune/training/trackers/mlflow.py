"""MLflow."""

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from textwrap import indent
from typing import Any

from fmstune.config import freeze
from fmstune.flatten import flatten
from fmstune.runs import run_folder
from fmstune.training.trackers.base import Outcome, Tracker


@dataclass(kw_only=True)
class MlflowTracker(Tracker):
    """A run of MLflow, by its client alone: nothing global is set."""

    PARAMS_AT_ONCE = 100
    """Parameters that a server takes in one request (MLflow's REST API, "Log Batch")."""

    tracking_uri: str | None = "sqlite:///mlflow.db"
    """Database or server, as MLflow writes it; null takes the environment variable MLFLOW_TRACKING_URI."""
    experiment_name: str | None = None
    """Experiment of the run; null takes the job's `name`."""
    _client: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.place = self.tracking_uri or "MLFLOW_TRACKING_URI"

    def start(self, former: str | None) -> str:
        # a training node need not tell its makers
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        # it raises what it logs, too; importing it has set its own level
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
        self._client = MlflowClient(self.tracking_uri)
        self._run = (former and self._former(former)) or self._new()
        return str(self._run)

    def _former(self, former: str) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            known = self._client.get_run(former)
        except MlflowException as err:
            if err.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if known.info.lifecycle_stage != "active":
            return None
        self._client.update_run(former, status="RUNNING")
        return former

    def _new(self) -> str:
        from mlflow.entities import Param, RunTag

        job = self.subject.job
        name = self.experiment_name or job.name
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        run = str(self._client.create_run(experiment, run_name=self.subject.name).info.run_id)
        params = [Param(key, str(value)) for key, value in flatten(freeze.as_tree(job)).items()]
        for first in range(0, len(params), self.PARAMS_AT_ONCE):
            self._client.log_batch(run, params=params[first : first + self.PARAMS_AT_ONCE])
        tags = [RunTag(f"provenance.{key}", str(value)) for key, value in flatten(self.subject.provenance).items()]
        self._client.log_batch(run, tags=tags)
        return run

    def log(self, metrics: Mapping[str, float], step: int, epoch: float) -> None:
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        values = {"epoch": epoch, **metrics}
        self._client.log_batch(self._run, metrics=[Metric(key, value, now, step) for key, value in values.items()])

    def close(self, outcome: Outcome) -> None:
        from mlflow.entities import Metric

        now, step = round(time.time() * 1000), outcome.summary.get("steps", self.subject.step)
        figures = [Metric(f"final.{key}", value, now, step) for key, value in outcome.figures().items()]
        self._client.log_batch(self._run, metrics=figures)
        if outcome.table:
            # MLflow shows it as the description of the run
            self._client.set_tag(self._run, "mlflow.note.content", indent(outcome.table, " " * 4))
        ends = {run_folder.FINISHED: "FINISHED", run_folder.INTERRUPTED: "KILLED"}
        self._client.set_terminated(self._run, ends.get(outcome.status, "FAILED"))
