"""A Jinja file makes a row's text; nothing is guessed, and a template can do nothing but write."""

from pathlib import Path
from typing import Any

import pytest

from fmstune.data import templates
from fmstune.data.templates import render_row
from fmstune.data.tokens import RowProblem, Segment
from fmstune.errors import UserError


def write(text: str) -> str:
    Path("row.jinja").write_text(text, encoding="utf-8")
    return "row.jinja"


def rendered(text: str, **row: Any) -> list[tuple[str, bool]]:
    return [tuple(segment) for segment in render_row(write(text), row)]


def test_what_stands_in_a_generation_block_is_trained() -> None:
    assert rendered("Q: {{ q }}\nA:{% generation %} {{ a }}{% endgeneration %}", q="why", a="because") == [
        ("Q: why\nA:", False),
        (" because", True),
    ]


def test_blocks_can_come_again_and_in_loops() -> None:
    text = "{% for q, a in pairs %}{{ q }}{% generation %}{{ a }}{% endgeneration %}{% endfor %}."
    assert rendered(text, pairs=[["1", "x"], ["2", "y"]]) == [
        ("1", False),
        ("x", True),
        ("2", False),
        ("y", True),
        (".", False),
    ]


def test_all_of_a_block_is_trained_even_where_it_holds_another() -> None:
    text = "{{ q }}{% generation %}a{% generation %}{{ a }}{% endgeneration %}b{% endgeneration %}."
    assert rendered(text, q="1", a="x") == [("1", False), ("axb", True), (".", False)]


def test_what_a_row_holds_is_text_and_no_template() -> None:
    hostile = "{% generation %}{{ 7 * 7 }}{% endgeneration %} \0"
    assert rendered("{{ q }}{% generation %}{{ a }}{% endgeneration %}", q=hostile, a=hostile) == [
        (hostile, False),
        (hostile, True),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{{ nosuch }}", "row.jinja: 'nosuch' is undefined; the row's columns are 'a'"),
        ("{{ a.nosuch }}", "row.jinja: 'str object' has no attribute 'nosuch'; the row's columns are 'a'"),
        ("{{ a.__class__.__mro__ }}", "row.jinja: access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ 1 / 0 }}", "row.jinja: the template fails on this row (ZeroDivisionError: division by zero)"),
        ("{{ a + 1 }}", "row.jinja: the template fails on this row (TypeError:"),
        ("{% include 'other' %}", "row.jinja: the template fails on this row (TypeError: no loader"),
    ],
)
def test_what_a_template_cannot_do_is_said_of_the_row(text: str, problem: str) -> None:
    with pytest.raises(RowProblem) as raised:
        rendered(text + "{% generation %}x{% endgeneration %}", a="b")
    assert str(raised.value).startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{{ a }}", "data.format.template_file: row.jinja marks nothing as trained; put the answer between "),
        ("a\n{% if %}", "data.format.template_file: row.jinja:2: Expected an expression, got 'end of statement block'"),
        ("{% generation %}x", "data.format.template_file: row.jinja:1: Unexpected end of template."),
    ],
)
def test_a_file_that_is_no_template_is_named_with_its_line(text: str, problem: str) -> None:
    with pytest.raises(UserError) as raised:
        templates.load_template(write(text))
    assert str(raised.value).startswith(problem)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"data\.format\.template_file: none\.jinja cannot be read \(No such file"):
        templates.load_template("none.jinja")


def test_a_segment_is_what_the_other_formats_make() -> None:
    assert render_row(write("{% generation %}{{ a }}{% endgeneration %}"), {"a": "b"}) == [Segment("b", True)]
