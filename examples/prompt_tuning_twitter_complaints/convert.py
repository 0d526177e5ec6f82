#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""RAFT's twitter_complaints, as CSV or JSON, → the rows that the early tool's recipe made of it, as JSON lines.

Each row keeps its columns and gets `text_label`, the label in words, and `output`, the text to tune on:
`### Text: {Tweet text}\\n\\n### Label: {text_label}`. Rows without a label are left out, and counted.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LABELS = ("Unlabeled", "complaint", "no complaint")
"""The names of the labels 0, 1 and 2 in RAFT."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("source", type=Path, help="train.csv of RAFT's twitter_complaints, or its rows as JSON")
    parser.add_argument("target", type=Path, help="file to write, one JSON object a line")
    options = parser.parse_args()
    try:
        found = read(options.source)
        rows = [row for row in map(converted, found) if row is not None]
    except (OSError, ValueError) as err:
        print(f"{options.source}: {err}", file=sys.stderr)
        return 2
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    options.target.write_text(text, encoding="utf-8")
    print(f"{options.target}: {len(rows)} rows; {len(found) - len(rows)} without a label were left out")
    return 0


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file, a JSON list or JSON lines."""
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        return list(json.loads(text))
    if text.lstrip().startswith("{"):
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    return list(_csv(text))


def _csv(text: str) -> Iterator[dict[str, Any]]:
    yield from csv.DictReader(text.splitlines(keepends=True))


def converted(row: dict[str, Any]) -> dict[str, Any] | None:
    """The row with its label in words and its text; None where it has no label."""
    for column in ("Tweet text", "Label"):
        if column not in row:
            raise ValueError(f"no column {column!r}; the columns are {', '.join(row)}")
    label = str(row["Label"]).replace("_", " ")
    label = LABELS[int(label)] if label in ("0", "1", "2") else label
    if label not in LABELS:
        raise ValueError(f"the label {label!r} is none of {', '.join(LABELS)}, nor their number")
    if label == LABELS[0]:
        return None
    return {**row, "text_label": label, "output": f"### Text: {row['Tweet text']}\n\n### Label: {label}"}


if __name__ == "__main__":
    sys.exit(main())
