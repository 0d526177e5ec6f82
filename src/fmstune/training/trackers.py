"""One class for each tracker: begin or go on with its run, log, close. Their packages are imported when they begin."""

import hashlib
import logging
import os
import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import filelock

from fmstune import cache
from fmstune.config import freeze
from fmstune.config.job import Aim, Job, Mlflow, Tensorboard, Tracking, Trackio, Wandb
from fmstune.flatten import flatten
from fmstune.runs import run_folder, sweep_folder

TABLE = "final table"


@dataclass(frozen=True)
class Subject:
    """The run that is tracked."""

    job: Job
    folder: Path
    provenance: Mapping[str, Any]
    """What `lock.json` holds."""
    step: int
    """Optimizer steps that were done before; above 0 where a checkpoint is gone on with."""

    @property
    def name(self) -> str:
        """What its run is called: as the job; a point of a sweep with the name of its folder, which sets it apart."""
        is_point = (self.folder.parent / sweep_folder.COMMAND).is_file()
        return f"{self.job.name} {self.folder.name}" if is_point else self.job.name


class Outcome(NamedTuple):
    """How the run ended."""

    status: str
    """One of those in `fmstune.runs.run_folder`."""
    summary: Mapping[str, Any]
    """What the run came to; of a run that did not finish, as far as it got."""
    table: str
    """Base against tuned, as the terminal shows it; empty where nothing is held out."""

    def figures(self) -> dict[str, float]:
        """The numbers of the summary, by dotted names."""
        return {name: value for name, value in flatten(self.summary).items() if is_number(value)}


class Tracker(Protocol):
    """What a tracker does; any of it may raise, and may take long."""

    place: str
    """Where its runs are, in words: an id holds for one place only."""

    def start(self, former: str | None) -> str:
        """Begin a run, or go on with the `former` one where it is still there; its id."""

    def log(self, metrics: Mapping[str, float], step: int, epoch: float) -> None:
        """What was measured at an optimizer step."""

    def close(self, outcome: Outcome) -> None:
        """End the run."""


class AimTracker:
    """A run of Aim, on `aim.Run`: Aim's own callback guesses at names, and stores the environment's variables."""

    LONGEST_WAIT_FOR_INDEX = 10.0
    """Seconds, after which the run stays out of Aim's index for now."""

    def __init__(self, settings: Aim, subject: Subject) -> None:
        self.place = settings.repo if _is_remote(settings.repo) else str(Path(settings.repo).expanduser())
        self._settings, self._subject = settings, subject
        self._run: Any = None

    def start(self, former: str | None) -> str:
        """As `Tracker` says."""
        import aim

        if _is_remote(self.place):
            self._run = self._opened(aim, former)
        else:
            Path(self.place).mkdir(parents=True, exist_ok=True)
            with alone_at(self.place):
                self._run = self._opened(aim, former)
        self._run.name = self._subject.name
        self._run["job"] = freeze.as_tree(self._subject.job)
        self._run["provenance"] = dict(self._subject.provenance)
        return str(self._run.hash)

    def _opened(self, aim: Any, former: str | None) -> Any:
        from aim.sdk.errors import MissingRunError

        given = {
            "repo": self.place,
            "experiment": self._settings.experiment or self._subject.job.name,
            "system_tracking_interval": self._settings.system_tracking_interval,
            "capture_terminal_logs": False,
        }
        if former is not None:
            try:
                # the run folder is locked, so whoever else holds this run is dead, perhaps on another machine
                return aim.Run(former, force_resume=True, **given)
            except MissingRunError:
                pass
        return aim.Run(**given)

    def log(self, metrics: Mapping[str, float], step: int, epoch: float) -> None:
        """As `Tracker` says; a value that is tracked again at a step takes the place of the former."""
        for name, value in metrics.items():
            subset = "eval" if name.startswith("eval_") else "train"
            self._run.track(value, name=name, step=step, epoch=epoch, context={"subset": subset})

    def close(self, outcome: Outcome) -> None:
        """As `Tracker` says; afterwards `Repo.iter_runs` sees the run at once."""
        import aim

        self._run["summary"] = dict(outcome.summary)
        if outcome.table:
            self._run.track(aim.Text(outcome.table), name=TABLE, step=outcome.summary["steps"])
        if outcome.status == run_folder.FINISHED:
            self._run.report_successful_finish()
        repo, number = self._run.repo, self._run.hash
        self._run.close()
        if not repo.is_remote_repo:
            self._index(repo, number)

    def _index(self, repo: Any, number: str) -> None:
        """Aim 3.29 looks for runs in its index only, which else `aim up` alone fills; one process writes there."""
        from aim.sdk.index_manager import RepoIndexManager
        from aimrocks.errors import RocksIOError

        end = time.monotonic() + self.LONGEST_WAIT_FOR_INDEX
        while True:
            try:
                RepoIndexManager.get_index_manager(repo).index(number)
                return
            except RocksIOError:
                # such as a point of the same sweep that ends at this moment
                if time.monotonic() > end:
                    break
                time.sleep(0.1)
        print(
            f"fmstune: note: tracking.aim: another process holds the index of {self.place}; where that is `aim up`, it "
            f"puts run {number} there itself",
            file=sys.stderr,
            flush=True,
        )


