"""Tables and sizes on a terminal."""

import io
import sys
from collections.abc import Sequence

import pytest

from fmstune import tables
from fmstune.tables import show_bytes


def test_words_begin_alike_and_numbers_end_alike() -> None:
    assert tables.lines(("what", "n", "why"), [("a", "1,000", "b"), ("long name", "2", "")], left=(0, 2)) == [
        "what           n  why",
        "─────────────────────",
        "a          1,000  b",
        "long name      2",
    ]


def test_columns_are_as_wide_as_is_asked_or_wider() -> None:
    assert tables.lines(("a", "b"), [("c", "12345")], least=(3, 2)) == ["a        b", "──────────", "c    12345"]


def test_a_table_without_rows_has_its_heads() -> None:
    assert tables.lines(("a", "b"), []) == ["a  b", "────"]


@pytest.mark.parametrize(("count", "text"), [(0, "0.0 MiB"), (2**20, "1.0 MiB"), (3 * 2**29, "1.50 GiB")])
def test_bytes_are_shown_in_mib_or_gib(count: int, text: str) -> None:
    assert show_bytes(count) == text


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "⟦é⟧·x↵ → ─█ … ␀ ± 日\\udcff"),
        ("latin-1", "[é]·x$ > -# ... ^@ ± \\u65e5\\udcff"),
        ("ascii", "[\\xe9].x$ > -# ... ^@ +/- \\u65e5\\udcff"),
    ],
)
def test_a_terminal_shows_what_its_encoding_lacks_by_plain_characters(
    encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(content, encoding=encoding))
        tables.show_plain_characters()
        print("⟦é⟧·x↵ → ─█ … ␀ ± 日\udcff", end="", flush=True, file=getattr(sys, name))
    assert content.getvalue().decode(encoding) == shown * 2


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([2, 3], "2, 3"),
        ([0, 1, 2, 5, 7, 8, 9], "0 to 2, 5, 7 to 9"),
        ([0, *range(2, 400)], "0, 2 to 399"),
        (range(0, 400, 2), ", ".join(map(str, range(0, 128, 2))) + " and 136 more"),
    ],
)
def test_the_rows_of_a_large_batch_do_not_hide_what_is_said_of_them(rows: Sequence[int], text: str) -> None:
    assert tables.numbers(rows) == text
