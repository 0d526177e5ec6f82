# SPDX-License-Identifier: Apache-2.0
"""What the site holds besides docs/: README.md as its start, and every file of the repository that a page links to.

MkDocs calls the two functions (mkdocs.yml, `hooks`). So a document has one place and one text, its links lead
somewhere on GitHub and on the site, and no page is copied.
"""

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

START = ("README.md", "index.md")
"""The one document that has another name on the site."""
OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/RESULTS.md")
"""Further pages of the navigation; others are found by their links."""
BOOST = {"troubleshooting.md": 3.0, "CHANGELOG.md": 0.1, "benchmarks/RESULTS.md": 0.2, "decisions/": 0.2}
"""What the search shows sooner or later than its words alone would: who looks for a message wants the page of those."""
_FENCED = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what lies outside docs/: the pages named above, and what is linked to, link by link."""
    root = Path(config.config_file_path).parent
    waiting = [root / name for name in (START[0], *OUTSIDE)]
    waiting += [Path(page.abs_src_path) for page in files.documentation_pages() if page.abs_src_path]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        name = source_name(path, root)
        if files.get_file_from_path(name) is None:
            # the navigation may name it all the same
            aside = InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, name, abs_src_path=str(path), inclusion=aside))
        if path.suffix == ".md":
            waiting += linked(path.read_text(encoding="utf-8"), path)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The links of a page as MkDocs follows them, from the page's place on the site; its rank in the search beside."""
    root, path = Path(config.config_file_path).parent, Path(str(page.file.abs_src_path))
    for place, boost in BOOST.items():
        if page.file.src_uri.startswith(place):
            page.meta["search"] = {"boost": boost}

    def there(link: str) -> str:
        file, _, anchor = link.partition("#")
        if not file or "://" in link:
            return link
        place = source_name(target(link, path), root)
        moved = posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")
        return f"{moved}#{anchor}" if anchor else moved

    return links(markdown, there)


def linked(markdown: str, page: Path) -> Iterator[Path]:
    """What the links of a page mean, those of code left out; of other sites' something that is no file."""
    for text in _FENCED.split(markdown)[::2]:
        yield from (target(found[0], page) for found in _LINK.finditer(text))


def links(markdown: str, change: Callable[[str], str]) -> str:
    """The text with its links changed; code is left alone."""
    parts = _FENCED.split(markdown)
    return "".join(
        part if number % 2 else _LINK.sub(lambda found: change(found[0]), part) for number, part in enumerate(parts)
    )


def target(link: str, page: Path) -> Path:
    """The file that a link of a page means; of a folder, its README.md, as on GitHub."""
    path = Path(posixpath.normpath(page.parent / link.partition("#")[0]))
    return path / "README.md" if path.is_dir() else path


def source_name(path: Path, root: Path) -> str:
    """The name of a file on the site, before it is rendered."""
    name = path.relative_to(root).as_posix()
    return START[1] if name == START[0] else name.removeprefix("docs/")
