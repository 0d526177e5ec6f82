#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Draw the rows of docs/masking.md as the model gets them; with `--check`, fail where a picture is stale.

Rows, tokens and labels are made by the code that makes them for a run: the shipped complaints, and rows that the
documents show.
"""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from contextlib import chdir
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from fmstune.config import freeze
from fmstune.config.compose import compose_job
from fmstune.config.overrides import parse_overrides
from fmstune.data import show
from fmstune.data.dataset import Prepared, prepare_data
from fmstune.data.tokens import IGNORED
from fmstune.models import load
from fmstune.training import collate as packing
from fmstune.training import library_noise

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
CHATML = (
    "++model.chat_template=package:chatml.jinja",
    "++model.special_tokens.extra_special_tokens=['<|im_start|>','<|im_end|>']",
)
CHATS = ("chosen", "flags", "thoughts")
"""Conversations that docs/chat.md shows."""
PACK = 88
"""Positions of the packed row."""
WIDTH, LINE, CHARACTER, GAP = 520, 27, 8.4, 3
"""Of a picture, of a line of tokens, of one character of a monospaced font of 14 pixels, and between tokens."""
SIDE = 150
"""Of the square of who sees whom."""
STYLE = """
  text { font: 14px ui-monospace, monospace; fill: #5c5c5c; }
  .quiet { font: 12px system-ui, sans-serif; }
  rect { fill: #f3f4f6; stroke: #cfcfcf; }
  .t rect { fill: #d6e6fa; stroke: #2b6cb0; stroke-width: 1.5; }
  .t text { fill: #08306b; font-weight: 700; }
  path { fill: #d6e6fa; stroke: #2b6cb0; }
  @media (prefers-color-scheme: dark) {
    text { fill: #a8a8a8; }
    rect { fill: #24262b; stroke: #4a4d55; }
    .t rect { fill: #173a66; stroke: #7db3ea; }
    .t text { fill: #d6e8ff; }
    path { fill: #173a66; stroke: #7db3ea; }
  }
"""


class Token(NamedTuple):
    """A token as it is drawn."""

    text: str
    trained: bool


class Drawn(NamedTuple):
    """A part of a picture, and how far down it reaches."""

    svg: str
    bottom: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a picture is stale")
    check = parser.parse_args().check
    library_noise.quiet()
    stale = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FMSTUNE_CACHE"] = f"{folder}/cache"
        for name, svg in pictures(Path(folder)).items():
            path = PICTURES / name
            if path.is_file() and path.read_text(encoding="utf-8") == svg:
                continue
            stale += 1
            if not check:
                path.parent.mkdir(exist_ok=True)
                path.write_text(svg, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: {'stale; run tools/make_pictures.py' if check else 'drawn'}")
    return int(check and bool(stale))


def pictures(folder: Path) -> dict[str, str]:
    """Every picture by its file's name; `folder` takes the rows that the documents show."""
    shown = (
        ("wishes.jsonl", "masking.md"),
        ("chats.jsonl", "data.md"),
        *((f"{name}.jsonl", "chat.md") for name in CHATS),
    )
    for name, page in shown:
        (folder / name).write_text(shown_file(name, ROOT / "docs" / page), encoding="utf-8")
    with chdir(folder):
        return {
            "complaints.svg": row_picture("A shipped complaint", "data.max_rows=2", row=1),
            "alpaca.svg": row_picture("An alpaca row", "data=alpaca", "++data.train=wishes.jsonl"),
            "chat.svg": row_picture("A conversation", "data=chat", "++data.train=chats.jsonl", *CHATML),
            **{f"chat-train-{train}.svg": chat_picture("chosen", train) for train in ("all", "last", "marked")},
            **{f"chat-reasoning-{choice}.svg": thoughts_picture(choice) for choice in ("train", "mask", "drop")},
            "chat-flags.svg": chat_picture("flags", "all"),
            "packed.svg": packed_picture(),
        }


def shown_file(name: str, page: Path) -> str:
    """A file whose content stands in a document, under its name."""
    found = re.search(rf"`{re.escape(name)}`:\n\n```\w+\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"{page.name} shows no {name}")
    return found[1]


def prepared(*words: str) -> tuple[Prepared, Any]:
    """The rows of a job as a run prepares them, and their tokenizer."""
    job = freeze.freeze(compose_job(parse_overrides(words)).tree()).job
    tokenizer = load.load_tokenizer(job.model).tokenizer
    return prepare_data(job.data, tokenizer, job.seed), tokenizer


def tokens(row: dict[str, Any], tokenizer: Any) -> list[Token]:
    """The row token by token."""
    # labels that take turns make a run of each token
    turns = [number if number % 2 else IGNORED for number in range(len(row["input_ids"]))]
    runs = show.mask_runs({"input_ids": row["input_ids"], "labels": turns}, tokenizer)
    trained = (label != IGNORED for label in row["labels"])
    return [Token(show.visible(run.text), is_trained) for run, is_trained in zip(runs, trained, strict=True)]


def row_picture(title: str, *words: str, row: int = 0) -> str:
    """One row, with what it trains."""
    made, tokenizer = prepared(*words)
    found = tokens(made.sources[0].rows[row], tokenizer)
    drawn = flow(found, 8)
    return svg(title, counted(found), drawn.svg, drawn.bottom + 8)


def chat_picture(name: str, train: str) -> str:
    """A conversation of docs/chat.md, under this choice of `data.format.train`."""
    words = ("data=chat", f"++data.train={name}.jsonl", f"++data.format.train={train}", *CHATML)
    return row_picture(f"A conversation, train: {train}", *words)


def thoughts_picture(reasoning: str) -> str:
    """The first answer of a conversation with thoughts, under this choice of `data.format.reasoning`."""
    words = ("data=chat", "++data.train=thoughts.jsonl", f"++data.format.reasoning={reasoning}", *CHATML)
    return row_picture(f"A conversation, reasoning: {reasoning}", *words, "++model.chat_template=trl:qwen3")


def packed_picture() -> str:
    """A packed row: its documents under each other, and which positions see which."""
    made, tokenizer = prepared("++data.max_rows=60", "++training.packing=true")
    packed = packing.pack(made.train, PACK)
    collate = packing.Collator(pad_token_id=tokenizer.pad_token_id)
    row = max(packed, key=lambda one: len(one[packing.DOCUMENTS]))
    batch = collate([row])
    positions = batch["position_ids"][0].tolist()
    starts = [number for number, position in enumerate(positions) if position == 0]
    found = tokens({"input_ids": row["input_ids"], "labels": batch["labels"][0].tolist()}, tokenizer)
    parts, y = [], 8.0
    for number, (start, end) in enumerate(pairwise([*starts, len(positions)]), start=1):
        parts.append(label(0, y + 14, f"document {number}: positions {positions[start]} to {positions[end - 1]}"))
        drawn = flow(found[start:end], y + 22)
        parts.append(drawn.svg)
        y = drawn.bottom + 12
    parts.append(seen([*starts, len(positions)], y + 8))
    about = f"{len(starts)} documents in one row of {len(found)} tokens. {counted(found)} No document sees another."
    return svg("A packed row", about, "\n".join(parts), y + SIDE + 20)


def seen(bounds: Sequence[int], y: float) -> str:
    """The square of positions: each sees itself and those before it in its document."""
    scale = SIDE / bounds[-1]
    triangles = [
        f'<path d="M{a * scale:.1f} {y + a * scale:.1f}V{y + b * scale:.1f}H{b * scale:.1f}z"/>'
        for a, b in pairwise(bounds)
    ]
    return "\n".join(
        [
            f'<rect x="0.5" y="{y:.1f}" width="{SIDE}" height="{SIDE}"/>',
            *triangles,
            label(SIDE + 14, y + 20, "down: a position; across: what it sees"),
            label(SIDE + 14, y + 40, "filled: itself and what is before it in its document"),
        ]
    )


def flow(found: Sequence[Token], y: float) -> Drawn:
    """Tokens in lines, broken where a token breaks the line, and at the edge."""
    x, parts = 1.0, []
    for token in found:
        text = token.text.replace("\n", "")
        width = round(len(text) * CHARACTER + 6, 1)
        if x + width > WIDTH - 1 and x > 1:
            x, y = 1.0, y + LINE
        parts.append(box(text, x, y, width, trained=token.trained))
        x += width + GAP
        if token.text.endswith("\n"):
            x, y = 1.0, y + LINE
    return Drawn("\n".join(parts), y + (LINE if x > 1 else 0))


def box(text: str, x: float, y: float, width: float, *, trained: bool) -> str:
    """One token; the text has its width in every font."""
    inner = round(width - 6, 1)
    mark = ' class="t"' if trained else ""
    return (
        f'<g{mark}><rect x="{x:.1f}" y="{y:.1f}" width="{width}" height="22" rx="3"/>'
        f'<text x="{x + 3:.1f}" y="{y + 16:.1f}" textLength="{inner}" lengthAdjust="spacingAndGlyphs">'
        f"{escape(text)}</text></g>"
    )


def label(x: float, y: float, text: str) -> str:
    return f'<text class="quiet" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def counted(found: Sequence[Token]) -> str:
    """The sum, and the trained text for who cannot see it."""
    trained = "".join(token.text for token in found if token.trained)
    return f"{len(found)} tokens, {sum(token.trained for token in found)} trained: {trained}."


def svg(title: str, about: str, drawn: str, height: float) -> str:
    """The file. It loads nothing, and follows the reader's colour scheme."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" role="img" '
        f'aria-labelledby="title about">\n<title id="title">{escape(title)}</title>\n'
        f'<desc id="about">{escape(" ".join(about.split()))}</desc>\n<style>{STYLE}</style>\n{drawn}\n</svg>\n'
    )


if __name__ == "__main__":
    sys.exit(main())
