"""A bisection by runs: what it trains, what it keeps, how it goes on, and when there is no cause to find."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fmstune.errors import UserError
from fmstune.exit_codes import INTERRUPTED
from fmstune.runs.difference_units import Change, Unit
from fmstune.sweeps.bisect import FILE, Bisection, Ended, Subject, Verdict, most_runs

UNITS = tuple(Unit(name, (Change(name, 1, 2),)) for name in ("one", "two", "three", "four"))
Loss = Callable[[set[str], int], float | None]


class Trained:
    """In place of training: each run gives the loss that a function says, and is counted."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.folders: list[str] = []
        self.said: list[str] = []

    def start(self, units: tuple[Unit, ...], folder: Path, seed: int) -> int:
        value = self.loss({unit.name for unit in units}, seed)
        self.folders.append(folder.name)
        (folder / "model").mkdir(parents=True)
        (folder / "job.yaml").write_text(yaml.safe_dump({"name": "x"}))
        status = {"status": "failed"} if value is None else {"status": "finished", "train_loss": value}
        (folder / "summary.json").write_text(json.dumps(status))
        return 0 if value is not None else 1

    def find(self, *, units: tuple[Unit, ...] = UNITS, max_runs: int = 10, plan: str = "same") -> Verdict:
        subject = Subject(units, "train_loss", Path("bisect"), max_runs, self.start, {"plan": plan})
        return Bisection(subject, self.said.append).find()


def cause(*names: str, size: float = 1.0, noise: float = 0.01) -> Loss:
    return lambda changed, seed: 2.0 - size * ({*names} <= changed) + noise * seed


def test_a_cause_is_found_and_the_weights_of_the_runs_are_not_kept() -> None:
    trained = Trained(cause("three"))
    verdict = trained.find()
    assert verdict.causes is not None
    assert verdict.causes.changes == (2,) and verdict.causes.minimal
    assert (verdict.difference, verdict.noise) == (-1.0, pytest.approx(0.01))
    assert trained.folders[:4] == ["a", "b", "a-seed-1", "a-seed-2"] and verdict.runs == len(trained.folders) <= 7
    assert trained.said[0] == "run 1 of at most 10: A: train_loss 2"
    assert trained.said[4] == "run 5 of at most 10: A with one, two of B: train_loss 2"
    assert not list(Path("bisect").glob("*/model"))
    record = json.loads(Path("bisect", FILE).read_text())
    assert record["runs"]["b-3"] == 1.0 and record["result"]["runs"] == verdict.runs


def test_a_difference_within_the_noise_of_seeds_is_not_searched() -> None:
    trained = Trained(cause("three", size=0.02))
    verdict = trained.find()
    assert verdict.is_noise and verdict.causes is None and verdict.runs == 4


def test_equal_numbers_are_no_difference_even_without_noise() -> None:
    assert Trained(cause("three", size=0.0, noise=0.0)).find().is_noise


@pytest.mark.parametrize("left", range(7))
def test_an_interrupted_bisection_goes_on_and_trains_no_run_again(left: int) -> None:
    trained = Trained(cause("two", "four"))
    start, stopped = trained.start, []

    def start_few(units: tuple[Unit, ...], folder: Path, seed: int) -> int:
        if len(trained.folders) == left and not stopped:
            stopped.append(folder)
            return INTERRUPTED
        return start(units, folder, seed)

    trained.start = start_few  # type: ignore[method-assign]
    with pytest.raises(Ended):
        trained.find()
    verdict = trained.find()
    assert verdict.causes is not None and verdict.causes.changes == (1, 3)
    assert len(trained.folders) == len({*trained.folders}) == verdict.runs


def test_a_run_that_had_finished_when_the_record_was_lost_is_read() -> None:
    trained = Trained(cause("two"))
    trained.find()
    Path("bisect", FILE).unlink()
    count = len(trained.folders)
    assert trained.find().causes is not None
    assert len(trained.folders) == count and "run before: A: train_loss 2" in trained.said


def test_more_runs_go_on_where_too_few_have_ended() -> None:
    trained = Trained(cause("two", "four"))
    first = trained.find(max_runs=5).causes
    assert first is not None and first.unseparated and not first.minimal
    second = trained.find(max_runs=12)
    assert second.causes is not None and second.causes.changes == (1, 3) and second.causes.only_together
    assert len(trained.folders) == len({*trained.folders})


def test_mixed_jobs_that_fail_or_are_refused_are_gone_around() -> None:
    trained = Trained(lambda changed, seed: None if changed == {"one", "two"} else cause("three")(changed, seed))
    start = trained.start

    def refuse(units: tuple[Unit, ...], folder: Path, seed: int) -> int:
        if [unit.name for unit in units] == ["three"]:
            raise UserError("three", "needs four\nand more")
        return start(units, folder, seed)

    trained.start = refuse  # type: ignore[method-assign]
    verdict = trained.find()
    assert "run 5 of at most 10: A with one, two of B: failed" in trained.said
    assert verdict.causes is not None and 2 in verdict.causes.changes
    assert len(trained.folders) == verdict.runs


def test_where_a_or_b_does_not_run_the_log_is_named() -> None:
    with pytest.raises(UserError, match=r"bisect: b cannot be run here; bisect/log.txt says why"):
        Trained(lambda changed, seed: 1.0 if not changed else None).find()


def test_a_folder_of_another_bisection_is_refused() -> None:
    Trained(cause("two")).find()
    with pytest.raises(UserError, match="--out: bisect/bisect.json is of another bisection"):
        Trained(cause("two")).find(plan="other")


def test_one_unit_needs_no_mixed_job() -> None:
    trained = Trained(cause("one"))
    verdict = trained.find(units=UNITS[:1])
    assert verdict.causes is not None and verdict.causes.changes == (0,) and verdict.runs == 4
    assert [most_runs(count, 10) for count in (1, 2, 3, 4)] == [4, 6, 10, 10]
