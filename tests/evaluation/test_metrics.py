"""Measures against figures that were worked out by hand, and intervals that hold what they should."""

import pytest

from fmstune.evaluation import metrics
from fmstune.evaluation.metrics import Answers, PerClass

LABELS = ("a", "b", "c")
ANSWERS = Answers(
    wanted=[0, 0, 0, 1, 1, 2],
    got=[0, 0, 1, 1, -1, 0],
    exact=[True, False, False, True, False, False],
    losses=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    tokens=[1, 2, 3, 1, 2, 1],
)


def test_each_class_has_its_precision_recall_and_f1() -> None:
    assert metrics.per_class(ANSWERS.wanted, ANSWERS.got, LABELS) == {
        "a": PerClass(pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3), 3),
        "b": PerClass(0.5, 0.5, 0.5, 2),
        "c": PerClass(0.0, 0.0, 0.0, 1),
    }


def test_an_answer_that_is_no_label_is_wrong_and_only_missed() -> None:
    assert metrics.measures(ANSWERS, 3) == {
        "eval_loss": pytest.approx(2.1),
        "exact_match": pytest.approx(1 / 3),
        "accuracy": 0.5,
        "micro_f1": pytest.approx(6 / 11),
        "macro_f1": pytest.approx((2 / 3 + 1 / 2) / 3),
    }


@pytest.mark.slow
def test_the_figures_are_those_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    wanted, got = [0, 1, 2, 2, 1, 0, 1, 1], [0, 2, 2, 1, 1, 0, 0, 1]
    found = metrics.measures(Answers(wanted, got, [True] * 8, [1.0] * 8, [1] * 8), 3)
    assert found["micro_f1"] == pytest.approx(sklearn.f1_score(wanted, got, average="micro"))
    assert found["macro_f1"] == pytest.approx(sklearn.f1_score(wanted, got, average="macro"))


def test_without_labels_there_are_no_measures_of_them() -> None:
    assert list(metrics.measures(ANSWERS, 0)) == ["eval_loss", "exact_match"]


def test_the_interval_of_a_share_is_about_that_of_the_normal_distribution() -> None:
    right = [True] * 70 + [False] * 30
    answers = Answers([0] * 100, [0 if one else 1 for one in right], right, [1.0] * 100, [1] * 100)
    found = metrics.compared(answers, None, 2, seed=0)["tuned"]["accuracy"]
    assert found["value"] == 0.7
    assert found["low"] == pytest.approx(0.7 - 1.96 * 0.0458, abs=0.02)
    assert found["high"] == pytest.approx(0.7 + 1.96 * 0.0458, abs=0.02)


def test_the_change_is_of_the_same_rows_and_the_seed_repeats_it() -> None:
    """Every row gains the same, so the change is known exactly, though neither loss is."""
    base = ANSWERS._replace(losses=[1.0, 5.0, 2.0, 9.0, 4.0, 1.0], tokens=[1] * 6)
    tuned = base._replace(losses=[loss - 0.5 for loss in base.losses])
    found = metrics.compared(tuned, base, 3, seed=1)
    assert found["change"]["eval_loss"] == pytest.approx({"value": -0.5, "low": -0.5, "high": -0.5})
    assert found["tuned"]["eval_loss"]["low"] < found["tuned"]["eval_loss"]["high"]
    assert metrics.compared(tuned, base, 3, seed=1) == found


def test_a_bar_in_a_label_does_not_break_the_table_of_markdown() -> None:
    assert metrics.markdown(("a", "b"), [("x|y", "1")]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"
