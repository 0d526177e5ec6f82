"""A point is stopped when another is better on the same rows, with a stated chance of being wrong."""

import dataclasses
import math
import random
from collections.abc import Callable

import pytest

from fmstune.runs.looks import Curve, Look
from fmstune.runs.losers import Better, Rule, chance_best, evidence, find_better

RULE = Rule(risk=0.05, warm_up=0.2, patience=2, rivals=11, looks=8)
ROWS = 120


def curve(loss: Callable[[float], float], *, spread: float = 0.0, rows: str = "these", until: float = 1.0) -> Curve:
    """Looks at tenths of the schedule, at rows whose losses differ by as much as is given."""
    drawn = random.Random(7)
    offsets = [drawn.gauss(0, spread) for _ in range(ROWS)]
    shares = [tenth / 10 for tenth in range(1, 11) if tenth / 10 <= until]
    return {share: Look(round(share * 50), 50, rows, [loss(share) + one for one in offsets]) for share in shares}


GOOD = curve(lambda share: 1 - 0.5 * share)


def test_the_evidence_needed_shares_the_risk_out_among_rivals_and_looks() -> None:
    assert RULE.threshold == pytest.approx(math.sqrt(2 * math.log(11 * 8 / 0.05)))
    assert RULE.least_rows == 15
    # as many rows as that can just show it
    assert evidence([1.0] * RULE.least_rows) >= RULE.threshold > evidence([1.0] * (RULE.least_rows - 1))


def test_equal_losses_are_no_evidence() -> None:
    assert evidence([0.0] * 5) == 0.0
    assert evidence([1.0, -1.0]) == 0.0


def test_a_point_that_is_worse_on_all_rows_is_stopped_as_soon_as_it_has_been_seen_often_enough() -> None:
    own = curve(lambda share: 1.2 - 0.5 * share, until=0.4)
    assert find_better(RULE, own, {"good": GOOD}) == Better("good", 0.4, pytest.approx(0.8), pytest.approx(1.0))


CASES: dict[str, tuple[Curve, Curve]] = {
    "the better one": (GOOD, curve(lambda share: 1.2 - 0.5 * share)),
    "seen too seldom": (curve(lambda share: 2.0, until=0.1), GOOD),
    "in its warm-up when it was seen first": (curve(lambda share: 2.0, until=0.2), GOOD),
    "at its end": (curve(lambda share: 2.0), GOOD),
    "on other rows": (curve(lambda share: 2.0, until=0.4, rows="others"), GOOD),
    "worse by less than the rows differ": (
        curve(lambda share: 1.02 - 0.5 * share, spread=1.0, until=0.4),
        curve(lambda share: 1 - 0.5 * share, until=0.4),
    ),
    "about to catch up": (curve(lambda share: 1.5 - 1.2 * share, until=0.4), GOOD),
}


@pytest.mark.parametrize("case", CASES)
def test_a_point_that_may_be_the_best_is_not_stopped(case: str) -> None:
    own, rival = CASES[case]
    assert find_better(RULE, own, {"rival": rival}) is None


def changed(own: Curve, share: float, losses: list[float]) -> Curve:
    """The curve with other losses at one look."""
    return {**own, share: dataclasses.replace(own[share], losses=losses)}


def test_one_bad_look_does_not_stop_a_point_that_was_ahead_before() -> None:
    spiked = changed(curve(lambda share: 0.9 - 0.5 * share, until=0.4), 0.4, [3.0] * ROWS)
    assert find_better(RULE, spiked, {"good": GOOD}) is None
    assert find_better(dataclasses.replace(RULE, patience=1), spiked, {"good": GOOD}) is not None


def test_the_look_before_must_show_who_is_ahead_and_not_how_surely() -> None:
    gaps = [1.0, -0.9] * (ROWS // 2)
    assert 0 < evidence(gaps) < RULE.threshold
    ahead = [loss + gap for loss, gap in zip(GOOD[0.3].losses, gaps, strict=True)]
    own = curve(lambda share: 1.4 - 0.5 * share, until=0.4)
    found = find_better(RULE, changed(own, 0.3, ahead), {"good": GOOD})
    assert found is not None
    assert found.share == 0.4
    behind = [loss - gap for loss, gap in zip(GOOD[0.3].losses, gaps, strict=True)]
    assert find_better(RULE, changed(own, 0.3, behind), {"good": GOOD}) is None


def test_of_several_better_points_the_clearest_is_named() -> None:
    own = curve(lambda share: 2 - 0.5 * share, spread=0.2, until=0.4)
    rivals = {"near": curve(lambda share: 1.9 - 0.5 * share), "far": GOOD}
    found = find_better(RULE, own, rivals)
    assert found is not None
    assert found.point == "far"


def test_points_of_equal_worth_are_stopped_less_often_than_the_risk_says() -> None:
    """Twelve points whose rows differ by chance alone, looked at eight times: the union bound must hold."""
    drawn, stopped = random.Random(3), 0
    for _ in range(100):
        points = [[drawn.gauss(1, 1) for _ in range(ROWS)] for _ in range(12)]
        best, *others = points
        gaps = [[a - b for a, b in zip(best, other, strict=True)] for other in others]
        stopped += any(evidence(gap) >= RULE.threshold for gap in gaps)
    assert stopped <= 5


def test_the_chance_that_a_point_is_the_best_is_that_of_other_rows() -> None:
    drawn = random.Random(1)
    rows = [drawn.gauss(1, 1) for _ in range(ROWS)]
    worse, different = [one + 0.1 for one in rows], [one + (-1) ** number for number, one in enumerate(rows)]
    assert chance_best({"a": rows, "b": worse}, "a") == 1.0
    assert chance_best({"a": rows, "b": worse}, "b") == 0.0
    assert 0.45 < chance_best({"a": rows, "b": different}, "a") < 0.6