class TensorboardTracker:
    """Event files of TensorBoard."""

    def __init__(self, settings: Tensorboard, subject: Subject) -> None:
        self.place = settings.log_dir or str(subject.folder / "tensorboard")
        self._subject = subject
        self._writer: Any = None

    def start(self, former: str | None) -> str:
        """As `Tracker` says; the steps that are taken again are hidden where they are in older files."""
        from torch.utils.tensorboard.writer import SummaryWriter

        again = None if former is None else self._subject.step + 1
        self._writer = SummaryWriter(str(Path(self.place).expanduser()), purge_step=again)
        self._writer.add_text("job", _code(freeze.dump(self._subject.job)), self._subject.step)
        return self.place

    def log(self, metrics: Mapping[str, float], step: int, epoch: float) -> None:
        """As `Tracker` says."""
        for name, value in {"epoch": epoch, **metrics}.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, outcome: Outcome) -> None:
        """As `Tracker` says."""
        job = flatten(freeze.as_tree(self._subject.job))
        given = {name: value if is_number(value) else str(value) for name, value in job.items()}
        figures = {f"final/{name}": value for name, value in outcome.figures().items()}
        self._writer.add_hparams(given, figures, run_name=".")
        if outcome.table:
            self._writer.add_text(TABLE, _code(outcome.table), outcome.summary["steps"])
        self._writer.close()


