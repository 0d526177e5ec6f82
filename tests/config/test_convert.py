"""A value becomes of its field's type where nothing is lost, and is refused otherwise."""

from typing import Any

import pytest

from fmstune.config.convert import convert
from fmstune.config.upstream_fields import Field


@pytest.mark.parametrize(
    ("value", "field", "expected"),
    [
        ("1e-4", Field("x", (float,), False), 1e-4),
        (5, Field("x", (float,), False), 5.0),
        (3.0, Field("x", (int,), False), 3),
        ("true", Field("x", (bool,), False), True),
        (2024, Field("x", (str,), False), "2024"),
        (None, Field("x", (int,), True), None),
        ([1, 2], Field("x", (), True), [1, 2]),
        ("auto", Field("x", (bool, str), False, ("auto",)), "auto"),
        ("false", Field("x", (bool, str), False, ("auto",)), False),
        ('{"a": 1}', Field("x", (dict, str), True), {"a": 1}),
    ],
)
def test_a_value_is_converted_where_nothing_is_lost(value: Any, field: Field, expected: Any) -> None:
    assert convert(value, field) == expected


@pytest.mark.parametrize(
    ("value", "field", "message"),
    [
        (0.5, Field("x", (int,), False), "must be a whole number, got 0.5"),
        (True, Field("x", (int,), False), "must be a whole number, got True"),
        ("maybe", Field("x", (bool,), False), "must be true or false, got 'maybe'"),
        (None, Field("x", (int,), False), "must be a whole number, got null"),
        ([1], Field("x", (str,), False), r"must be text, got \[1\]"),
        ("all-linear", Field("x", (dict, str), True), "must be a mapping of keys to values, got 'all-linear'"),
        ("[1]", Field("x", (dict, str), True), "must be a mapping of keys to values"),
        ("aut", Field("x", (bool, str), False, ("auto",)), "one of true, false, auto; got 'aut'; did you mean 'auto'"),
        (
            "cosin",
            Field("x", (str,), False, ("linear", "cosine")),
            "one of linear, cosine; got 'cosin'; did you mean 'cosine'",
        ),
    ],
)
def test_a_value_that_would_lose_something_is_refused(value: Any, field: Field, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(value, field)
