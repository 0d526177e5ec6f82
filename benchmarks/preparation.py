#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Rows from a file to tokens on disk, against the tokenizer alone; SFTTrainer's preparation beside; memory by rows."""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pairs
from pairs import Child
from results import Figure, Section, mebibytes, seconds, table

FORMATS = ("jsonl", "parquet", "arrow")
FLAT = 1.1
"""Memory of the most rows over that of the fewest."""


def measure(*, quick: bool) -> Section:
    """Seconds to prepare, and peak memory by the number of rows."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        pairs.run(pairs.python("make_model.py", "tiny_llama", place / "model"))
        figures = [*_speed(place, 300 if quick else 50_000, quick), *_memory(place, quick)]
    return Section(
        "Preparation",
        "Synthetic rows in the Alpaca shape. fmstune reads, hashes, formats, tokenises, masks and writes them; the "
        "other side is one call `tokenizer(texts)` on the finished texts, with as many threads. Imports are not "
        "counted. SFTTrainer prepares a fifth of the rows, from prompt and completion; its seconds are taken times 5.",
        figures,
    )


def _speed(place: Path, rows: int, quick: bool) -> Iterator[Figure]:
    file = _rows(place, rows, "jsonl")
    count = 1 if quick else 5
    made = pairs.interleave(
        lambda: _seconds(_prepare(place, file)), lambda: _seconds(_child("tokenise.py", file, place)), count
    )
    note = f"{seconds([a for a, _ in made])} against {seconds([b for _, b in made])}"
    yield Figure(f"{rows:,} rows of JSON lines", pairs.spread([a / b for a, b in made]), 1.5, note)
    fifth = _rows(place, rows // 5, "jsonl")
    theirs = [5 * _seconds(_child("prepare_sft.py", fifth, place)) for _ in range(count)]
    ratios = [theirs_ / alone for theirs_, (_, alone) in zip(theirs, made, strict=True)]
    yield Figure("SFTTrainer, the same rows", pairs.spread(ratios), note=f"{seconds(theirs)} by scaling")


def _memory(place: Path, quick: bool) -> Iterator[Figure]:
    counts = (60,) if quick else (10_000, 50_000, 200_000)
    for suffix in FORMATS[:1] if quick else FORMATS:
        peaks = [float(_prepare(place, _rows(place, count, suffix)).peak) for count in counts]
        shown = ", ".join(f"{mebibytes([peak])} at {count:,}" for count, peak in zip(counts, peaks, strict=True))
        yield Figure(f"memory, {suffix}: most rows over fewest", pairs.spread([peaks[-1] / peaks[0]]), FLAT, shown)


def _rows(place: Path, count: int, suffix: str) -> Path:
    path = place / f"{count}.{suffix}"
    if not path.is_file():
        pairs.run(pairs.python("make_rows.py", count, path))
    return path


def _prepare(place: Path, file: Path) -> Child:
    with tempfile.TemporaryDirectory(dir=place) as cache:
        argv = pairs.python("prepare_rows.py", file, "alpaca", place / "model")
        return pairs.run(argv, env={"FMSTUNE_CACHE": cache})


def _child(script: str, file: Path, place: Path) -> Child:
    with tempfile.TemporaryDirectory(dir=place) as cache:
        return pairs.run(pairs.python(script, file, place / "model"), env={"HF_DATASETS_CACHE": cache})


def _seconds(child: Child) -> float:
    return float(json.loads(child.out)["seconds"])


if __name__ == "__main__":
    print(table(measure(quick="--quick" in sys.argv)))
