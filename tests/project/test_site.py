# SPDX-License-Identifier: Apache-2.0
"""The documents as a site: built without a network, whole, and loading nothing from elsewhere."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.conftest import MadeOnce
from tests.end_to_end.test_assets import tool
from tests.project.test_docs import DOCUMENTS, ROOT

LOADS = {"src", "srcset", "data", "poster", "background"}
"""Attributes that a browser follows by itself; `href` is one of them on `link` alone."""
NOWHERE = "http://127.0.0.1:9"
FENCED = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)


class Links(HTMLParser):
    """What a page loads, what it leads to, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.leads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name in LOADS or (name == "href" and tag == "link"):
                self.loads.append(value)
            elif name == "href":
                self.leads.append(value)
            elif name in ("id", "name"):
                self.anchors.add(value)


@pytest.fixture(scope="module")
def site(made_once: MadeOnce) -> Path:
    def build(place: Path) -> None:
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place / "site")]
        env = {**os.environ, "http_proxy": NOWHERE, "https_proxy": NOWHERE, "NO_MKDOCS_2_WARNING": "1"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr

    return made_once("site", build) / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Links]:
    return {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


@pytest.mark.slow
def test_every_document_is_a_page(site: Path, pages: dict[Path, Links]) -> None:
    hook = tool("site_hook")
    names = [Path(hook.source_name(path, ROOT)) for path in DOCUMENTS]
    built = [name.with_name("index.html") if name.stem == "README" else name.with_suffix(".html") for name in names]
    assert len(built) > 40
    assert [name for name in built if site / name not in pages] == []


@pytest.mark.slow
def test_no_page_loads_anything_from_elsewhere(pages: dict[Path, Links]) -> None:
    assert sum(len(page.loads) for page in pages.values()) > len(pages)
    outside = {load for page in pages.values() for load in page.loads if is_outside(load)}
    assert outside == set()


@pytest.mark.slow
def test_no_stylesheet_loads_anything_from_elsewhere(site: Path, pages: dict[Path, Links]) -> None:
    inside = [path.read_text(encoding="utf-8") for path in (*site.rglob("*.css"), *pages, *site.rglob("*.svg"))]
    loads = [load for text in inside for load in re.findall(r"url\(\s*[\"']?([^)\"']+)|@import\s*[\"']([^\"']+)", text)]
    assert loads
    # names that mean no place: namespaces of drawings in data URLs
    assert [load for pair in loads for load in pair if is_outside(load)] == []


@pytest.mark.slow
def test_no_page_asks_for_what_the_theme_would_fetch(pages: dict[Path, Links]) -> None:
    """Material's script fetches a drawing program for diagrams in Mermaid, and figures of a repository on GitHub."""
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'class="[^"]*\bmermaid\b|data-md-component="source"', text), path.name


def is_outside(place: str) -> bool:
    return urlsplit(place).netloc != "" or urlsplit(place).scheme not in ("", "data")


@pytest.mark.slow
def test_every_link_within_the_site_leads_to_a_file_and_an_anchor_of_it(site: Path, pages: dict[Path, Links]) -> None:
    count = 0
    for path, page in pages.items():
        # it is shown for any address, so its links begin at the site's root
        if path.name == "404.html":
            continue
        for link in [*page.leads, *page.loads]:
            parts = urlsplit(link)
            if is_outside(link) or parts.scheme == "data":
                continue
            count += 1
            place = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = place / "index.html" if place.is_dir() else place
            assert place.is_file(), f"{path.relative_to(site)}: {link}"
            if parts.fragment and place in pages:
                assert unquote(parts.fragment) in pages[place].anchors | {"__skip"}, f"{path.name}: {link}"
    assert count > 1000


@pytest.mark.slow
def test_the_search_finds_a_field_a_choice_and_a_message(site: Path) -> None:
    entries = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]

    def found(word: str) -> set[str]:
        return {entry["location"].partition("#")[0] for entry in entries if word in entry["text"]}

    assert "groups/training.html" in found("training.neftune_noise_alpha")
    assert "groups/peft.html" in found("peft=rslora")
    assert "troubleshooting.html" in found("out of memory on a batch")
    assert "index.html" in found("make demo")


