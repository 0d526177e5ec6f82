"""Aim (aimstack.io)."""

import hashlib
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from fmstune import cache
from fmstune.config import freeze
from fmstune.files import real_path, user_path
from fmstune.runs import run_folder
from fmstune.training.trackers.base import TABLE, Outcome, Tracker


@dataclass(kw_only=True)
class AimTracker(Tracker):
    """A run of Aim, on `aim.Run`: Aim's own callback guesses at names, and stores the environment's variables."""

    LONGEST_WAIT_FOR_INDEX = 10.0
    """Seconds, after which the run stays out of Aim's index for now."""

    repo: str = "."
    """Folder that holds Aim's `.aim`, made if missing; or an Aim server, `aim://HOST:PORT`."""
    experiment: str | None = None
    """Experiment of the run; null takes the job's `name`."""
    system_tracking_interval: int | None = 10
    """Seconds between two readings of CPU, memory and GPU; null reads none."""

    def __post_init__(self) -> None:
        self.place = self.repo if self.repo.startswith("aim://") else str(user_path(self.repo))

    def start(self, former: str | None) -> str:
        import aim
        from aim.sdk.errors import MissingRunError

        given = {
            "repo": self.place,
            "experiment": self.experiment or self.subject.job.name,
            "system_tracking_interval": self.system_tracking_interval,
            "capture_terminal_logs": False,
        }
        with nullcontext() if self.place.startswith("aim://") else alone_at(self.place):
            try:
                # the run folder is locked, so any other process with this run is dead, perhaps on another machine
                self._run = aim.Run(former, force_resume=former is not None, **given)
            except MissingRunError:
                self._run = aim.Run(**given)
        self._run.name = self.subject.name
        self._run["job"] = freeze.as_tree(self.subject.job)
        self._run["provenance"] = dict(self.subject.provenance)
        return str(self._run.hash)

    def log(self, metrics: Mapping[str, float], step: int, epoch: float) -> None:
        """A value that is tracked again at a step takes the place of the former."""
        for name, value in metrics.items():
            subset = "eval" if name.startswith("eval_") else "train"
            self._run.track(value, name=name, step=step, epoch=epoch, context={"subset": subset})

    def close(self, outcome: Outcome) -> None:
        """Afterwards `Repo.iter_runs` sees the run at once."""
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
        while time.monotonic() <= end:
            try:
                RepoIndexManager.get_index_manager(repo).index(number)
                return
            except RocksIOError:
                # such as a run of the same sweep that ends at this moment
                time.sleep(0.1)
        text = f"tracking.aim: another process holds the index of {self.place}; where that is `aim up`, it puts run"
        print(f"fmstune: note: {text} {number} there itself", file=sys.stderr, flush=True)


def alone_at(place: str) -> filelock.BaseFileLock:
    """A lock for making a repository: Aim takes one that another process has half made for an old one."""
    folder = cache.place() / "locks"
    for made in (folder, Path(place)):
        made.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / f"{hashlib.sha256(str(real_path(place)).encode()).hexdigest()[:16]}.lock")
