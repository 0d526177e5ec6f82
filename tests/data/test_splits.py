"""A share of the rows is held out, exactly and by the seed; each row falls into one split."""

import json
from pathlib import Path
from typing import Any

import pytest

from fmstune.data import splits
from fmstune.data.scan import scan_data
from fmstune.errors import UserError
from tests.data.test_dataset import GOOD, job_data, prepare, problems_of, text, texts_of, write


@pytest.mark.parametrize(("count", "fraction", "held_out"), [(10, 0.2, 2), (7, 0.5, 4), (101, 0.1, 10)])
def test_a_fraction_holds_out_exactly_its_share(count: int, fraction: float, held_out: int) -> None:
    write([text(f"r{number}", " yes") for number in range(count)])
    prepared = prepare(eval_fraction=fraction)
    (part,) = prepared.held_out
    assert (len(part.rows), len(prepared.train)) == (held_out, count - held_out)
    assert sorted(texts_of(part.rows) + texts_of(prepared.train)) == sorted(f"r{n}" for n in range(count))


def test_the_rows_held_out_are_fixed_by_the_seed() -> None:
    assert splits.held_out_numbers(10, 0.3, seed=42) == {0, 1, 4}
    assert splits.held_out_numbers(10, 0.3, seed=43) == {0, 2, 4}


@pytest.mark.parametrize(("count", "fraction", "share"), [(3, 0.1, 0), (3, 0.9, 3)])
def test_a_fraction_that_leaves_a_split_empty_is_a_problem(count: int, fraction: float, share: int) -> None:
    write(GOOD[:count])
    assert problems_of(eval_fraction=fraction) == (
        f"data.eval_fraction={fraction} holds {share} of {count} rows out, and both splits need one; "
        "change it or set data.eval",
    )


def test_max_rows_limits_training_rows_before_some_are_held_out() -> None:
    write([text(f"r{number}", " yes") for number in range(9)])
    prepared = prepare(max_rows=4, eval_fraction=0.5)
    (part,) = prepared.held_out
    assert sorted(texts_of(part.rows) + texts_of(prepared.train)) == ["r0", "r1", "r2", "r3"]


def test_max_rows_does_not_limit_rows_that_were_held_out_by_the_user() -> None:
    write(GOOD)
    write(GOOD[::-1], "eval.jsonl")
    prepared = prepare(max_rows=1, eval="eval.jsonl")
    assert (len(prepared.train), len(prepared.held_out[0].rows)) == (1, 3)


# rows that are left out