class MlflowTracker:
    """A run of MLflow, by its client alone: nothing global is set."""

    PARAMS_AT_ONCE = 100
    """What a server takes in one request (MLflow's REST API, "Log Batch")."""

    def __init__(self, settings: Mlflow, subject: Subject) -> None:
        self.place = settings.tracking_uri or "MLFLOW_TRACKING_URI"
        self._settings, self._subject = settings, subject
        self._client: Any = None
        self._run = ""

    def start(self, former: str | None) -> str:
        """As `Tracker` says."""
        # a training node need not tell its makers
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        # what it writes there is raised, too; importing it has set its own level
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
        self._client = MlflowClient(self._settings.tracking_uri)
        self._run = self._former(former) or self._new()
        return self._run

    def _former(self, former: str | None) -> str | None:
        from mlflow.exceptions import MlflowException

        if former is None:
            return None
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

        job = self._subject.job
        name = self._settings.experiment_name or job.name
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        run = str(self._client.create_run(experiment, run_name=self._subject.name).info.run_id)
        params = [Param(key, str(value)) for key, value in flatten(freeze.as_tree(job)).items()]
        for first in range(0, len(params), self.PARAMS_AT_ONCE):
            self._client.log_batch(run, params=params[first : first + self.PARAMS_AT_ONCE])
        tags = [RunTag(f"provenance.{key}", str(value)) for key, value in flatten(self._subject.provenance).items()]
        self._client.log_batch(run, tags=tags)
        return run

    def log(self, metrics: Mapping[str, float], step: int, epoch: float) -> None:
        """As `Tracker` says."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        values = {"epoch": epoch, **metrics}
        self._client.log_batch(self._run, metrics=[Metric(key, value, now, step) for key, value in values.items()])

    def close(self, outcome: Outcome) -> None:
        """As `Tracker` says."""
        from mlflow.entities import Metric

        now, step = round(time.time() * 1000), outcome.summary.get("steps", self._subject.step)
        figures = [Metric(f"final.{key}", value, now, step) for key, value in outcome.figures().items()]
        self._client.log_batch(self._run, metrics=figures)
        if outcome.table:
            # MLflow shows it as the description of the run
            self._client.set_tag(self._run, "mlflow.note.content", _code(outcome.table))
        ends = {run_folder.FINISHED: "FINISHED", run_folder.INTERRUPTED: "KILLED"}
        self._client.set_terminated(self._run, ends.get(outcome.status, "FAILED"))


class WandbTracker:
    """A run of Weights & Biases."""

    def __init__(self, settings: Wandb, subject: Subject) -> None:
        self.place = "/".join(filter(None, (settings.entity, settings.project, settings.mode.value)))
        self._settings, self._subject = settings, subject
        self._run: Any = None

    def start(self, former: str | None) -> str:
        """As `Tracker` says."""
        import wandb

        job = self._subject.job
        self._run = wandb.init(
            project=self._settings.project,
            entity=self._settings.entity,
            mode=self._settings.mode.value,
            id=former,
            resume="allow" if former else None,
            name=self._subject.name,
            dir=str(self._subject.folder),
            config={"job": freeze.as_tree(job), "provenance": dict(self._subject.provenance)},
            settings=wandb.Settings(console="off", silent=True),
        )
        return str(self._run.id)

    def log(self, metrics: Mapping[str, float], step: int, epoch: float) -> None:
        """As `Tracker` says."""
        self._run.log({"epoch": epoch, **metrics}, step=step)

    def close(self, outcome: Outcome) -> None:
        """As `Tracker` says."""
        self._run.summary.update({f"final.{key}": value for key, value in outcome.figures().items()})
        self._run.finish(exit_code=0 if outcome.status == run_folder.FINISHED else 1)


class TrackioTracker:
    """A run of Trackio; its runs are known by their names."""

    def __init__(self, settings: Trackio, subject: Subject) -> None:
        self.place = settings.space_id or settings.project
        self._settings, self._subject = settings, subject
        self._run: Any = None

    def start(self, former: str | None) -> str:
        """As `Tracker` says."""
        import trackio

        job = self._subject.job
        name = former or f"{self._subject.name}-{time.strftime('%Y-%m-%d-%H-%M-%S')}"
        # stdout is for what the user asked to see; the run waits meanwhile
        with redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=self._settings.project,
                name=name,
                space_id=self._settings.space_id,
                config=flatten({"job": freeze.as_tree(job)}),
                resume="allow",
                embed=False,
            )
        return name

    def log(self, metrics: Mapping[str, float], step: int, epoch: float) -> None:
        """As `Tracker` says."""
        self._run.log({"epoch": epoch, **metrics}, step=step)

    def close(self, outcome: Outcome) -> None:
        """As `Tracker` says."""
        step = outcome.summary.get("steps", self._subject.step)
        with redirect_stdout(sys.stderr):
            self._run.log({f"final.{key}": value for key, value in outcome.figures().items()}, step=step)
            self._run.finish()


KINDS: Mapping[str, Any] = {
    "aim": AimTracker,
    "tensorboard": TensorboardTracker,
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
}
"""The class of each field of `Tracking`."""


def of(tracking: Tracking, subject: Subject) -> dict[str, Tracker]:
    """The trackers that the job asks for, not begun yet."""
    settings = {name: getattr(tracking, name) for name in KINDS}
    return {name: KINDS[name](given, subject) for name, given in settings.items() if given is not None}


def is_number(value: Any) -> bool:
    """Whether a tracker can draw it."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def alone_at(place: str) -> filelock.BaseFileLock:
    """A lock that is held while a repository is made: Aim takes what another process has half made for an old one."""
    folder = cache.place() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / f"{hashlib.sha256(str(Path(place).resolve()).encode()).hexdigest()[:16]}.lock")


def _is_remote(repo: str) -> bool:
    return repo.startswith("aim://")


def _code(text: str) -> str:
    """Text that a page shows as it is: Markdown keeps the lines of what is indented by four."""
    return "\n".join(f"    {line}" for line in text.splitlines())
