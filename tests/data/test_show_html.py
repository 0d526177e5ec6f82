# SPDX-License-Identifier: Apache-2.0
"""The page shows what the terminal shows, takes every row as text, and needs nothing but itself."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fmstune.config.job import Data
from fmstune.data import show
from fmstune.data.dataset import Prepared, prepare_data
from fmstune.data.show import rows_page, write_rows_page
from fmstune.data.tokens import Segment
from tests.conftest import Result
from tests.fixtures import browser
from tests.tokenizers_for_tests import gpt2_style

HOSTILE = [
    "<script>alert(1)</script> & \"quoted\" 'text' &lt;\n### Label: </style><b>",
    "</pre></mark>\n### Label: <img src=x onerror=alert(1)>",
    "\x1b[2J\u202ereversed\t\n### Label: ]]>--><!--",
]


class Page(HTMLParser):
    """What a browser makes of the page: the elements, and the text in those that hold rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.runs: list[tuple[str, str]] = []
        self.cells: list[str] = []
        self.inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.inside.append(tag)
        if tag in ("mark", "span"):
            self.runs.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag

    def handle_data(self, text: str) -> None:
        if self.inside and self.inside[-1] in ("mark", "span"):
            tag, before = self.runs.pop()
            self.runs.append((tag, before + text))
        elif self.inside and self.inside[-1] in ("th", "td"):
            self.cells.append(text)


@pytest.fixture
def prepared() -> Prepared:
    Path("rows.jsonl").write_text("".join(json.dumps({"output": text}) + "\n" for text in HOSTILE))
    named = {"_target_": "fmstune.data.formats.text", "text_field": "output", "response_template": "\n### Label:"}
    return prepare_data(Data(format=named, train="rows.jsonl", eval_fraction=0.3), gpt2_style(), 42)


@pytest.fixture
def page(prepared: Prepared) -> Page:
    write_rows_page(prepared, gpt2_style(), Path("seen.html"), title="<i>", rows=3)
    assert sorted(path.name for path in Path().glob("seen*")) == ["seen.html"]
    return Page(Path("seen.html").read_text(encoding="utf-8"))


def test_every_row_is_text_whatever_it_holds(page: Page, prepared: Prepared) -> None:
    rows = [run for row in show.first_rows(prepared, gpt2_style(), 3) for run in row.runs]
    assert len(rows) == 4
    expected = [("mark" if run.trained else "span", run.text) for run in rows]
    assert page.runs == [("mark", "trained"), ("span", "·masked"), *expected]
    assert page.inside == []
    own = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "article", "section", "pre"}
    assert set(page.tags) <= own | {"mark", "span", "table", "tr", "th", "td", "div"}


def test_hostile_rows_were_among_them(page: Page) -> None:
    """The fixture holds out one row; the rest is what the escaping is tested on."""
    text = "".join(text for _, text in page.runs)
    assert sum(part in text for part in ("<script>alert(1)</script> & \"quoted\" 'text' &lt;", "</mark>", "␛[2J")) == 2


@pytest.mark.parametrize("text", [*HOSTILE, "\ud800", "<!-- ", "&amp;"])
def test_a_title_a_row_and_a_ledger_cannot_leave_their_element(text: str, tmp_path: Path) -> None:
    runs = [Segment(text, trained=True), Segment(text, trained=False)]
    split = show.SplitSums(text, [f"stop    {text}"], {})
    made = rows_page(text, [show.ShownRow(text, runs)], [split])
    assert Page(made).runs[2:] == [("mark", text), ("span", text)]
    assert f"stop{text}" == "".join(Page(made).cells)
    with show.written_aside(tmp_path / "page") as file:
        file.write(made)


def test_the_page_asks_for_nothing_outside(page: Page) -> None:
    assert {"script", "link", "img", "iframe", "object", "base", "form", "a"}.isdisjoint(page.tags)
    assert {name for name, _ in page.attributes} <= {"lang", "charset", "name", "content", "http-equiv", "class"} | {
        "scope",
        "style",
    }
    text = Path("seen.html").read_text(encoding="utf-8")
    style = text[text.index("<style>") : text.index("</style>")]
    assert not re.search(r"url\(|@import|https?:", style)
    assert "default-src 'none'" in text


