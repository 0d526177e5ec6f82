"""The rows and sums of `show-data` as one page that needs nothing else: no script, no font, no request."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader

from fmstune.data.dataset import Prepared
from fmstune.data.show import LEGEND, WHITE_SPACE, ShownRow, SplitSums, bins, first_rows, split_sums, written_aside

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def write_rows_page(
    prepared: Prepared, tokenizer: "PreTrainedTokenizerBase", path: Path, *, title: str, rows: int
) -> None:
    """Write the page with the first rows; the file appears when it is complete."""
    text = rows_page(title, list(first_rows(prepared, tokenizer, rows)), list(split_sums(prepared, tokenizer)))
    with written_aside(path) as file:
        file.write(text)


def rows_page(title: str, rows: Sequence[ShownRow], sums: Sequence[SplitSums]) -> str:
    """The whole page; the text of rows and names is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("show.html.jinja")
    return page.render(title=title, legend=LEGEND, white_space=WHITE_SPACE, rows=rows, sums=sums, bins=bins)
