"""Render a document as an HTML page, as Markdown, and as text for a terminal."""

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup, escape

from fmstune import tables
from fmstune.files import render_template
from fmstune.runs.report.document import Block, Charts, Command, Document, Example, More, Table, Text


def render_html(document: Document) -> str:
    """Return one page with its charts, styles and script, which may load nothing."""
    folder = Path(__file__).parent
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return render_template(
        folder / "report.html.jinja",
        **document._asdict(),
        kind=lambda block: type(block).__name__,
        breakable=_breakable,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _breakable(text: str) -> Markup:
    """Escape the text and let a browser break a long name between its words."""
    return Markup(re.sub(r"(?<=[_=/])(?=\w)|(?<=\.)(?=[A-Za-z])", "<wbr>", str(escape(text))))


def render_markdown(document: Document) -> str:
    """Return the document as Markdown; charts are files of the run folder."""
    parts = [f"# {_line(document.title)}", f"{document.status}: `{document.place}`"]
    for title, blocks in document.sections.items():
        parts += [f"## {_line(title)}", *(text for block in blocks for text in _as_markdown(block))]
    return "\n\n".join(part for part in parts if part) + "\n"


def render_text(document: Document) -> str:
    """Return the document for a terminal, without charts and without what is closed on the page."""
    parts = [f"{document.title}\n{document.place}"]
    for title, blocks in document.sections.items():
        lines = [line for block in blocks for line in _as_text(block)]
        parts += ["\n".join([title, "─" * len(title), *lines])] if lines else []
    return "\n\n".join(parts)


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
    numbers = [table.is_numeric(index) for index in range(len(table.head))]
    yield "| " + " | ".join(map(_line, table.head)) + " |"
    yield "| " + " | ".join("---:" if number else "---" for number in numbers) + " |"
    for row in table.rows:
        yield "| " + " | ".join(_line(cell.text) for cell in row) + " |"


def _as_text(block: Block) -> Iterator[str]:
    match block:
        case Text(text) | Command(text):
            yield text
        case Table():
            words = [index for index in range(len(block.head)) if not block.is_numeric(index)]
            yield from tables.lines(block.head, [[cell.text for cell in row] for row in block.rows], left=words)


def _line(text: str) -> str:
    """Escape what Markdown would take for markup, and join the lines."""
    return re.sub(r"([\\`*\[\]<>|]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def _fenced(text: str) -> str:
    """Return a fenced block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}text\n{text}\n{fence}"
