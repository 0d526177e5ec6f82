"""Trackers → what is wrong with them, before a run; a tracker that fails later only warns."""

import dataclasses
import importlib.util
import netrc
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from fmstune.config.job import Aim, Mlflow, Tensorboard, Tracking, Trackio, Wandb, WandbMode
from fmstune.errors import Problem


def problems(tracking: Tracking) -> Iterator[Problem]:
    """All that can be known without asking a server."""
    chosen = [field.name for field in dataclasses.fields(tracking) if getattr(tracking, field.name) is not None]
    for name in chosen:
        # a folder of that name in the working folder is no package
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            yield Problem(
                f"tracking.{name}", f"needs the package {name}; pip install 'fmstune[{name}]', or set it to null"
            )
        for field, value in dataclasses.asdict(getattr(tracking, name)).items():
            if value == "":
                yield Problem(f"tracking.{name}.{field}", "is empty; give a name, or leave it out")
    if tracking.aim:
        yield from _aim(tracking.aim)
    if tracking.tensorboard:
        yield from _tensorboard(tracking.tensorboard)
    if tracking.mlflow:
        yield from _mlflow(tracking.mlflow)
    if tracking.wandb:
        yield from _wandb(tracking.wandb)
    if tracking.trackio:
        yield from _trackio(tracking.trackio)


def _aim(aim: Aim) -> Iterator[Problem]:
    if aim.system_tracking_interval is not None and aim.system_tracking_interval < 1:
        yield Problem(
            "tracking.aim.system_tracking_interval", f"must be at least 1, or null, got {aim.system_tracking_interval}"
        )
    if re.match(r"\w+:/", aim.repo):
        if not re.fullmatch(r"aim://[\w.-]+(:\d+)?(/[\w./-]*)?", aim.repo):
            yield Problem("tracking.aim.repo", f": a server is written aim://HOST:PORT, got {aim.repo!r}")
    elif aim.repo:
        yield from _folder("tracking.aim.repo", Path(aim.repo))


def _tensorboard(tensorboard: Tensorboard) -> Iterator[Problem]:
    if tensorboard.log_dir:
        yield from _folder("tracking.tensorboard.log_dir", Path(tensorboard.log_dir))


def _mlflow(mlflow: Mlflow) -> Iterator[Problem]:
    uri = mlflow.tracking_uri
    if not uri:
        return
    if urlsplit(uri).password is not None:
        yield Problem(
            "tracking.mlflow.tracking_uri",
            "holds a password, and secrets stay out of a job; set it to null, and the "
            "environment variable MLFLOW_TRACKING_URI",
        )
    elif uri.startswith("sqlite:///"):
        yield from _folder("tracking.mlflow.tracking_uri", Path(uri.removeprefix("sqlite:///")).parent)
    elif not re.match(r"(https?|postgresql|mysql|mssql|databricks|file)\b", uri):
        yield Problem(
            "tracking.mlflow.tracking_uri",
            f"must be a database such as sqlite:///mlflow.db or a server such as http://HOST:5000, got {uri!r}",
        )


def _wandb(wandb: Wandb) -> Iterator[Problem]:
    # without a key wandb asks for one, and the run would wait for an answer
    if wandb.mode is WandbMode.online and not os.environ.get("WANDB_API_KEY") and not _has_logins():
        yield Problem(
            "tracking.wandb.mode",
            "=online needs an API key; set the environment variable WANDB_API_KEY, log in with "
            "`wandb login`, or set it to offline",
        )


def _has_logins() -> bool:
    """Whether there is a netrc file, where `wandb login` leaves the key."""
    try:
        return bool(netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def _trackio(trackio: Trackio) -> Iterator[Problem]:
    if trackio.space_id and not re.fullmatch(r"[\w.-]+/[\w.-]+", trackio.space_id):
        yield Problem(
            "tracking.trackio.space_id", f"must be OWNER/NAME of a Space on the hub, got {trackio.space_id!r}"
        )


def _folder(field: str, path: Path) -> Iterator[Problem]:
    """A folder that is there or can be made."""
    path = path.expanduser()
    there = next(one for one in (path, *path.resolve().parents) if one.exists())
    if not there.is_dir():
        yield Problem(field, f": {there} is a file; name a folder")
    elif not os.access(there, os.W_OK):
        yield Problem(field, f": {there} cannot be written; name another folder")
