"""The rows and sums of `show-data` as one page that needs nothing else: no script, no font, no request."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from fmstune.data.dataset import Prepared
from fmstune.data.show import LEGEND, WHITE_SPACE, Row, Run, Split, bins, first_rows, splits, written_aside

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --quiet: #5c5c5c; --ground: #fff; --line: #cfcfcf;
        --trained: #08306b; --trained-ground: #d6e6fa; --bar: #2b6cb0; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8e8; --quiet: #a8a8a8; --ground: #161616; --line: #444;
          --trained: #d6e8ff; --trained-ground: #173a66; --bar: #7db3ea; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; background: var(--ground); color: var(--text);
       font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; } h3 { font-size: 1rem; margin-bottom: .3rem; }
pre, .legend { font-family: ui-monospace, monospace; font-size: .9rem; }
pre { margin: 0; padding: .6rem .8rem; border: 1px solid var(--line); border-radius: .3rem;
      white-space: pre-wrap; overflow-wrap: anywhere; }
/* a text that turns the direction of writing turns no more than itself */
span, mark { unicode-bidi: isolate; }
span { color: var(--quiet); }
/* brackets, weight and a line: trained text is seen without colour, and in print */
mark { color: var(--trained); background: var(--trained-ground); font-weight: 700; text-decoration: underline; }
mark::before { content: "⟦"; } mark::after { content: "⟧"; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .1rem .8rem .1rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; width: 1%; white-space: nowrap; }
td.number { width: 1%; padding-right: 0; text-align: right; }
div { height: 1rem; margin-top: .25rem; background: var(--bar); border-right: 1px solid var(--text);
      print-color-adjust: exact; -webkit-print-color-adjust: exact; }
@media print { body { max-width: none; padding: 0; } article, table { break-inside: avoid; } }
"""


def write(prepared: Prepared, tokenizer: "PreTrainedTokenizerBase", path: Path, *, title: str, rows: int) -> None:
    """Write the page with the first rows; the file appears when it is complete."""
    text = page(title, list(first_rows(prepared, tokenizer, rows)), list(splits(prepared, tokenizer)))
    with written_aside(path) as file:
        file.write(text)


def page(title: str, rows: Sequence[Row], sums: Sequence[Split]) -> str:
    """The whole page; all text that is not ours is escaped."""
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="legend">{_runs(LEGEND)}; {WHITE_SPACE}</p>',
        *(f"<article><h3>{escape(row.title)}</h3><pre>{_runs(row.runs)}</pre></article>" for row in rows),
        *map(_split, sums),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # a text that would load something cannot, should a reader's tool unescape it
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _runs(runs: Iterable[Run]) -> str:
    tags = {True: "mark", False: "span"}
    return "".join(f"<{tags[run.trained]}>{escape(run.text)}</{tags[run.trained]}>" for run in runs)


def _split(split: Split) -> str:
    return "\n".join(
        [
            f"<section><h2>{escape(split.title)}</h2>",
            f"<table>{''.join(map(_sum, split.lines))}</table>",
            f"<table>{_bars(split)}</table></section>",
        ]
    )


def _sum(line: str) -> str:
    """A line of the terminal's ledger: its name, where it has one, and what it says."""
    name, text = re.split(r"\s+", line, maxsplit=1)
    return f'<tr><th scope="row">{escape(name)}</th><td>{escape(text)}</td></tr>'


def _bars(split: Split) -> str:
    found = bins(split.lengths)
    most = max((bar.rows for bar in found), default=0)
    return "".join(
        f'<tr><th scope="row">{bar.first:,} to {bar.last:,} tokens</th>'
        f'<td><div style="width: {bar.rows / most:.1%}"></div></td><td class="number">{bar.rows:,}</td></tr>'
        for bar in found
    )
