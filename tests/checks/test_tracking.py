# SPDX-License-Identifier: Apache-2.0
"""Trackers that cannot work are refused before the run, as far as that can be known."""

import importlib.machinery
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

from fmstune.checks.tracking import tracking_problems
from fmstune.config import freeze
from tests.config.test_freeze import tree

TRACKERS = ("aim", "tensorboard", "mlflow", "wandb", "trackio")


def given(**trackers: dict[str, Any]) -> dict[str, Any]:
    return freeze.freeze({**tree(), "tracking": trackers}).job.tracking


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """The packages of trackers, which rules look for only: all are there, and a test may take one away."""
    places: dict[str, str | None] = dict.fromkeys(TRACKERS, "somewhere.py")
    find = importlib.util.find_spec

    def found(name: str) -> Any:
        return importlib.machinery.ModuleSpec(name, None, origin=places[name]) if name in places else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    return places


@pytest.mark.parametrize(
    ("trackers", "says"),
    [
        ({"aim": {"repo": "http://host"}}, "tracking.aim.repo: a server is written aim://HOST:PORT, got 'http://host'"),
        ({"aim": {"repo": "here"}}, "tracking.aim.repo: here is a file; name a folder"),
        ({"aim": {"repo": "here/below"}}, "tracking.aim.repo: {folder}/here is a file; name a folder"),
        ({"aim": {"repo": "loop"}}, "tracking.aim.repo: loop is a broken link; name a folder"),
        ({"aim": {"repo": "fifo/below"}}, "tracking.aim.repo: {folder}/fifo is a named pipe; name a folder"),
        ({"aim": {"repo": ""}}, "tracking.aim.repo is empty; give a name, or leave it out"),
        (
            {"aim": {"system_tracking_interval": 0}},
            "tracking.aim.system_tracking_interval must be at least 1, or null, got 0",
        ),
        ({"tensorboard": {"log_dir": "here"}}, "tracking.tensorboard.log_dir: here is a file; name a folder"),
        (
            {"mlflow": {"tracking_uri": "https://me:secret@host"}},
            "tracking.mlflow.tracking_uri holds a password, and secrets stay out of a job; set it to null, and the "
            "environment variable MLFLOW_TRACKING_URI",
        ),
        (
            {"mlflow": {"tracking_uri": "mlflow.db"}},
            "tracking.mlflow.tracking_uri must be a database such as sqlite:///mlflow.db or a server such as "
            "http://HOST:5000, got 'mlflow.db'",
        ),
        (
            {"mlflow": {"tracking_uri": "sqlite:///here/mlflow.db"}},
            "tracking.mlflow.tracking_uri: here is a file; name a folder",
        ),
        (
            {"wandb": {}},
            "tracking.wandb.mode=online needs an API key; set the environment variable WANDB_API_KEY, log in with "
            "`wandb login`, or set it to offline",
        ),
        (
            {"trackio": {"space_id": "mine"}},
            "tracking.trackio.space_id must be OWNER/NAME of a Space on the hub, got 'mine'",
        ),
    ],
)
def test_a_tracker_that_cannot_work_is_refused(
    trackers: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("here").touch()
    Path("loop").symlink_to("loop")
    os.mkfifo("fifo")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert list(map(str, tracking_problems(given(**trackers)))) == [says.format(folder=tmp_path)]


@pytest.mark.parametrize(
    "trackers",
    [
        {},
        {"aim": {}},
        {"aim": {"repo": "not/there/yet"}},
        {"aim": {"repo": "aim://10.0.0.1:53800"}},
        {"mlflow": {"tracking_uri": "http://host:5000"}},
        {"mlflow": {"tracking_uri": None}},
        {"wandb": {"mode": "offline"}},
        {"trackio": {"space_id": "owner/name"}},
        {"aim": {}, "tensorboard": {}, "mlflow": {}},
    ],
)
def test_a_tracker_that_can_work_is_not(trackers: dict[str, Any]) -> None:
    assert list(tracking_problems(given(**trackers))) == []


def test_wandb_is_content_with_a_key_in_the_environment_or_a_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert list(tracking_problems(given(wandb={}))) == []
    monkeypatch.delenv("WANDB_API_KEY")
    Path(".netrc").write_text("machine api.wandb.ai login user password key\n")
    Path(".netrc").chmod(0o600)
    assert list(tracking_problems(given(wandb={}))) == []


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_named_with_its_extra(name: str, installed: dict[str, str | None]) -> None:
    """A folder of that name in the working folder, such as wandb makes, is none."""
    installed[name] = None
    settings = {"mode": "offline"} if name == "wandb" else {}
    assert list(map(str, tracking_problems(given(**{name: settings})))) == [
        f"tracking.{name} needs the package {name}; pip install 'fmstune[{name}]', or set it to null"
    ]