@pytest.mark.slow
def test_the_search_shows_messages_before_what_only_mentions_them(site: Path) -> None:
    entries = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    boosts = {entry["location"].partition("#")[0]: entry.get("boost", 1) for entry in entries}
    assert boosts["troubleshooting.html"] > boosts["data.html"] > boosts["CHANGELOG.html"]
    assert boosts["decisions/0015-slurm.html"] < 1


@pytest.mark.slow
def test_a_command_is_read_whole(site: Path) -> None:
    """Its block has the class that docs/site.css wraps; an output has not."""
    page = (site / "migration.html").read_text(encoding="utf-8")
    assert '<div class="language-bash highlight">' in page and '<div class="language-text highlight">' in page
    assert ".language-bash" in (site / "site.css").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_page_is_read_without_markup_that_was_not_understood(pages: dict[Path, Links]) -> None:
    """Lists and fences that only GitHub's reader takes would stand there as text."""
    for path in pages:
        article = path.read_text(encoding="utf-8").partition("<article")[2].partition("</article>")[0]
        # titles of decisions begin with a number
        text = re.sub(r"<(pre|code|h1|a)\b.*?</\1>", "", article, flags=re.DOTALL)
        left = [line for line in shown(text) if re.match(r"\s*(```|- \S|\d+\. \S|\| ?---|#{2,} )", line)]
        assert left == [], path.name


def test_what_belongs_to_a_list_is_indented_by_four_and_has_a_line_before_it() -> None:
    """GitHub takes less; the site would end the list."""
    for path in DOCUMENTS:
        text = FENCED.sub(r"\1fence", path.read_text(encoding="utf-8"))
        assert re.findall(r"^ {1,3}(?![ -]|\d+\. ).+", text, re.MULTILINE) == [], path.name
        assert re.findall(r"^(?! |- |\d+\. ).+\n(?:- |\d+\. ).+", text, re.MULTILINE) == [], path.name


def shown(page: str) -> Iterator[str]:
    """The lines of text of a page."""
    yield from re.sub(r"<[^>]+>", "", page).splitlines()


def test_links_are_followed_from_the_place_on_the_site_and_code_is_left_alone() -> None:
    hook = tool("site_hook")
    text = "[a](docs/job.md#fields) ![b](docs/flow.svg)\n```text\n[c](docs/job.md)\n```\n"
    assert hook.links(text, str.upper) == text.replace("docs/job.md#fields", "DOCS/JOB.MD#FIELDS").replace(
        "docs/flow.svg", "DOCS/FLOW.SVG"
    )
    assert hook.target("docs/job.md#fields", ROOT / "README.md") == ROOT / "docs" / "job.md"
    assert hook.target("docs/decisions", ROOT / "README.md") == ROOT / "docs" / "decisions" / "README.md"
    assert hook.source_name(ROOT / "README.md", ROOT) == "index.md"
    assert hook.source_name(ROOT / "docs" / "job.md", ROOT) == "job.md"
    assert hook.source_name(ROOT / "CHANGELOG.md", ROOT) == "CHANGELOG.md"


@pytest.mark.slow
def test_the_pictures_of_rows_are_fresh(tmp_path: Path) -> None:
    tools = tool("make_pictures")
    made = tools.pictures(tmp_path)
    assert set(made) == {path.name for path in tools.PICTURES.iterdir()}
    for name, svg in made.items():
        assert (tools.PICTURES / name).read_text(encoding="utf-8") == svg, f"{name}: run tools/make_pictures.py"


def test_a_picture_marks_what_is_trained_and_nothing_else() -> None:
    """As `show-data` prints it for the same rows in docs/data.md."""
    drawn = (ROOT / "docs" / "pictures" / "chat.svg").read_text(encoding="utf-8")
    tokens = re.findall(r"<g( class=\"t\")?>.*?>([^<]*)</text></g>", drawn)
    trained = "".join(text for mark, text in tokens if mark)
    assert trained == "It·arrives·on·Monday.&lt;|im_end|&gt;You·are·welcome.&lt;|im_end|&gt;"
    assert sum(bool(mark) for mark, _ in tokens) == 18
    assert len(tokens) == 59
