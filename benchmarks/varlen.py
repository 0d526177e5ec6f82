#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Packed rows under `model.attention=varlen`, against batches of like length and padded batches of the same rows."""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pairs
from results import Figure, Section, mebibytes, table

Summary = dict[str, Any]
PACKED = ("training.packing=true", "model.attention=varlen")
GROUPED = ("training.train_sampling_strategy=group_by_length",)


class Subject(NamedTuple):
    """A model on rows: where both lie, how they are trained, and batches of about as many tokens."""

    place: Path
    model: Path
    words: tuple[str, ...]
    pack: int
    """Tokens of a packed row."""
    packs: int
    """Packs in a batch."""
    rows: int
    """Rows in a batch that is not packed."""
    steps: int
    """Of an epoch of such batches."""


def measure(*, quick: bool) -> Section:
    """Ratios of tokens/s and of peak memory, of whole runs that alternate."""
    count = 1 if quick else 3
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        short, long = _complaints(place, steps=4 if quick else 12), _alpaca(place, steps=2 if quick else 4)
        figures = [_speed("shipped rows of 35 tokens, tiny_llama", short, count)]
        sides: dict[str, tuple[str, ...]] = {
            "packed": (*PACKED, _batch(long.packs)),
            "grouped": (*GROUPED, _batch(long.rows)),
        }
        sides["padded"] = (_batch(long.rows),)
        made = pairs.rounds({side: partial(_run, long, words) for side, words in sides.items()}, count)
        figures.append(_ratio("Alpaca's lengths, a Llama of 3 million: tokens/s", made, "grouped"))
        peaks = {side: [_peak(one[side]) for one in made] for side in sides}
        ratios = [ours / theirs for ours, theirs in zip(peaks["packed"], peaks["padded"], strict=True)]
        note = f"{mebibytes(peaks['packed'])} against {mebibytes(peaks['padded'])}"
        figures.append(Figure("the same: memory against padded rows", pairs.spread(ratios), 1.1, note))
    return Section(
        "Packed rows with varlen attention",
        "Whole runs on a CPU of one epoch of the same rows, with about the tokens of a pack in each batch of the "
        "others. Tokens/s of the steps, against `group_by_length`; peak memory of a run with packs of 4,096 tokens, "
        "without what was used before the model was loaded, against the same rows padded in random order.",
        figures,
    )


def _complaints(place: Path, *, steps: int) -> Subject:
    model = place / "tiny_llama"
    pairs.run(pairs.python("make_model.py", "tiny_llama", model))
    return Subject(place, model, ("data=complaints", "data.eval=null"), 256, 8, 58, steps)


def _alpaca(place: Path, *, steps: int) -> Subject:
    model, rows = place / "llama_3m", place / "rows.jsonl"
    pairs.run(pairs.python("make_model.py", "llama_3m", model))
    pairs.run(pairs.python("make_rows.py", 2_000, rows))
    return Subject(place, model, ("data=alpaca", f"data.train={rows}"), 4096, 1, 17, steps)


def _batch(rows: int) -> str:
    return f"training.per_device_train_batch_size={rows}"


def _speed(name: str, subject: Subject, count: int) -> Figure:
    sides = {"packed": (*PACKED, _batch(subject.packs)), "grouped": (*GROUPED, _batch(subject.rows))}
    made = pairs.rounds({side: partial(_run, subject, words) for side, words in sides.items()}, count)
    return _ratio(f"{name}: tokens/s", made, "grouped")


def _ratio(what: str, made: Sequence[Mapping[str, Summary]], against: str) -> Figure:
    speeds = {side: [one[side]["tokens_per_second"] for one in made] for side in ("packed", against)}
    ratios = [ours / theirs for ours, theirs in zip(speeds["packed"], speeds[against], strict=True)]
    note = f"{max(speeds['packed']):,.0f} against {max(speeds[against]):,.0f} at best"
    return Figure(what, pairs.spread(ratios), 1.0, note, at_least=True)


def _peak(summary: Summary) -> float:
    return float(summary["peak_memory_bytes"] - summary["memory_before_model_bytes"])


def _run(subject: Subject, words: Sequence[str]) -> Summary:
    with tempfile.TemporaryDirectory(dir=subject.place) as name:
        folder = Path(name) / "run"
        argv = pairs.fmstune(
            "model=causal_lm",
            f"model.path={subject.model}",
            "peft=full",
            *subject.words,
            f"data.max_length={subject.pack}",
            "launcher.device=cpu",
            "evaluation=none",
            # one epoch: all sides train the same rows
            "training.num_train_epochs=1",
            f"data.max_rows={subject.rows * subject.steps}",
            "training.gradient_accumulation_steps=1",
            "training.save_strategy=no",
            *words,
            f"output_dir={folder}",
        )
        pairs.run(argv, env={"FMSTUNE_CACHE": str(subject.place / "cache")})
        made: Summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return made


if __name__ == "__main__":
    print(table(measure(quick="--quick" in sys.argv)))
