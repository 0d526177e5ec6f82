"""Tables and sizes on a terminal."""

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
