"""The content of a report without its looks: sections of texts, commands, tables, charts and examples."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from fmstune.runs.report.cells import MISSING, Cell, number_cell


class Table(NamedTuple):
    """Rows of cells under their heads; a reader may sort it on the page."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    sortable: bool = False
    best_first: bool = False
    """Highlight the first row."""

    def is_numeric(self, column: int) -> bool:
        """Whether the column holds numbers alone; missing ones do not matter."""
        cells = [row[column] for row in self.rows]
        words = [cell for cell in cells if cell.value is None]
        return len(words) < len(cells) and all(cell.text in (MISSING, "") for cell in words)


class Text(NamedTuple):
    """A paragraph."""

    text: str
    strong: bool = False


class Command(NamedTuple):
    """A command line for a shell."""

    text: str


class Charts(NamedTuple):
    """Charts next to each other, as SVG; Markdown shows the `files` of the run folder in their place."""

    pictures: Sequence[str]
    files: Sequence[str] = ()


class Example(NamedTuple):
    """A prompt with its expected answer and the answers of models, each under its name."""

    title: str
    parts: Sequence[tuple[str, str]]


class More(NamedTuple):
    """Details that stay closed on the page until a reader opens them."""

    title: str
    blocks: Sequence["Block"]


Block = Table | Text | Command | Charts | Example | More


class Document(NamedTuple):
    """A report."""

    title: str
    status: str
    """A word or two, shown next to the title."""
    place: str
    """The folder of the report."""
    sections: Mapping[str, Sequence[Block]]
    """Blocks by the title above them."""

    @classmethod
    def of(cls, title: str, status: str, place: str, sections: Mapping[str, Iterable[Block]]) -> "Document":
        """Build a document without the tables that have no rows and without the sections that have no blocks."""
        kept = {name: [b for b in blocks if not isinstance(b, Table) or b.rows] for name, blocks in sections.items()}
        return cls(title, status, place, {name: blocks for name, blocks in kept.items() if blocks})


def make_table(
    head: Sequence[str], rows: Iterable[Iterable[object]], *, sortable: bool = False, best_first: bool = False
) -> Table:
    """Build a table of cells, texts and numbers."""
    return Table(head, [[_cell(value) for value in row] for row in rows], sortable, best_first)


def _cell(value: object) -> Cell:
    if isinstance(value, Cell):
        return value
    return number_cell(value) if value is None or isinstance(value, int | float) else Cell(str(value))