def test_the_sums_are_those_of_the_terminal(page: Page, prepared: Prepared) -> None:
    for split in show.split_sums(prepared, gpt2_style()):
        for line in split.lines:
            assert re.split(r"\s+", line, maxsplit=1)[1] in page.cells
        for bar in show.bins(split.lengths):
            assert f"{bar.first:,} to {bar.last:,} tokens" in page.cells


def test_bars_are_as_long_as_their_share() -> None:
    made = rows_page("x", [], [show.SplitSums("x", [], {5: 1, 15: 4})])
    widths = [float(width) for width in re.findall(r'<div style="width: ([\d.]+)%">', made)]
    assert widths == [25, 0, 0, 0, 0, 100]


def test_trained_text_is_marked_by_more_than_its_colour(page: Page) -> None:
    text = Path("seen.html").read_text(encoding="utf-8")
    mark = re.findall(r"^mark.*$", text, re.MULTILINE)
    assert "text-decoration: underline" in mark[0] and 'content: "⟦"' in mark[1]


def test_a_page_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "page").write_text("old")
    with pytest.raises(TypeError, match="must be str"), show.written_aside(tmp_path / "page") as file:
        file.writelines(["new", None])
    assert (tmp_path / "page").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_a_batch_is_a_tree_of_texts_that_cannot_leave_their_element() -> None:
    runs = [Segment(HOSTILE[0], trained=True), Segment(HOSTILE[1], trained=False)]
    depths = [0, 1, 40]
    nodes = [show.ShownNode(depth, f"{HOSTILE[2]} {depth}", runs) for depth in depths]
    made = rows_page("x", [], [], show.ShownTree(HOSTILE[1], nodes))
    page = Page(made)
    assert page.runs[2:] == [("mark", HOSTILE[0]), ("span", HOSTILE[1])] * 3
    assert page.inside == []
    assert {"script", "img", "b"}.isdisjoint(page.tags)
    assert [value for name, value in page.attributes if value and "--depth" in value] == [
        "--depth: 0",
        "--depth: 1",
        "--depth: 12",
    ]
    assert "One batch as a tree" not in rows_page("x", [], [])


@pytest.mark.slow
def test_a_batch_that_shares_is_drawn_in_a_browser(fmstune: Callable[..., Result], tmp_path: Path) -> None:
    asked = "You are a clerk of the post and answer in one word."
    texts = [f"{asked} {'late ' * (n % 3)}\n### Label: {n}" for n in range(6)]
    Path("own.jsonl").write_text("".join(json.dumps({"output": text}) + "\n" for text in texts))
    words = ("data=text", "data.train=own.jsonl", 'data.response_template="\n### Label:"', "data.prefix_sharing=true")
    words += ("training.per_device_train_batch_size=4",)
    done = fmstune("show-data", "--html", "tree.html", "--rows", "1", *words)
    assert done.code == 0, done.err
    assert "One batch as a tree: 4 rows of " in done.out
    page = Page(Path("tree.html").read_text(encoding="utf-8"))
    assert page.tags.count("section") == 2
    if browser.PROGRAM is None:
        pytest.skip("there is no Chromium here")
    with browser.browser() as one:
        one.open(Path("tree.html"))
        nodes = "[...document.querySelectorAll('.tree article')]"
        left: list[float] = one.value(f"{nodes}.map((node) => node.getBoundingClientRect().left)")
        # the root first, and its branches below it, further to the right
        assert left[0] == min(left) < left[1]
        assert one.value(f"{nodes}[0].querySelector('h3').textContent").startswith("4 rows (")
        assert one.value(f"{nodes}.every((node) => getComputedStyle(node).borderLeftWidth === '3px')")
        for width in (1200, 390):
            one.width(width)
            assert one.value("document.documentElement.scrollWidth") <= width
        one.picture(tmp_path / "tree.png")
        assert one.complaints() == []
        assert one.requests() == [Path("tree.html").resolve().as_uri()]


@pytest.mark.slow
def test_page_and_json_are_written_beside_the_view(fmstune: Callable[..., Result]) -> None:
    done = fmstune("show-data", "--rows", "2", "--html", "seen.html", "--json", "seen.json", "data.max_rows=8")
    assert done.code == 0, done.err
    assert done.out.endswith("\n\nwrote seen.json\nwrote seen.html\n")
    assert len(json.loads(Path("seen.json").read_text())) == 8
    page = Page(Path("seen.html").read_text(encoding="utf-8"))
    assert page.tags.count("article") == 2
    assert "<title>Rows of fmstune</title>" in Path("seen.html").read_text()
