"""The one table of metrics: what a run logs, what it measures, and which way is better."""

import pytest

from fmstune.config import metrics
from fmstune.config.choices import Direction
from fmstune.config.metrics import Place

TABLE = metrics.metrics_of({})


@pytest.mark.parametrize(
    ("place", "names"),
    [
        (Place.training, ["loss", "grad_norm", "learning_rate", "mean_token_accuracy", "entropy"]),
        (Place.evaluation, ["loss", "mean_token_accuracy", "entropy"]),
        (Place.sample, ["exact_match", "accuracy", "micro_f1", "macro_f1"]),
        (Place.labels, ["accuracy", "micro_f1", "macro_f1"]),
        (Place.held_out, ["eval_loss", "exact_match", "accuracy", "micro_f1", "macro_f1"]),
        (Place.table, ["eval_loss", "exact_match", "macro_f1"]),
        (Place.headline, ["eval_loss", "exact_match"]),
        (Place.result, ["train_loss", "steps", "tokens_trained_on"]),
    ],
)
def test_each_place_shows_its_metrics_in_the_order_of_the_table(place: Place, names: list[str]) -> None:
    assert list(metrics.names_at(TABLE, place)) == names


@pytest.mark.parametrize(
    ("figure", "better"),
    [
        ("tuned.sets.a.exact_match", Direction.maximize),
        ("tuned.eval_loss", Direction.minimize),
        ("tokens_per_second", Direction.maximize),
        ("memory_before_model_bytes", Direction.minimize),
        ("steps", None),
        ("entropy", None),
        ("plan.total_steps", None),
    ],
)
def test_which_end_of_a_figure_is_better(figure: str, better: Direction | None) -> None:
    assert metrics.better_end(TABLE, figure) is better


def test_a_figure_is_named_with_its_unit_and_an_unknown_one_by_its_own_name() -> None:
    assert metrics.label_with_unit(TABLE, "tuned.eval_loss") == "loss on the answer (nats a token)"
    assert metrics.label_with_unit(TABLE, "macro_f1") == "macro F1"
    assert metrics.label_with_unit(TABLE, "data.train.rows_read") == "rows read"
