"""A tracker and a callback of the user's own: a file in a folder of theirs, and nothing of fmstune is changed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result
from tests.end_to_end.test_resume import QUICK

PACKAGE = """
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fmstune.training.trackers.base import Outcome, Tracker
from transformers import TrainerCallback


@dataclass(kw_only=True)
class Lines(Tracker):
    path: str = "lines.txt"

    def start(self, former):
        self.place = self.path
        return former or self.subject.name

    def log(self, metrics, step, epoch):
        with Path(self.path).open("a") as file:
            file.write(f"{step} {sorted(metrics)}\\n")

    def close(self, outcome):
        with Path(self.path).open("a") as file:
            file.write(outcome.status)


class StopAfter(TrainerCallback):
    def __init__(self, steps: int):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.steps


class NoTracker:
    pass
"""
TRUST = ("--config-dir", "my_conf", "--trust", "my_pkg")


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_pkg.py").write_text(PACKAGE)
    for group, text in (
        ("tracking", "mine:\n  _target_: my_pkg.Lines\n"),
        ("callbacks", "mine:\n  _target_: my_pkg.StopAfter\n  steps: 2\n"),
    ):
        (tmp_path / "my_conf" / group).mkdir(parents=True)
        (tmp_path / "my_conf" / group / "mine.yaml").write_text(f"# Mine.\n{text}")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.slow
def test_a_run_with_a_tracker_and_a_callback_of_a_package_of_the_users_own(fmstune: Callable[..., Result]) -> None:
    words = (*QUICK, "evaluation=none", "tracking=mine", "callbacks=mine", "output_dir=run")
    run = fmstune(*TRUST, *words)
    assert run.code == 0, run.err
    assert run.summary["steps"] == 2
    assert run.summary["tracking"]["mine"] == {"run": "fmstune", "place": "lines.txt", "error": None}
    lines = Path("lines.txt").read_text().splitlines()
    assert lines[-1] == "finished"
    assert any(line.startswith("2 ") and "loss" in line for line in lines)


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("tracking.mine._target_=my_pkg.Missing", "tracking.mine._target_: my_pkg has no class 'Missing'"),
        # the nearest name is that of a class which would do, and not of another
        ("tracking.mine._target_=my_pkg.Line", "my_pkg has no class 'Line'; did you mean 'Lines'?"),
        ("tracking.mine._target_=my_pkg.NoTrackers", "my_pkg has no class 'NoTrackers'\n"),
        ("tracking.mine._target_=my_pkg.NoTracker", "must be a class that extends fmstune.training.trackers.base"),
        ("tracking.mine._target_=my_pkg.a.B", "tracking.mine._target_: cannot import my_pkg.a"),
        ("callbacks.mine._target_=my_pkg.StopAfter", "callbacks.mine.steps must be given; StopAfter needs it"),
        (
            "callbacks.mine={_target_:my_pkg.StopAfter,steps:1,stepz:2}",
            "callbacks.mine.stepz: StopAfter has no such argument; did you mean 'steps'?",
        ),
    ],
)
def test_a_class_that_does_not_fit_is_refused_by_the_check(
    words: str, says: str, fmstune: Callable[..., Result]
) -> None:
    done = fmstune("check", *TRUST[2:], "data.max_rows=8", words)
    assert done.code == 2
    assert says in done.err
