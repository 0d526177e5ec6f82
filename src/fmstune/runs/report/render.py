"""Render a document as an HTML page, as Markdown, and as text for a terminal."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from fmstune import tables
from fmstune.files import render_template
from fmstune.runs.report.document import Command, Document, Table, Text

FOLDER = Path(__file__).parent


def render_html(document: Document) -> str:
    """Return one page with its charts, styles and script, which may load nothing."""
    style, script = (Markup((FOLDER / name).read_text(encoding="utf-8")) for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    def breakable(text: str) -> Markup:
        """Escape the text and let a browser break a long name between its words."""
        return Markup(re.sub(r"(?<=[_=/])(?=\w)|(?<=\.)(?=[A-Za-z])", "<wbr>", str(escape(text))))

    return _fill("report.html.jinja", document, breakable=breakable, style=style, script=script, script_hash=digest)


def render_markdown(document: Document) -> str:
    """Return the document as Markdown; charts are files of the run folder."""
    return _fill("report.md.jinja", document, line=_line, fenced=_fenced)


def _fill(name: str, document: Document, **values: Any) -> str:
    return render_template(FOLDER / name, **document._asdict(), kind=lambda block: type(block).__name__, **values)


def render_text(document: Document) -> str:
    """Return the document for a terminal, without charts and without what is closed on the page."""
    parts = [f"{document.title}\n{document.place}"]
    for title, blocks in document.sections.items():
        lines: list[str] = []
        for block in blocks:
            if isinstance(block, Table):
                words = [index for index in range(len(block.head)) if not block.is_numeric(index)]
                lines += tables.lines(block.head, [[cell.text for cell in row] for row in block.rows], left=words)
            elif isinstance(block, Text | Command):
                lines.append(block.text)
        parts += ["\n".join([title, "─" * len(title), *lines])] if lines else []
    return "\n\n".join(parts)


def _line(text: str) -> str:
    """Escape what Markdown would take for markup, and join the lines."""
    return re.sub(r"([\\`*\[\]<>|]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def _fenced(text: str) -> str:
    """Return a fenced block whose fence is longer than any in the text."""
    fence = "`" * (max((len(run) for run in re.findall(r"`{3,}", text)), default=2) + 1)
    return f"{fence}text\n{text}\n{fence}"
