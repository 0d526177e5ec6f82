"""A report as one page that needs nothing else, and as Markdown."""

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator
from html import escape

from fmstune import tables
from fmstune.runs.report.document import Block, Cell, Charts, Command, Document, Example, More, Section, Table, Text

_STYLE = """
:root { color-scheme: light; --text: #1b1b1b; --quiet: #5c5c5c; --line: #d8d8d8; --soft: #f5f6f8; --best: #e3f1ea; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1rem 3rem; max-width: 70rem; background: #fff; color: var(--text);
       font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
header { border-bottom: 2px solid var(--text); margin-bottom: 1rem; }
h1 { font-size: 1.5rem; margin: .4rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: .95rem; margin: 0 0 .3rem; }
p { margin: .4rem 0; max-width: 48rem; } .quiet { color: var(--quiet); overflow-wrap: anywhere; }
.strong { font-size: 1.2rem; font-weight: 600; }
.status { font-size: .8rem; font-weight: 600; border: 1px solid; border-radius: 1rem; padding: .1rem .6rem;
          vertical-align: middle; white-space: nowrap; }
.finished { color: #00604a; } .failed { color: #a33c00; } .interrupted, .running, .queued, .begun { color: #0a5683; }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; vertical-align: bottom; }
td { overflow-wrap: anywhere; min-width: 6.5rem; }
.number { text-align: right; white-space: nowrap; overflow-wrap: normal; }
td.number { min-width: 0; } .sortable td:not(.number) { min-width: 8rem; }
th button { all: unset; cursor: pointer; text-decoration: underline dotted; text-underline-offset: .2rem; }
th button:focus-visible { outline: 2px solid #0072B2; }
th button { position: relative; } th button::after { position: absolute; left: 100%; font-size: .7rem; }
th[aria-sort=ascending] button::after { content: "▲"; } th[aria-sort=descending] button::after { content: "▼"; }
tr.best td { background: var(--best); font-weight: 600; }
pre { margin: .3rem 0 .6rem; padding: .6rem .8rem; background: var(--soft); border-radius: .3rem; font-size: .85rem;
      white-space: pre-wrap; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.charts svg { width: 100%; max-width: 40rem; height: auto; }
article { border: 1px solid var(--line); border-radius: .3rem; padding: .7rem .9rem; margin: .6rem 0; }
article dt { color: var(--quiet); font-size: .85rem; padding-top: .1rem; }
article dl { margin: 0; display: grid; grid-template-columns: 5rem 1fr; }
article dd { margin: 0 0 .4rem; max-height: 14rem; overflow: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; unicode-bidi: isolate; }
summary { cursor: pointer; }
@media (max-width: 40rem) { table { font-size: .85rem; } th, td { padding-right: .6rem; } .charts { margin: 0 -.8rem; }
  td, .sortable td:not(.number) { min-width: 3.5rem; }
  td:first-child:not(.number), .sortable td:first-child:not(.number) { min-width: 9rem; } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } .charts { grid-template-columns: 1fr 1fr; }
  article, svg, tr { break-inside: avoid; } .wide { overflow: visible; } tr.best td { font-weight: 700; }
  table { font-size: 8pt; } th, td { padding-right: .5rem; } th { white-space: normal; overflow-wrap: normal; }
  td, .sortable td:not(.number) { min-width: 0; } }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("thead th")], body = table.tBodies[0];
  const value = (row, i) => row.cells[i].dataset.value ?? row.cells[i].textContent;
  heads.forEach((head, i) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending", missing = (text) => text === "–" || text === "";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const compared = (a, b) => {
      const [x, y] = [value(a, i), value(b, i)];
      if (missing(x) || missing(y)) return missing(x) - missing(y);  // last in either direction
      const numbers = !isNaN(x) && !isNaN(y), order = numbers ? x - y : x.localeCompare(y, "en", {numeric: true});
      return down ? -order : order;
    };
    body.append(...[...body.rows].sort(compared));
  }));
}
"""


def render_html(document: Document) -> str:
    """The whole page; all text that is not ours is escaped, and it may load nothing."""
    script = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script}'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        # else a browser would ask the page's server for one
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(document.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(document.title)} <span class="
        f'"status {escape(document.status)}">{escape(document.status)}</span></h1>'
        f'<p class="quiet">{escape(document.place)}</p></header>\n'
        + "\n".join(map(_section, document.sections))
        + f"\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def render_markdown(document: Document) -> str:
    """The same as Markdown; pictures are those that lie in the folder."""
    parts = [f"# {_line(document.title)}", f"{document.status}: `{document.place}`"]
    for section in document.sections:
        parts += [f"## {_line(section.title)}", *(text for block in section.blocks for text in _as_markdown(block))]
    return "\n\n".join(part for part in parts if part) + "\n"


