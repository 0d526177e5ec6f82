"""Looks at the points of a sweep are lines that other processes read while they are written."""

import json
from pathlib import Path

from fmstune.runs import looks
from fmstune.runs.looks import Look, RowLosses


def look(step: int, *losses: float) -> Look:
    return Look(step, 10, "these", list(losses))


def test_the_mean_of_a_look_is_the_loss_of_a_token_and_not_of_a_row() -> None:
    made = looks.make_look(5, 20, "these", RowLosses([1.0, 9.0], [1, 3]))
    assert made.losses == [0.5, 4.5]
    assert made.loss == (1.0 + 9.0) / 4
    assert made.share == 0.25


def test_the_last_look_at_a_step_counts_and_a_line_that_is_not_whole_does_not() -> None:
    for one in (look(2, 1.0), look(4, 0.5), look(2, 2.0)):
        looks.write_look(Path(), one)
    with Path(looks.FILE).open("a") as file:
        file.write('garbage\n{"step": 3}\n' + json.dumps({"step": 6, "max_steps": 10, "rows": "x", "losses": [1.0]}))
    assert looks.read_curve(Path()) == {0.2: look(2, 2.0), 0.4: look(4, 0.5)}


def test_the_curves_of_a_sweep_are_those_of_its_points_that_were_looked_at() -> None:
    for name in ("0-seed=1", "1-seed=2"):
        Path(name).mkdir()
    looks.write_look(Path("1-seed=2"), look(2, 1.0))
    assert looks.read_curves(Path()) == {"1-seed=2": {0.2: look(2, 1.0)}}


def test_other_rows_another_order_or_another_seed_are_not_the_same_rows() -> None:
    one, other = {"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [1, 3], "labels": [-100, 3]}
    cases = [([one, other], 1), ([other, one], 1), ([one, other], 2), ([one], 1)]
    assert len({looks.identify_rows(rows, seed) for rows, seed in cases}) == len(cases)
    assert looks.identify_rows([one], 1) == looks.identify_rows([dict(one)], 1)
