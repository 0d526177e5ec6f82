"""Trackers and callbacks are named by `_target_`; fmstune's own are typed by their class, others need trust."""

from typing import Any

import pytest

from fmstune.config import freeze, groups, named_classes
from fmstune.config.job import Job
from fmstune.errors import UserError
from tests.config.test_freeze import tree

AIM = {
    "_target_": "fmstune.training.trackers.aim.AimTracker",
    "repo": ".",
    "experiment": None,
    "system_tracking_interval": 10,
}
MINE = {"_target_": "my_pkg.lines.LinesTracker", "path": "lines.txt"}


def frozen(**parts: Any) -> Job:
    return freeze.freeze({**tree(), **parts}, trusted=("my_pkg",)).job


def messages(trusted: tuple[str, ...] = (), **parts: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        freeze.freeze({**tree(), **parts}, trusted=trusted)
    return list(map(str, caught.value.problems))


@pytest.mark.parametrize("given", [{}, {"repo": "."}, {"_target_": AIM["_target_"], "system_tracking_interval": "10"}])
def test_a_tracker_of_fmstune_has_all_of_its_settings_with_or_without_a_target(given: dict[str, Any]) -> None:
    assert frozen(tracking={"aim": given, "mlflow": None}).tracking == {"aim": AIM}


def test_a_tracker_may_have_any_name() -> None:
    assert frozen(tracking={"second": AIM}).tracking == {"second": AIM}


@pytest.mark.parametrize("name", [name for name in groups.choices("tracking") if name != "file"])
def test_the_file_of_a_shipped_tracker_names_its_class(name: str) -> None:
    assert named_classes.shipped_trackers()[name].startswith(f"fmstune.training.trackers.{name}.")
    assert len(frozen(tracking={name: {}}).tracking[name]) > 1


@pytest.mark.parametrize(
    ("tracking", "says"),
    [
        ({"aim": {"rep": "x"}}, "tracking.aim.rep: unknown field; did you mean 'repo'?"),
        ({"aim": {"system_tracking_interval": "often"}}, "must be a whole number or null, got 'often'"),
        ({"wandb": {"mode": "off"}}, "tracking.wandb.mode must be one of online, offline; got 'off'"),
        ({"aimm": {"repo": "x"}}, "tracking.aimm: unknown field; did you mean 'aim'?"),
        ({"aim": "x"}, "tracking.aim is a group of fields, got 'x'"),
        ({"mine": MINE}, "'my_pkg.lines.LinesTracker' is not in an allowed package"),
        ({"mine": {"_target_": "Lines"}}, "tracking.mine._target_ must name a class"),
        ({"mine": {"_target_": "fmstune.training.trackers.aim.Other"}}, "aim.Other'; did you mean 'fmstune."),
        ({"mine": {"_target_": "fmstune.training.run.train"}}, "is not in an allowed package"),
    ],
)
def test_a_tracker_that_does_not_fit_is_refused(tracking: dict[str, Any], says: str) -> None:
    (message,) = messages(tracking=tracking)
    assert says in message


def test_a_tracker_and_a_callback_of_a_trusted_package_stay_as_they_are() -> None:
    callback = {"_target_": "my_pkg.Stop", "after": 3}
    job = frozen(tracking={"mine": MINE}, callbacks={"mine": callback, "stop_when": "loss < 1"})
    assert job.tracking == {"mine": MINE}
    assert job.callbacks.others == {"mine": callback}
    assert job.callbacks.stop_when == "loss < 1"
    written = freeze.as_tree(job)
    assert written["callbacks"] == {"early_stopping": None, "stop_when": "loss < 1", "mine": callback}
    assert freeze.freeze(written, trusted=("my_pkg",)).job == job


def test_a_callback_needs_trust_and_a_target() -> None:
    (message,) = messages(callbacks={"mine": {"_target_": "my_pkg.Stop"}})
    assert message.endswith("is not in an allowed package; if you trust it, add --trust my_pkg")
    (message,) = messages(callbacks={"mine": {"after": 3}})
    assert message.startswith("callbacks.mine: unknown field")
    (message,) = messages(trusted=("my_pkg",), callbacks={"others": {"x": {"_target_": "my_pkg.Stop"}}})
    assert message.startswith("callbacks.others: unknown field")
