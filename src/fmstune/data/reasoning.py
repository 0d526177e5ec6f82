"""What an assistant thinks before it speaks: found in a turn, given to the template, found again in its text."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from fmstune.data.chat_template import ChatTemplate
from fmstune.data.messages import THOUGHTS, Span, Turn
from fmstune.data.tokens import Segment

_INLINE = re.compile(r"\s*(?:<think>)?((?:(?!<think>).)*?)</think>\s*", re.DOTALL)
"""Thoughts at the beginning of the content; models that are asked with <think> leave that out."""
TAGS = (
    ("<think>", "</think>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
    ("<|channel>thought", "<channel|>"),
    (" to=self<|message|>", "<|eom|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
)
"""Between these stand thoughts in the templates of Qwen, DeepSeek, GLM and most others, GPT-OSS, Gemma 4, Muse Glimmer,
Command A, Magistral, Seed-OSS."""


def thoughts_of(turn: Turn) -> str:
    """The thoughts of the assistant's turn, without white space around them."""
    inline = _inline(turn)
    return _field(turn) or (inline[1].strip() if inline else "")


def place_thoughts(turns: Sequence[Turn], template: ChatTemplate | None, reasoning: str) -> list[Turn]:
    """The turns with the thoughts where the template reads them: in a field, else in the content; or without them.

    Without a template they stand in the content.
    """
    takes_field = template is not None and template.takes_thoughts
    return [_placed(turn, takes_field, reasoning) if turn.role == "assistant" else turn for turn in turns]


def _placed(turn: Turn, takes_field: bool, reasoning: str) -> Turn:
    field, inline, thoughts = _field(turn), _inline(turn), thoughts_of(turn)
    if reasoning != "drop":
        in_place = inline is not None and inline[0].lstrip().startswith("<think>") and not takes_field
        if not thoughts or (in_place and not field):
            return turn
        inline = None if field else inline
    message = {name: value for name, value in turn.message.items() if name not in THOUGHTS}
    bare = _with_content(replace(turn, message=message), cut=inline.end() if inline else 0)
    if reasoning == "drop":
        return bare
    if takes_field:
        return replace(bare, message={**bare.message, "reasoning_content": thoughts})
    return in_content(bare, thoughts)


def in_content(turn: Turn, thoughts: str) -> Turn:
    """The turn with the thoughts, which may be none, at the beginning of its content."""
    return _with_content(turn, before=f"<think>\n{thoughts}\n</think>\n\n")


def _field(turn: Turn) -> str:
    given = [value for name in THOUGHTS if isinstance(value := turn.message.get(name), str) and value.strip()]
    return given[0].strip() if given else ""


def _inline(turn: Turn) -> re.Match[str] | None:
    return _INLINE.match(turn.content) if "</think>" in turn.content else None


def _with_content(turn: Turn, *, before: str = "", cut: int = 0) -> Turn:
    """The turn with this before its content, or without the first characters of it."""
    if not before and not cut:
        return turn
    pieces = [Segment(before, turn.trained)] if before and turn.pieces else []
    left = cut
    for piece in turn.pieces:
        pieces.append(Segment(piece.text[left:], piece.trained))
        left = max(0, left - len(piece.text))
    return replace(turn, message={**turn.message, "content": before + turn.content[cut:]}, pieces=tuple(pieces))


def thought_span(text: str, asked: int, end: int) -> Span | None:
    """The thoughts of an answer that stands from `asked` to `end`, with their tags and the white space behind."""
    for opening, closing in TAGS:
        is_open = text[:asked].rstrip().endswith(opening)
        if is_open or text[asked:end].lstrip("\n").startswith(opening):
            place = text.find(closing, asked, end)
            if place >= 0:
                behind = place + len(closing)
                return asked, behind + len(text[behind:end]) - len(text[behind:end].lstrip())
    return None


def without_span(spans: Sequence[Span], left_out: Span | None) -> Iterator[Span]:
    """The spans without what stands in this one."""
    for start, end in spans:
        first, last = left_out or (end, end)
        yield from ((a, b) for a, b in ((start, min(end, first)), (max(start, last), end)) if b > a)
