"""Thoughts are found in the fields and in the text of a turn, and again in what a template makes of them."""

from typing import Any

import pytest

from fmstune.data.messages import Turn
from fmstune.data.reasoning import TAGS, in_content, place_thoughts, thought_span, thoughts_of, without_span
from fmstune.data.tokens import Segment


def turn(content: str, **more: Any) -> Turn:
    return Turn({"role": "assistant", "content": content, **more}, trained=True)


@pytest.mark.parametrize(
    ("given", "thoughts"),
    [
        (turn("Hello", reasoning_content=" They greet.\n"), "They greet."),
        (turn("Hello", thinking="They greet."), "They greet."),
        (turn("Hello", reasoning="They greet."), "They greet."),
        (turn("<think>\nThey greet.\n</think>\n\nHello"), "They greet."),
        (turn("They greet.\n</think>\n\nHello"), "They greet."),
        (turn("<think>\n\n</think>\n\nHello"), ""),
        (turn("Hello, <think> is a tag and </think> another"), ""),
        (turn("Hello", reasoning_content=None), ""),
    ],
)
def test_thoughts_are_in_a_field_or_at_the_beginning_of_the_text(given: Turn, thoughts: str) -> None:
    assert thoughts_of(given) == thoughts


@pytest.mark.parametrize(
    "given", [turn("Hello", thinking="They greet."), turn("<think>They greet.</think>\nHello")], ids=["field", "text"]
)
def test_dropped_thoughts_leave_the_answer(given: Turn) -> None:
    assert place_thoughts([given], None, "drop") == [turn("Hello")]


def test_thoughts_in_a_field_stand_in_the_text_where_no_template_reads_the_field() -> None:
    (made,) = place_thoughts([turn("Hello", thinking="They greet.")], None, "train")
    assert made == turn("<think>\nThey greet.\n</think>\n\nHello")
    asked = Turn({"role": "user", "content": "<think>x</think>Hi"}, trained=False)
    assert place_thoughts([asked], None, "drop") == [asked]


def test_flags_of_parts_stay_with_their_parts() -> None:
    pieces = (Segment("<think>x</think>Hel", False), Segment("lo", True))
    given = Turn({"role": "assistant", "content": "<think>x</think>Hello"}, True, pieces)
    (dropped,) = place_thoughts([given], None, "drop")
    assert dropped.pieces == (Segment("Hel", False), Segment("lo", True))
    assert in_content(dropped, "y").pieces[0] == Segment("<think>\ny\n</think>\n\n", True)


@pytest.mark.parametrize(("opening", "closing"), TAGS)
def test_thoughts_are_found_between_the_tags_of_each_family(opening: str, closing: str) -> None:
    text = f"user: Hi\nassistant:{opening}They greet.{closing}\n\nHello"
    asked = len("user: Hi\nassistant:")
    assert thought_span(text, asked, len(text)) == (asked, text.index("Hello"))
    # models that are asked to think begin within the tags
    inside = asked + len(opening)
    assert thought_span(text, inside, len(text)) == (inside, text.index("Hello"))
    assert thought_span(text.replace(closing, ""), asked, len(text) - len(closing)) is None


def test_what_is_left_out_divides_a_span() -> None:
    assert list(without_span([(2, 10)], (2, 5))) == [(5, 10)]
    assert list(without_span([(2, 10), (12, 14)], (4, 12))) == [(2, 4), (12, 14)]
    assert list(without_span([(2, 10)], None)) == [(2, 10)]
