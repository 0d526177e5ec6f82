"""Optuna's pruners decide on the looks at the points of a search."""

import pytest

from fmstune.runs.looks import Curve, Look
from fmstune.runs.pruning import is_pruned

pytest.importorskip("optuna")


def curve(*losses: float, of: int = 4) -> Curve:
    looks = [Look(step, of, "these", [loss]) for step, loss in enumerate(losses, start=1)]
    return {look.share: look for look in looks}


WHOLE = {f"{number}-a": curve(*(1.0 + number / 10 - step / 10 for step in range(4))) for number in range(6)}


@pytest.mark.parametrize(("losses", "pruned"), [((9.0, 9.0), True), ((0.5, 0.4), False), ((1.2, 1.1), False)])
def test_the_median_of_the_points_before_decides(losses: tuple[float, ...], pruned: bool) -> None:
    assert is_pruned("MedianPruner", {"n_startup_trials": 3}, "6-a", {**WHOLE, "6-a": curve(*losses)}) is pruned


def test_successive_halving_keeps_the_best_part_of_those_that_have_come_so_far() -> None:
    halving = {"min_resource": 1, "reduction_factor": 2}
    assert is_pruned("SuccessiveHalvingPruner", halving, "6-a", {**WHOLE, "6-a": curve(9.0)})
    assert not is_pruned("SuccessiveHalvingPruner", halving, "6-a", {**WHOLE, "6-a": curve(0.1)})


def test_a_pruner_that_stops_nothing_stops_nothing() -> None:
    assert not is_pruned("NopPruner", {}, "6-a", {**WHOLE, "6-a": curve(99.0)})


def test_the_first_point_has_no_others() -> None:
    assert not is_pruned("MedianPruner", {}, "0-a", {"0-a": curve(5.0)})
