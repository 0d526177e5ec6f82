"""Tables on a terminal."""

from fmstune import tables


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
