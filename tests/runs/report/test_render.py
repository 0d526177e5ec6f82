"""A document as a page, as Markdown and for a terminal: nothing leaves its place, whatever it holds."""

import re
from html.parser import HTMLParser

import pytest

from fmstune.runs.report import render
from fmstune.runs.report.cells import Cell, number_cell, setting_cell
from fmstune.runs.report.document import Command, Document, Example, More, Table, Text, make_table

HOSTILE = ["</td></pre></dd><script>alert(1)</script>", "a|b`c*d_e", "```\n# head", "&amp; <!-- \"'", "\ud800"]


def document(text: str) -> Document:
    table = make_table((text, "n"), [[text, 2.0], ["", None]], sortable=True, best_first=True)
    blocks = (Text(text, strong=True), Command(text), table, Example(text, [(text, text)]), More(text, [Text(text)]))
    return Document(text, text, text, {text: blocks})


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "wbr":
            return
        self.seen.append(tag)
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_leaves_its_element(text: str) -> None:
    tags = Tags(render.render_html(document(text)))
    assert tags.open == []
    assert tags.seen == Tags(render.render_html(document("plain"))).seen


def test_the_page_may_load_nothing_and_run_its_own_script_alone() -> None:
    page = render.render_html(document("x"))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")
    assert not re.search(r"(?:src|href)=(?![\"']?data:)|url\((?!#)|@import|https?:", page)


@pytest.mark.parametrize("text", HOSTILE[:4])
def test_markdown_keeps_its_tables_and_fences(text: str) -> None:
    written = render.render_markdown(document(text))
    rows = [line for line in written.splitlines() if line.startswith("| ")]
    assert len(rows) == 4
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}
    fences = re.findall(r"^(`{3,})(?:text)?$", written, re.MULTILINE)
    assert fences.count(max(fences, key=len)) % 2 == 0


def test_columns_of_numbers_stand_right_and_are_aligned_for_a_terminal() -> None:
    table = Table(("name", "value"), [[Cell("a"), number_cell(1234567)], [Cell("bc"), number_cell(None)]])
    shown = render.render_text(Document("t", "s", "p", {"S": [table]}))
    assert shown.splitlines()[-4:] == ["name      value", "───────────────", "a     1,234,567", "bc            –"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (3, "3"), (1234567, "1,234,567"), (0.000123456, "0.0001235"), (2.0, "2")],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number_cell(value).text == text


def test_a_word_that_is_a_number_is_sorted_as_one() -> None:
    assert setting_cell(3) == Cell("3", 3.0)
    assert setting_cell("x") == Cell("x")


def test_a_long_name_is_broken_between_its_words_and_a_number_never() -> None:
    table = Table(("tuned.exact_match",), [[Cell("0-learning_rate=0.001,a&b_c")], [Cell("x")]])
    page = render.render_html(Document("t", "s", "p", {"S": [table]}))
    assert "tuned.<wbr>exact_<wbr>match</th>" in page
    assert "<td>0-learning_<wbr>rate=<wbr>0.001,a&amp;b_<wbr>c</td>" in page


def test_a_table_without_rows_and_a_section_without_blocks_are_left_out() -> None:
    sections = {"Empty": [make_table(("a",), [])], "Full": [make_table(("a",), []), Text("x")]}
    assert Document.of("t", "s", "p", sections).sections == {"Full": [Text("x")]}