def quarantine(*rows: object, name: str = "left_out.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def test_a_quarantined_row_is_read_counted_and_not_trained() -> None:
    write([text(f"r{number}", " yes") for number in range(1, 6)])
    left_out = quarantine({"source": "", "row": 2, "why": "never learnt"}, {"row": 5})
    prepared = prepare(quarantine=left_out)
    assert texts_of(prepared.train) == ["r1", "r3", "r4"]
    assert list(prepared.train["number"]) == [1, 3, 4]
    ledger = prepared.ledger
    assert (ledger.rows_read, ledger.rows_trained, ledger.rows_quarantined, ledger.rows_dropped) == (5, 3, 2, 2)
    assert ledger.lines()[2].endswith("0 too long, 2 quarantined")
    assert set(prepared.identity["data_hashes"]) == {"data.train", "data.quarantine"}


def test_a_row_that_cannot_be_trained_may_be_quarantined() -> None:
    write([*GOOD, "no template"])
    assert prepare(quarantine=quarantine({"row": 4})).ledger.rows_quarantined == 1


def test_the_others_are_held_out_as_without_a_quarantine() -> None:
    write([text(f"r{number}", " yes") for number in range(10)])
    before = prepare(eval_fraction=0.3)
    assert texts_of(before.held_out[0].rows) == ["r0", "r1", "r4"]
    after = prepare(eval_fraction=0.3, quarantine=quarantine({"row": 1}, {"row": 3}))
    assert texts_of(after.held_out[0].rows) == ["r1", "r4"]
    assert after.held_out[0].ledger.rows_quarantined == after.sources[0].ledger.rows_quarantined == 1
    assert texts_of(after.train) == [one for one in texts_of(before.train) if one != "r2"]


def test_rows_of_several_sources_are_named_by_source_and_held_out_sources_stay_whole() -> None:
    write(GOOD, "a.jsonl")
    write([text("other", " no"), text("more", " no")], "b.jsonl")
    write(GOOD[::-1], "held.jsonl")
    left_out = quarantine({"source": "b", "row": 1}, {"source": "a", "row": 3})
    prepared = prepare(train={"a": "a.jsonl", "b": "b.jsonl"}, eval={"a": "held.jsonl"}, quarantine=left_out)
    assert [len(part.rows) for part in prepared.sources] == [2, 1]
    assert len(prepared.held_out[0].rows) == 3
    assert list(zip(prepared.train["source"], prepared.train["number"], strict=True)) == [(0, 1), (0, 2), (1, 2)]


def test_all_that_is_wrong_with_a_quarantine_is_said() -> None:
    write(GOOD)
    Path("q.jsonl").write_text('{"row": 1}\n\n{"row": 1}\n[3]\n{"row": 0}\n{"row": true}\n{"row": 2, "y": 1}\n{x\n')
    assert problems_of(quarantine="q.jsonl") == (
        "q.jsonl:3: row 1 stands in line 1 already; remove one of them",
        'q.jsonl:4: a line must be like {"source": "NAME", "row": 17}, got [3]',
        "q.jsonl:5: row must be a whole number from 1 on, got 0",
        "q.jsonl:6: row must be a whole number from 1 on, got True",
        'q.jsonl:7: unknown key \'y\'; a line must be like {"source": "NAME", "row": 17}',
        "q.jsonl:8: broken JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); "
        'a line must be like {"source": "NAME", "row": 17}',
    )


def test_rows_after_those_that_are_read_may_be_quarantined() -> None:
    write(GOOD)
    prepared = prepare(max_rows=2, quarantine=quarantine({"row": 1}, {"row": 3}, {"row": 400}))
    assert (prepared.ledger.rows_read, prepared.ledger.rows_quarantined) == (2, 1)


@pytest.mark.parametrize(
    ("changes", "row", "said"),
    [
        ({}, {"row": 4}, "data.quarantine names row 4 of data.train, which has 3 rows; correct its number"),
        (
            {"max_rows": 9},
            {"row": 4},
            "data.quarantine names row 4 of data.train, which has 3 rows; correct its number",
        ),
        (
            {},
            {"source": "a", "row": 1},
            "q.jsonl:1: no source 'a' in data.train (the only one has no name: leave source out)",
        ),
        ({"train": {"a": "rows.jsonl"}}, {"row": 1}, "q.jsonl:1: names no source (a)"),
        ({"train": {"a": "rows.jsonl"}}, {"source": "b", "row": 1}, "q.jsonl:1: no source 'b' in data.train (a)"),
    ],
)
def test_a_row_that_is_not_there_is_a_problem(changes: dict[str, Any], row: dict[str, Any], said: str) -> None:
    write(GOOD)
    assert problems_of(**changes, quarantine=quarantine(row, name="q.jsonl")) == (said,)
    with pytest.raises(UserError) as caught:
        scan_data(job_data(**changes, quarantine="q.jsonl"), 42)
    assert str(caught.value) == said


def test_streamed_rows_are_left_out_too() -> None:
    write([text(f"r{number}", " yes") for number in range(1, 4)])
    prepared = prepare(streaming=True, buffer_size=1, quarantine=quarantine({"row": 2}))
    assert len(list(prepared.train)) == 2
    assert prepared.streamed is not None and prepared.streamed[""].rows_quarantined == 1