def render_text(document: Document) -> str:
    """The same for a terminal: no pictures, and what is closed on the page stays closed."""
    parts = [f"{document.title}\n{document.place}"]
    for section in document.sections:
        blocks = [text for block in section.blocks if not isinstance(block, More) for text in _as_text(block)]
        parts += [f"{section.title}\n{'─' * len(section.title)}\n" + "\n".join(blocks)] if blocks else []
    return "\n\n".join(parts)


def _section(section: Section) -> str:
    return f"<section><h2>{escape(section.title)}</h2>\n" + _blocks(section.blocks) + "\n</section>"


def _blocks(blocks: Iterable[Block]) -> str:
    return "\n".join(map(_block, blocks))


def _block(block: Block) -> str:
    match block:
        case Text(text, strong):
            return f"<p{_class('strong' if strong else '')}>{escape(text)}</p>"
        case Command(text):
            return f"<pre>{escape(text)}</pre>"
        case Charts(pictures):
            return f'<div class="charts">{"".join(pictures)}</div>'
        case Example(title, parts):
            inside = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text) or '–'}</dd>" for name, text in parts)
            return f"<article><h3>{escape(title)}</h3><dl>{inside}</dl></article>"
        case More(title, blocks):
            return f"<details><summary>{escape(title)}</summary>\n{_blocks(blocks)}</details>"
        case Table():
            return _table(block)


def _table(table: Table) -> str:
    heads = []
    for index, name in enumerate(table.head):
        number = _is_number(table, index)
        text = _breakable(name)
        inside = f'<button type="button">{text}</button>' if table.sortable else text
        heads.append(f'<th scope="col"{_class("number" if number else "")}>{inside}</th>')
    rows = []
    for place, row in enumerate(table.rows):
        cells = "".join(_cell(cell, number=_is_number(table, index)) for index, cell in enumerate(row))
        rows.append(f"<tr{_class('best' if table.first and place == 0 else '')}>{cells}</tr>")
    kind = _class("sortable" if table.sortable else "")
    return (
        f'<div class="wide"><table{kind}><thead><tr>{"".join(heads)}</tr></thead>\n'
        "<tbody>" + "\n".join(rows) + "</tbody></table></div>"
    )


def _is_number(table: Table, index: int) -> bool:
    """A column of numbers alone, missing ones aside."""
    cells = [row[index] for row in table.rows]
    return any(cell.value is not None for cell in cells) and all(
        cell.value is not None or cell.text in ("–", "") for cell in cells
    )


def _cell(cell: Cell, *, number: bool) -> str:
    value = f' data-value="{cell.value!r}"' if cell.value is not None else ""
    text = escape(cell.text) if number else _breakable(cell.text)
    return f"<td{_class('number' if number else '')}{value}>{text}</td>"


def _breakable(text: str) -> str:
    """The text, in which a long name is broken between its words where it has to be."""
    return re.sub(r"(?<=[_=/])(?=\w)|(?<=\.)(?=[A-Za-z])", "<wbr>", escape(text))


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _as_markdown(block: Block) -> Iterator[str]:
    match block:
        case Text(text, strong):
            yield f"**{_line(text)}**" if strong else _line(text)
        case Command(text):
            yield _fenced(text)
        case Charts(_, files):
            yield from (f"![{name}]({name})" for name in files)
        case Example(title, parts):
            yield f"### {_line(title)}"
            for name, text in parts:
                yield f"{_line(name)}:"
                yield _fenced(text)
        case More(title, blocks):
            yield f"### {_line(title)}"
            for inner in blocks:
                yield from _as_markdown(inner)
        case Table():
            yield "\n".join(_markdown_rows(block))


def _markdown_rows(table: Table) -> Iterator[str]:
    numbers = [_is_number(table, index) for index in range(len(table.head))]
    yield "| " + " | ".join(map(_line, table.head)) + " |"
    yield "| " + " | ".join("---:" if number else "---" for number in numbers) + " |"
    for row in table.rows:
        yield "| " + " | ".join(_line(cell.text) for cell in row) + " |"


def _as_text(block: Block) -> Iterator[str]:
    match block:
        case Text(text) | Command(text):
            yield text
        case Table():
            words = [index for index in range(len(block.head)) if not _is_number(block, index)]
            yield from tables.lines(block.head, [[cell.text for cell in row] for row in block.rows], left=words)


def _line(text: str) -> str:
    """A text within a line of Markdown: what would be markup there is text."""
    return re.sub(r"([\\`*\[\]<>|]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def _fenced(text: str) -> str:
    """A block that no row of the text can end."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}text\n{text}\n{fence}"
