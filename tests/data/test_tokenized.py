"""Rows are tokenised by threads with the same result, and the cache's key knows the code that it depends on."""

import ast
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmstune import cache
from fmstune.config.choices import OverLength
from fmstune.data import tokenized, tokens
from fmstune.data.dataset import load_recipes
from fmstune.data.ledger import Ledger
from fmstune.data.read import RowProblems
from fmstune.data.splits import TRAIN, Recipe, split_rows
from tests import ROOT
from tests.data.test_dataset import job_data, prepare, problems_of, text, write
from tests.tokenizers_for_tests import gpt2_style

ROWS = [text(f"{number} " + "far " * (number % 7), f" answer {number}") for number in range(50)]


def recipe() -> Recipe:
    (found,) = load_recipes(job_data(over_length=OverLength.drop, max_length=30), gpt2_style())
    return found


@pytest.mark.parametrize("ahead", [1, 2, 20])
def test_rows_tokenised_ahead_are_the_same_in_the_same_order(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    monkeypatch.setattr(tokenized, "BATCH", 7)
    write(ROWS)

    def made(ahead: int) -> tuple[list[list[tokenized.Numbered]], Ledger]:
        ledger, one = Ledger(), recipe()
        rows = split_rows(one, 42)[TRAIN]
        return list(tokenized.tokenize_batches(rows, one, ledger, RowProblems(), ahead=ahead)), ledger

    expected, ledger = made(0)
    assert len(expected) == 8
    assert 0 < ledger.rows_trained < 50 == ledger.rows_read
    assert made(ahead) == (expected, ledger)


def test_what_cannot_be_read_hides_no_problem_of_rows_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenized, "BATCH", 2)
    with Path(write([text("long " * 80, " x"), "no template", *ROWS[:6]])).open("a") as rows:
        rows.write("{broken\n")
    found = problems_of(over_length=OverLength.error)
    assert [problem.split(":")[0] for problem in found] == ["train.jsonl, row 2", "train.jsonl, row 1", "train.jsonl"]


def imported_modules(name: str) -> set[str]:
    """The modules of the room that this one imports."""
    tree = ast.parse((ROOT / f"src/fmstune/data/{name}.py").read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "fmstune.data":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fmstune.data."):
            found.add(node.module.removeprefix("fmstune.data."))
    return found


def test_the_key_of_an_entry_covers_exactly_the_modules_that_tokens_depend_on() -> None:
    reached, waiting = set[str](), ["tokenized"]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += imported_modules(name)
    assert {path.stem for path in tokenized.CODE} == reached
    assert len(tokenized.CODE) == len(reached) == 14


def test_rows_are_tokenised_with_a_collector_that_waits_longer_and_is_as_before_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    former, during = gc.get_threshold(), []
    encode = tokens.encode_rows
    monkeypatch.setattr(tokens, "encode_rows", lambda *rest: during.append(gc.get_threshold()) or encode(*rest))
    write(ROWS)
    prepare()
    assert [threshold[0] for threshold in during] == [20_000]
    assert gc.isenabled() and gc.get_threshold() == former


@pytest.mark.parametrize("change", [lambda path: path.write_text('{"output": "x"}'), Path.unlink])
def test_tokens_of_a_file_that_changes_or_vanishes_meanwhile_are_not_kept(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    """The entry's name is a hash of the rows that were there before."""
    file = Path(write([text("q", " yes")] * 3))
    write_entry = tokenized._write_entry

    def written(*given: Any) -> None:
        write_entry(*given)
        change(file)

    monkeypatch.setattr(tokenized, "_write_entry", written)
    (problem,) = problems_of()
    assert problem.startswith(f"{file}: ")
    assert problem.endswith("; start again when nothing writes to it")
    assert [path for path in (cache.place() / "tokenized").iterdir() if path.is_dir()] == []
