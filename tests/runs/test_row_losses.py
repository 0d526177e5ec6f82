"""The table of losses by row: sums, events of forgetting, and the file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from fmstune.errors import UserError
from fmstune.runs import row_losses
from fmstune.runs.row_losses import ENTRY, Entries


def entries(*rows: tuple[int, int, int, int, int, int, float]) -> Entries:
    """Source, number, epoch, step, tokens, correct and loss."""
    return np.array(list(rows), ENTRY)


def learnt(numbers: Sequence[str]) -> Entries:
    """Rows of two tokens, each by its epochs: `+` where it is learnt, `-` where not."""
    made = [
        (0, row, e, 1, 2, 2 if it == "+" else 1, 1.0) for row, of in enumerate(numbers, 1) for e, it in enumerate(of)
    ]
    return entries(*made)


def test_the_sums_of_a_row_in_an_epoch_are_added_and_its_first_step_is_kept() -> None:
    found = row_losses.merge(
        [entries((0, 2, 0, 4, 3, 1, 1.5)), entries((0, 2, 0, 2, 1, 1, 0.5), (0, 1, 1, 5, 1, 0, 9.0))]
    )
    assert found.tolist() == [(0, 1, 1, 5, 1, 0, 9.0), (0, 2, 0, 2, 4, 2, 2.0)]
    assert len(row_losses.merge([])) == 0


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["-++"], [0, 0, 0]),
        (["+-+-"], [0, 1, 1, 2]),
        (["--"], [0, 0]),
        (["+-", "-+", "+-"], [0, 1, 0, 0, 0, 1]),
        ([], []),
    ],
)
def test_a_row_is_forgotten_where_it_was_learnt_an_epoch_before(rows: list[str], expected: list[int]) -> None:
    assert row_losses.times_forgotten(learnt(rows)).tolist() == expected


def test_the_loss_of_a_source_is_a_mean_over_its_tokens() -> None:
    made = entries((0, 1, 0, 1, 3, 0, 6.0), (0, 2, 0, 1, 1, 0, 6.0), (2, 1, 0, 1, 2, 0, 1.0))
    assert row_losses.loss_by_source(made, ["a", "b", "c"]) == {"a": 3.0, "c": 0.5}


def test_the_file_counts_epochs_from_1_and_gives_the_loss_a_token(tmp_path: Path) -> None:
    made = entries((0, 7, 0, 3, 2, 2, 0.5), (0, 7, 1, 9, 2, 1, 3.0), (1, 7, 0, 1, 0, 0, 0.0))
    row_losses.write_row_losses(tmp_path, ["a", "b"], made)
    assert parquet.read_table(tmp_path / "rows.parquet").to_pylist() == [
        {"source": "a", "row": 7, "epoch": 1, "step": 3, "loss": 0.25, "tokens": 2, "correct": 2, "forgotten": 0},
        {"source": "a", "row": 7, "epoch": 2, "step": 9, "loss": 1.5, "tokens": 2, "correct": 1, "forgotten": 1},
        {"source": "b", "row": 7, "epoch": 1, "step": 1, "loss": None, "tokens": 0, "correct": 0, "forgotten": 0},
    ]
    assert np.array_equal(row_losses.read_row_losses(tmp_path, ["a", "b"]), made)


def test_a_file_that_no_run_writes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_text("row,loss")
    with pytest.raises(UserError, match=r"rows\.parquet: cannot be read as the rows of this run"):
        row_losses.read_row_losses(tmp_path, [""])
