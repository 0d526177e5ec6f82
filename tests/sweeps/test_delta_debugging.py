"""The search for the changes that matter: what it finds, in how many measurements, and what it says where it cannot."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.sweeps.delta_debugging import Causes, Changes, OutOfRuns, Search

Effect = Callable[[Changes], float | None]
TOLERANCE = 0.1


def search(count: int, effect: Effect, *, runs: int = 1000) -> tuple[Causes, list[Changes]]:
    """The causes, and the sets that were measured after those of A and B."""
    asked: list[Changes] = []

    def measure(changes: Changes) -> float | None:
        assert changes not in asked and changes not in (frozenset(), everything)
        if len(asked) == runs:
            raise OutOfRuns
        asked.append(changes)
        return effect(changes)

    everything = frozenset(range(count))
    known = {one: effect(one) for one in (frozenset[int](), everything)}
    return Search(count, TOLERANCE, known, measure).find(), asked


def additive(*effects: float) -> Effect:
    return lambda changes: math.fsum(effects[one] for one in changes)


def jointly(*needed: int) -> Effect:
    return lambda changes: float({*needed} <= changes)


@pytest.mark.parametrize("cause", range(8))
def test_one_of_eight_is_found_in_at_most_four_measurements(cause: int) -> None:
    found, asked = search(8, lambda changes: float(cause in changes))
    assert found == Causes((cause,), 1.0, explained=True, minimal=True, alone={cause: 1.0})
    assert len(asked) <= 4


@pytest.mark.parametrize("pair", [(one, two) for two in range(8) for one in range(two)])
def test_two_of_eight_that_add_up_are_found_in_at_most_seven(pair: tuple[int, int]) -> None:
    sizes = dict(zip(pair, (0.7, 0.3), strict=True))
    found, asked = search(8, lambda changes: sum(sizes.get(one, 0.0) for one in changes))
    assert found.changes == pair and found.explained and found.minimal
    assert found.alone == pytest.approx(sizes)
    assert not found.only_together
    assert len(asked) <= 7


@pytest.mark.parametrize("pair", [(one, two) for two in range(8) for one in range(two)])
def test_two_of_eight_that_only_act_together_are_found_and_said_to(pair: tuple[int, int]) -> None:
    found, asked = search(8, jointly(*pair))
    assert found.changes == pair and found.explained and found.minimal
    assert found.only_together
    assert len(asked) <= 8


def test_of_two_that_each_do_all_one_is_named() -> None:
    found, _ = search(8, lambda changes: float(bool(changes & {2, 6})))
    assert found.changes == (2,) and found.minimal


def test_changes_with_opposite_effects_are_named_where_they_do_not_cancel() -> None:
    found, _ = search(4, additive(0.0, 2.0, 0.0, -1.0))
    assert found.changes == (1, 3) and found.value == 1.0


def test_small_effects_that_no_measurement_can_tell_from_noise_are_not_named() -> None:
    found, _ = search(8, additive(0.01, 1.0, 0.01, -0.02, 0.0, 0.01, 0.0, 0.02))
    assert found.changes == (1,) and found.explained


def test_a_mixed_job_that_is_refused_is_gone_around() -> None:
    # 4 and 5 need each other
    def effect(changes: Changes) -> float | None:
        return None if len(changes & {4, 5}) == 1 else float(1 in changes)

    found, _ = search(8, effect)
    assert found.changes == (1,) and found.explained and not found.unseparated


def test_changes_that_cannot_be_separated_are_named_together() -> None:
    def effect(changes: Changes) -> float | None:
        return None if 0 < len(changes & {4, 5, 6}) < 3 else float(5 in changes)

    found, _ = search(8, effect)
    assert found.changes == (4, 5, 6) and found.explained
    assert found.unseparated == ((4, 5, 6),) and not found.minimal


def test_where_runs_are_used_up_the_group_that_holds_the_cause_is_named() -> None:
    found, asked = search(8, lambda changes: float(5 in changes), runs=2)
    assert len(asked) == 2
    assert found.unseparated == ((4, 5),) and found.changes == (4, 5)
    assert not found.minimal


def test_without_a_single_run_all_changes_may_be_needed() -> None:
    found, _ = search(4, lambda changes: float(1 in changes), runs=0)
    assert found.unseparated == ((0, 1, 2, 3),) and found.explained and not found.minimal


def test_a_single_change_needs_no_measurement() -> None:
    found, asked = search(1, lambda changes: float(len(changes)))
    assert found.changes == (0,) and found.explained and found.minimal and not asked


def test_a_number_to_begin_from_that_is_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="begins from"):
        search(2, lambda changes: None)


CAUSES = st.integers(1, 12).flatmap(
    lambda count: st.tuples(st.just(count), st.sets(st.integers(0, count - 1), min_size=1, max_size=3))
)


@given(CAUSES, st.lists(st.floats(-0.004, 0.004), min_size=12, max_size=12))
@settings(deadline=None, max_examples=150)
def test_what_adds_up_is_found_whole_and_nothing_else(case: tuple[int, set[int]], noise: list[float]) -> None:
    count, causes = case
    found, _ = search(count, lambda changes: sum(1.0 if one in causes else noise[one] for one in changes))
    assert set(found.changes) == causes
    assert found.explained and found.minimal


@given(CAUSES)
@settings(deadline=None, max_examples=150)
def test_what_only_acts_together_is_found_whole_and_nothing_else(case: tuple[int, set[int]]) -> None:
    count, causes = case
    found, asked = search(count, jointly(*causes))
    assert set(found.changes) == causes and found.explained and found.minimal
    assert found.only_together is (len(causes) > 1)
    assert len(asked) <= (len(causes) + 1) * (math.ceil(math.log2(count)) + 1)


@given(CAUSES, st.integers(0, 6), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=150)
def test_the_causes_are_among_what_is_named_whatever_is_refused_or_left_over(
    case: tuple[int, set[int]], runs: int, chance: st.DataObject
) -> None:
    count, causes = case
    refused: dict[Changes, bool] = {}

    def effect(changes: Changes) -> float | None:
        inner = 0 < len(changes) < count
        no = refused.setdefault(changes, inner and chance.random() < 0.3)  # type: ignore[attr-defined]
        return None if no else float(len(changes & causes))

    found, asked = search(count, effect, runs=runs)
    assert causes <= set(found.changes)
    assert len(asked) <= runs
    assert not found.minimal or set(found.changes) == causes
