# SPDX-License-Identifier: Apache-2.0
"""COUNT FILE: synthetic rows in the Alpaca shape, always the same; the suffix says how they are written."""

import json
import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TEXT = """
parcel late answer phone open Sunday refund order quick slow broken kind voice bill month price
road train window garden paper number small green letter summer winter river stone table music
story reason question because under through between always never maybe together without about
describe explain list write compare
"""
WORDS = TEXT.split()
SCHEMA = pa.schema({name: pa.string() for name in ("instruction", "input", "output")})


def rows(count: int) -> Iterator[dict[str, str]]:
    """Lengths as in Alpaca, roughly: two rows in five have an input, and outputs have a long tail."""
    draw = random.Random(0)
    for _ in range(count):
        yield {
            "instruction": _text(draw, draw.randint(6, 18)),
            "input": _text(draw, draw.randint(3, 25)) if draw.random() < 0.4 else "",
            "output": _text(draw, min(300, max(1, round(draw.lognormvariate(3.3, 0.9))))),
        }


def _text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(WORDS, k=words)).capitalize() + "."


def main(count: int, path: Path) -> None:
    if path.suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(count))
        return
    if path.suffix == ".parquet":
        with pq.ParquetWriter(path, SCHEMA) as writer:
            for batch in _batches(count):
                writer.write_batch(batch)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
            for batch in _batches(count):
                writer.write_batch(batch)


def _batches(count: int) -> Iterator[pa.RecordBatch]:
    made = rows(count)
    while some := list(islice(made, 1000)):
        yield pa.RecordBatch.from_pylist(some, schema=SCHEMA)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
