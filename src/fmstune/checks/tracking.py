"""Rules on the tracking group; a tracker that fails during the run only warns."""

import importlib.util
import netrc
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fmstune import files
from fmstune.config.named_classes import OWN_TRACKERS
from fmstune.errors import Problem


def tracking_problems(tracking: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    """Yield the problems of the trackers that are found without asking a server."""
    rules = {"aim": _aim, "tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb, "trackio": _trackio}
    for name, settings in tracking.items():
        field = f"tracking.{name}"
        for key, value in settings.items():
            if value == "":
                yield Problem(f"{field}.{key}", "is empty; give a name, or leave it out")
        module = settings["_target_"].split(".")[-2]
        if settings["_target_"].startswith(f"{OWN_TRACKERS}.") and module in rules:
            # a folder of that name in the working folder is not a package
            spec = importlib.util.find_spec(module)
            if spec is None or spec.origin is None:
                yield Problem(field, f"needs the package {module}; pip install 'fmstune[{module}]', or set it to null")
            yield from rules[module](field, settings)


def _aim(field: str, settings: Mapping[str, Any]) -> Iterator[Problem]:
    interval, repo = settings["system_tracking_interval"], settings["repo"]
    if interval is not None and interval < 1:
        yield Problem(f"{field}.system_tracking_interval", f"must be at least 1, or null, got {interval}")
    if re.match(r"\w+:/", repo):
        if not re.fullmatch(r"aim://[\w.-]+(:\d+)?(/[\w./-]*)?", repo):
            yield Problem(f"{field}.repo", f": a server is written aim://HOST:PORT, got {repo!r}")
    elif repo:
        yield from _folder(f"{field}.repo", Path(repo))


def _tensorboard(field: str, settings: Mapping[str, Any]) -> Iterator[Problem]:
    if settings["log_dir"]:
        yield from _folder(f"{field}.log_dir", Path(settings["log_dir"]))


def _mlflow(field: str, settings: Mapping[str, Any]) -> Iterator[Problem]:
    field, uri = f"{field}.tracking_uri", settings["tracking_uri"]
    if not uri:
        return
    if urlsplit(uri).password is not None:
        text = "holds a password, and secrets stay out of a job"
        yield Problem(field, f"{text}; set it to null, and the environment variable MLFLOW_TRACKING_URI")
    elif uri.startswith("sqlite:///"):
        yield from _folder(field, Path(uri.removeprefix("sqlite:///")).parent)
    elif not re.match(r"(https?|postgresql|mysql|mssql|databricks|file)\b", uri):
        text = "must be a database such as sqlite:///mlflow.db or a server such as http://HOST:5000"
        yield Problem(field, f"{text}, got {uri!r}")


def _wandb(field: str, settings: Mapping[str, Any]) -> Iterator[Problem]:
    # without a key wandb asks for one, and the run would wait for an answer
    if settings["mode"] == "online" and not os.environ.get("WANDB_API_KEY") and not _has_logins():
        text = "=online needs an API key; set the environment variable WANDB_API_KEY, log in with `wandb login`, or"
        yield Problem(f"{field}.mode", f"{text} set it to offline")


def _has_logins() -> bool:
    """Whether there is a netrc file, where `wandb login` leaves the key."""
    try:
        return bool(netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def _trackio(field: str, settings: Mapping[str, Any]) -> Iterator[Problem]:
    space = settings["space_id"]
    if space and not re.fullmatch(r"[\w.-]+/[\w.-]+", space):
        yield Problem(f"{field}.space_id", f"must be OWNER/NAME of a Space on the hub, got {space!r}")


def _folder(field: str, path: Path) -> Iterator[Problem]:
    """A folder that is there or can be made."""
    path = files.user_path(path)
    there = next(one for one in (path, *files.real_path(path).parents) if files.kind_of_file(one))
    if not there.is_dir():
        yield Problem(field, f": {there} is a {files.kind_of_file(there)}; name a folder")
    elif not os.access(there, os.W_OK):
        yield Problem(field, f": {there} cannot be written; name another folder")
