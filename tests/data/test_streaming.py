"""Streamed rows have the masks and the ledger of rows that are prepared before, and are read as the run goes."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fmstune.config.choices import OverLength, StoppingStrategy, Untrainable
from fmstune.config.job import Data
from fmstune.data import splits
from fmstune.data.dataset import Prepared, prepare_data
from fmstune.data.show import render_rows
from fmstune.errors import UserError
from tests.data.test_dataset import texts_and_labels
from tests.tokenizers_for_tests import gpt2_style

FORMAT = {"_target_": "fmstune.data.formats.input_output", "input_field": "q", "output_field": "a"}


def write(rows: list[Any], name: str) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def rows(count: int, mark: str = "q") -> list[dict[str, str]]:
    return [{"q": f"{mark}{number}: ", "a": f"answer {number}"} for number in range(count)]


def prepare(seed: int = 42, **changes: Any) -> Prepared:
    job_data = Data(**{"format": FORMAT, "train": "train.jsonl", "streaming": True, "max_length": 64} | changes)
    return prepare_data(job_data, gpt2_style(), seed)


def seen(prepared: Prepared, count: int) -> list[str]:
    return [gpt2_style().decode(row["input_ids"]).split(":")[0] for row in prepared.train.take(count)]


def test_a_pass_holds_the_rows_that_preparing_them_would_give() -> None:
    write(rows(2300), "train.jsonl")
    streamed, prepared = prepare(buffer_size=1), prepare(streaming=False)
    assert list(streamed.train) == texts_and_labels(prepared.train)
    assert streamed.streamed == {"": prepared.ledger}


def test_the_ledger_counts_what_is_left_out() -> None:
    write([*rows(3), {"q": "x", "a": " "}, {"q": "y", "a": "long " * 99}], "train.jsonl")
    prepared = prepare(untrainable=Untrainable.drop, over_length=OverLength.drop)
    assert len(list(prepared.train)) == 3
    assert prepared.streamed is not None
    ledger = prepared.streamed[""]
    assert (ledger.rows_read, ledger.rows_trained) == (5, 3)
    assert (ledger.rows_without_answer, ledger.rows_too_long) == (1, 1)


def test_rows_are_shuffled_in_the_buffer_by_the_seed() -> None:
    write(rows(200), "train.jsonl")
    in_order = [f"q{number}" for number in range(200)]
    first = seen(prepare(buffer_size=50), 200)
    assert first == seen(prepare(buffer_size=50), 200) != in_order
    assert first != seen(prepare(seed=1, buffer_size=50), 200)
    assert sorted(first) == sorted(in_order)
    assert seen(prepare(buffer_size=1), 200) == in_order


def test_sources_are_mixed_by_their_weights() -> None:
    sources = {"a": {"path": write(rows(300, "a"), "a.jsonl"), "weight": 3}}
    sources["b"] = {"path": write(rows(300, "b"), "b.jsonl"), "weight": 1}
    prepared = prepare(train=sources, stopping_strategy=StoppingStrategy.first_exhausted)
    counts = Counter(name[0] for name in seen(prepared, 300))
    assert 200 < counts["a"] < 250
    assert counts["a"] + counts["b"] == 300


def test_sources_without_weights_follow_each_other() -> None:
    write(rows(3, "a"), "a.jsonl")
    write(rows(2, "b"), "b.jsonl")
    assert seen(prepare(train={"a": "a.jsonl", "b": "b.jsonl"}, buffer_size=1), 5) == ["a0", "a1", "a2", "b0", "b1"]


def test_only_the_first_rows_are_looked_at_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "SAMPLE", 3)
    write([*rows(3), {"q": "no answer"}], "train.jsonl")
    prepared = prepare()
    assert prepared.ledger.rows_read == 3
    assert prepared.lines()[0] == "the first 3 rows"
    with pytest.raises(UserError, match=r"train\.jsonl, row 4: no column 'a'"):
        list(prepared.train)


def test_what_is_wrong_with_the_first_rows_is_said_before_the_run() -> None:
    write([{"q": "x"}, *rows(2), {"q": "y", "a": ""}], "train.jsonl")
    with pytest.raises(UserError) as raised:
        prepare()
    assert tuple(map(str, raised.value.problems)) == (
        "train.jsonl, row 1: no column 'a'; its columns are 'q'",
        "train.jsonl, row 4: the answer is empty; fix the row, or set data.untrainable=drop",
    )


def test_a_broken_line_among_the_first_rows_is_said_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "SAMPLE", 3)
    lines = [json.dumps(row) for row in rows(5)]
    Path("train.jsonl").write_text("\n".join([lines[0], "{", *lines[1:]]))
    with pytest.raises(UserError, match=r"train\.jsonl:2: broken JSON"):
        prepare()


def test_of_streamed_files_the_listing_stands_for_the_content() -> None:
    write(rows(3), "train.jsonl")
    first = prepare().identity["data_hashes"]["data.train"]
    assert first.startswith("listing:") and prepare().identity["data_hashes"]["data.train"] == first
    write(rows(4), "train.jsonl")
    assert prepare().identity["data_hashes"]["data.train"] != first


def test_held_out_rows_are_prepared_as_ever() -> None:
    write(rows(5), "train.jsonl")
    write([*rows(2, "e"), rows(5)[4]], "eval.jsonl")
    prepared = prepare(eval="eval.jsonl")
    assert [len(part.rows) for part in prepared.held_out] == [3]
    assert [(shared.rows, shared.train_number, shared.held_out_number) for shared in prepared.shared] == [(1, 5, 3)]


@pytest.mark.slow
def test_a_streamed_run_trains_and_counts_its_rows(fmstune: Any) -> None:
    write(rows(40), "train.jsonl")
    write(rows(6, "e"), "eval.jsonl")
    words = ["data=input_output", "data.format.input_field=q", "data.format.output_field=a", "data.train=train.jsonl"]
    words += ["data.eval=eval.jsonl", "data.streaming=true", "data.max_length=64", "training.max_steps=6"]
    result = fmstune(*words)
    assert result.code == 0, result.err
    assert "the first 40 rows" in result.out
    assert "steps       6 (max_steps, 16 rows x 1 accumulated)" in result.out
    summary = result.summary
    assert summary["steps"] == 6 and summary["train_loss"] > 0
    assert summary["data"]["streamed"] is True
    # three passes are begun, since 6 steps take 96 rows of 40
    assert summary["data"]["train"]["rows_read"] == 120
    assert summary["tuned"]["eval_loss"] < summary["base"]["eval_loss"]


def test_the_view_of_streamed_rows_says_that_they_are_the_first_ones() -> None:
    write(rows(3), "train.jsonl")
    assert "\nthe first training rows\nrows    3 =" in render_rows(prepare(), gpt2_style(), color=False)
