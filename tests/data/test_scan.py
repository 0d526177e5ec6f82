"""Rows are counted and checked without a tokenizer, as preparing them would count and check them."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict

from fmstune.config.choices import Untrainable
from fmstune.data import tokens
from fmstune.data.ledger import Ledger
from fmstune.data.scan import Scan, scan_data
from fmstune.errors import UserError
from tests.data.test_dataset import GOOD, SAME, SEED, TEMPLATE, job_data, text, write


@pytest.fixture
def no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "encode_rows", lambda *_: pytest.fail("tokenised"))


@pytest.mark.usefixtures("no_tokenizer")
def test_a_scan_counts_rows_and_characters() -> None:
    write([*GOOD, "no template", text("a" + TEMPLATE, " yes")])
    write(GOOD[:2], "eval.jsonl")
    assert scan_data(job_data(eval="eval.jsonl", untrainable=Untrainable.drop), SEED) == Scan(
        ledger=Ledger(rows_read=5, rows_formatted=4, rows_with_several_templates=1, rows_without_template=1),
        rows=4,
        held_out_rows=2,
        characters_total=16 + 36 + 20 + 27,
        characters_trained=4 + 10 + 3 + 4,
        characters_longest=36,
    )


@pytest.mark.usefixtures("no_tokenizer")
def test_a_scan_of_a_fraction_counts_what_would_be_held_out() -> None:
    write(GOOD)
    scan = scan_data(job_data(eval_fraction=0.3), SEED)
    assert (scan.rows, scan.held_out_rows) == (2, 1)


@pytest.mark.usefixtures("no_tokenizer")
def test_a_scan_finds_what_preparing_would_find() -> None:
    write(["no template", text("a", "")])
    write(["none"], "eval.jsonl")
    with pytest.raises(UserError) as raised:
        scan_data(job_data(eval="eval.jsonl"), SEED)
    assert [problem.split(":")[0] for problem in map(str, raised.value.problems)] == [
        "train.jsonl, row 1",
        "train.jsonl, row 2",
        "eval.jsonl, row 1",
    ]


def test_rows_that_are_trained_and_held_out_are_found_by_a_scan() -> None:
    write(GOOD)
    with pytest.raises(UserError) as raised:
        scan_data(job_data(eval="train.jsonl"), SEED)
    assert tuple(map(str, raised.value.problems)) == (SAME,)


def test_token_rows_count_as_the_characters_that_they_usually_have() -> None:
    Path("train.jsonl").write_text(json.dumps({"input_ids": list(range(10)), "labels": [-100] * 5 + [1] * 5}) + "\n")
    scan = scan_data(job_data(format={"_target_": "fmstune.data.formats.tokenized"}), SEED)
    assert (scan.characters_total, scan.characters_trained) == (36, 18)


def test_of_a_streamed_hub_id_only_the_first_rows_are_read_and_nothing_is_downloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    DatasetDict({"train": Dataset.from_list([{"output": text(f"r{n}", " yes")} for n in range(9)])}).save_to_disk("hub")
    asked: list[bool] = []

    def load(hub_id: str, streaming: bool) -> Any:
        asked.append(streaming)
        return datasets.load_from_disk("hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("fmstune.data.splits.SAMPLE", 4)
    assert scan_data(job_data(train="owner/name", streaming=True), SEED).rows == 4
    assert asked == [True]
