"""A Jinja file makes a row's text; nothing is guessed, and a template can do nothing but write."""

import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from fmstune.data import templates
from fmstune.data.chat_template import chat_template
from fmstune.data.messages import Turn
from fmstune.data.templates import render_row
from fmstune.data.tokens import RowProblem, Segment
from fmstune.errors import UserError
from tests.small import byte_level_tokenizer


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


GENERATES = "{% generation %}x{% endgeneration %}"
RECURSION = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(a) }}"
GROWING = (
    "{% set n = namespace(x=['a']) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x|length }}"
)
ENDLESS = "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}"
TOO_LARGE, TOO_DEEP = "it needs more than 2 GiB of memory", "it calls itself without an end, or is nested too deeply"
STOPPED = [
    (RECURSION, TOO_DEEP),
    (GROWING, TOO_LARGE),
    (ENDLESS, "it takes more than 0.2 seconds"),
    ("{{ a|center(20000000) }}", "it writes more than 16,777,216 characters"),
    ("{{ a * 99999999999 }}", TOO_LARGE),
    ("{{ a|center(99999999999) }}", TOO_LARGE),
    ("{{ '%099999999999d' % 1 }}", TOO_LARGE),
]
"""Templates that would take the machine, and why they are stopped."""


@pytest.fixture(autouse=True)
def _no_template_has_reached_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 0.2)
    monkeypatch.setattr(templates, "BYTES", 2**26)
    templates._reached.clear()


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("text", "why"), STOPPED, ids=[text[:30] for text, _ in STOPPED])
def test_a_template_that_would_take_the_machine_is_stopped(text: str, why: str) -> None:
    if "range" in text and why == TOO_LARGE:
        templates.SECONDS = 20.0  # memory is what it runs out of first
    with pytest.raises(RowProblem) as raised:
        rendered(text + GENERATES, a="b")
    assert str(raised.value) == f"row.jinja: the template is stopped, as {why}"
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{{ 10 ** 10 ** 10 }}", "it uses ** (powers), which fmstune does not calculate in templates"),
        ("(" * 3 + "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", TOO_DEEP),
        ("{% for i in a %}" * 30 + "{% endfor %}" * 30, TOO_DEEP),
        ("{{ 'a' * 99999999999 }}", None),
    ],
    ids=["power", "brackets", "loops", "constant"],
)
def test_a_template_that_cannot_be_compiled_within_the_limits_is_named(text: str, why: str | None) -> None:
    with pytest.raises((UserError, RowProblem)) as raised:
        rendered(text + GENERATES, a="b")
    shown = (
        "row.jinja: the template is stopped, as it needs more than" if why is None else f": row.jinja: {why}; simplify"
    )
    assert shown in str(raised.value)


def test_named_arguments_are_no_powers() -> None:
    text = "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(**{'a': 1}) }}"
    assert rendered(text + GENERATES, a="b") == [("1", False), ("x", True)]


def test_a_template_that_reaches_its_limits_again_and_again_is_not_tried_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(templates, "_MOST", 3)
    file = write(ENDLESS + GENERATES)
    begun = time.process_time()
    for why in (*["it takes more than"] * 3, "it has reached the limits too often"):
        with pytest.raises(RowProblem, match=why):
            render_row(file, {"a": "b"})
    assert time.process_time() - begun < 2


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("text", "why"), [(RECURSION, TOO_DEEP), (GROWING, TOO_LARGE), (ENDLESS, "it takes more than")]
)
def test_a_chat_template_has_the_same_limits(text: str, why: str) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}" + text.replace("a)", "messages)")
    if why == TOO_LARGE:
        templates.SECONDS = 20.0
    with pytest.raises(RowProblem, match=f"the chat template is stopped, as {why}"):
        chat_template(tokenizer).write([Turn({"role": "user", "content": "Hi"}, trained=False)])


@pytest.mark.parametrize("template", [3, {"default": ["x"]}])
def test_a_chat_template_that_is_not_text_is_refused(template: Any) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(UserError, match="the model's chat template must be text, found the (int|list)"):
        chat_template(tokenizer)
