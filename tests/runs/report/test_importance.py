"""The importance of settings is their share of the variance of the results."""

from pathlib import Path

import pytest

from fmstune.runs.report.importance import LEAST, setting_importances
from fmstune.runs.report.ranking import Column, Group
from fmstune.runs.report.run_data import Run

COLUMNS = [Column("rate", ()), Column("kind", ()), Column("same", ())]
RUN = Run(Path("x"), {}, {}, [], {}, {}, [], [])


def groups(count: int) -> list[Group]:
    """Settings of which the rate decides, the kind matters a little, and the third is the same in all."""
    settings = [(rate, kind) for rate in (1e-5, 1e-4, 1e-3, 1e-2) for kind in ("a", "b")][:count]
    return [Group((rate, kind, 1), (RUN,), (1000 * rate + (kind == "b") * 0.1,)) for rate, kind in settings]


def test_the_setting_that_decides_comes_first_and_the_shares_are_a_whole() -> None:
    pytest.importorskip("optuna")
    found = setting_importances(COLUMNS, groups(8))
    assert list(found) == ["rate", "kind"]
    assert found["rate"] > 0.9
    assert sum(found.values()) == pytest.approx(1)
    assert setting_importances(COLUMNS, groups(8)) == found


def test_few_results_one_setting_or_equal_results_have_no_importance() -> None:
    assert setting_importances(COLUMNS, groups(LEAST - 1)) == {}
    assert setting_importances(COLUMNS[:1], groups(8)) == {}
    equal = [Group(group.values, group.runs, (1.0,)) for group in groups(8)]
    assert setting_importances(COLUMNS, equal) == {}
