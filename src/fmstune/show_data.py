"""What training will see: some rows with their trained tokens marked, and sums; or all rows as JSON."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fmstune import mixing
from fmstune.data import Prepared
from fmstune.ledger import Ledger
from fmstune.tokens import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

BAR = 40
"""Characters of the longest bar."""
BARS = 10
VISIBLE = {code: chr(0x2400 + code) for code in range(32)} | {ord("\t"): "→", ord("\n"): "↵\n"}
"""Unicode has a picture for each control character."""


class Paint(NamedTuple):
    """What stands around a trained and around a masked piece of text."""

    trained: tuple[str, str]
    masked: tuple[str, str]


PLAIN = Paint(trained=("⟦", "⟧"), masked=("", ""))
COLOR = Paint(trained=("\x1b[1;32m", "\x1b[0m"), masked=("\x1b[2m", "\x1b[0m"))


class Run(NamedTuple):
    """Neighbouring tokens that are all trained or all masked, as text."""

    text: str
    trained: bool


def render(prepared: Prepared, tokenizer: "PreTrainedTokenizerBase", rows: int = 3, *, color: bool) -> str:
    """The first rows as the model gets them, then lengths, end-of-sequence and ledger of the training split."""
    paint = COLOR if color else PLAIN
    shown = [
        _row(f"{part.name} row {number}".strip(), row, tokenizer, paint)
        for part in prepared.sources
        for number, row in enumerate(_first(part.rows, rows), start=1)
    ]
    legend = "".join(_painted(run, paint) for run in (Run("trained", True), Run(" masked", False)))
    return "\n\n".join([f"{legend}; ↵ is a line break, · a space, → a tab", *shown, *_splits(prepared, tokenizer)])


def write_json(prepared: Prepared, tokenizer: "PreTrainedTokenizerBase", path: Path) -> None:
    """All training rows in file order as one JSON array; the file appears when it is complete."""
    aside = path.with_name(f"{path.name}.unfinished")
    with aside.open("w", encoding="utf-8") as file:
        for number, (source, row) in enumerate((part.name, row) for part in prepared.sources for row in part.rows):
            trained = [label for label in row["labels"] if label != IGNORED]
            values = {"input_ids": row["input_ids"], "labels": row["labels"]} | ({"source": source} if source else {})
            values |= {"trained_text": tokenizer.decode(trained, skip_special_tokens=False)}
            file.write(("[\n" if number == 0 else ",\n") + json.dumps(values, ensure_ascii=False))
        file.write("\n]\n")
    os.replace(aside, path)


def runs(row: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> list[Run]:
    """The row's text where training changes to masking and back.

    Each run is what its tokens add to the text before them: decoded alone, it would lose its first space.
    """
    ids: list[int] = row["input_ids"]
    found, end, before = [], 0, ""
    for trained, labels in groupby(row["labels"], key=lambda label: label != IGNORED):
        end += len(list(labels))
        text = str(tokenizer.decode(ids[:end], skip_special_tokens=False))
        found.append(Run(text[len(before) :], trained))
        before = text
    return found


def rows_with_trained_end(dataset: "Dataset", end_of_sequence: int) -> int:
    """How many rows train end-of-sequence as their last token, so that the model learns to stop."""
    return sum(
        bool(labels) and labels[-1] == end_of_sequence
        for batch in dataset.select_columns("labels").iter(batch_size=1000)
        for labels in batch["labels"]
    )


def histogram(lengths: Mapping[int, int]) -> list[str]:
    """Rows by their number of tokens, as text bars of equal width."""
    if not lengths:
        return []
    width = -(-max(lengths) // BARS)
    bins = Counter[int]()
    for length, count in lengths.items():
        bins[(length - 1) // width] += count
    most, digits = max(bins.values()), len(f"{width * BARS:,}")
    return [
        f"{n * width + 1:>{digits},} to {(n + 1) * width:>{digits},} tokens  "
        f"{'█' * -(-bins[n] * BAR // most):<{BAR}} {bins[n]:,}"
        for n in range(min(bins), max(bins) + 1)
    ]


def _splits(prepared: Prepared, tokenizer: "PreTrainedTokenizerBase") -> Iterator[str]:
    for title, parts in (("training rows", prepared.sources), ("held-out rows", prepared.held_out)):
        for part in parts:
            named = f"{title} of {part.name}" if part.name else title
            yield _split(named, part.rows, part.ledger, tokenizer)
    if len(prepared.mixture) > 1:
        yield "\n".join(["mixture", *mixing.lines(prepared.mixture)])
    if prepared.shared:
        yield "\n".join(f"note: {note}" for note in prepared.notes())


def _split(title: str, dataset: "Dataset", ledger: Ledger, tokenizer: "PreTrainedTokenizerBase") -> str:
    eos = tokenizer.eos_token_id
    ended = rows_with_trained_end(dataset, eos)
    cut = ledger.rows_truncated / ledger.rows_trained
    return "\n".join(
        [
            title,
            *ledger.lines(),
            f"cut     {ledger.rows_truncated:,} of {ledger.rows_trained:,} rows lose their end ({cut:.1%})",
            f"stop    {ended:,} of {len(dataset):,} rows train {tokenizer.eos_token} ({eos}) as their last token",
            *histogram(ledger.lengths),
        ]
    )


def _first(dataset: "Dataset", rows: int) -> Iterator[Mapping[str, Any]]:
    return (dataset[number] for number in range(min(rows, len(dataset))))


def _row(name: str, row: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase", paint: Paint) -> str:
    trained = sum(label != IGNORED for label in row["labels"])
    title = f"{name}: {len(row['input_ids']):,} tokens, {trained:,} trained"
    return f"{title}\n{''.join(_painted(run, paint) for run in runs(row, tokenizer))}"


def _painted(run: Run, paint: Paint) -> str:
    before, after = paint.trained if run.trained else paint.masked
    return f"{before}{_visible(run.text)}{after}"


def _visible(text: str) -> str:
    """The text with white space that would not be seen shown, and no control character left for the terminal."""
    inner = text.strip(" ")
    start = text[: len(text) - len(text.lstrip(" "))]
    end = text[len(start) + len(inner) :]
    marked = "·" * len(start) + inner + "·" * len(end)
    return marked.translate(VISIBLE)
