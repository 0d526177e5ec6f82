"""A conversation under a chat template → segments: which characters the assistant says.

Templates with `{% generation %}` blocks say it themselves. For the others every assistant turn is what the
conversation up to it adds to the text that asks for it; that holds only where later turns leave earlier ones
as they are, and is checked for every row.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from fmstune.data.tokens import RowProblem, Segment, Templated, in_words
from fmstune.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

Span = tuple[int, int]
"""Start and end of a stretch of the rendered text, in characters."""

SHARE_GPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "tool": "tool", "function": "tool"}
"""Names of `from` in the ShareGPT shape, whose turns are `from` and `value`."""


def check_messages(value: Any, field: str) -> list[Message]:
    """The turns of a row, checked; nulls are left out, which Parquet and Arrow put in for missing keys."""
    if not isinstance(value, list) or not value:
        raise RowProblem(f"column {field!r} must hold a list of turns, found {in_words(value)}")
    found = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, Mapping):
            raise RowProblem(f"column {field!r}: turn {number} must be an object, found {in_words(turn)}")
        found.append(_message(_without_nulls(turn), f"column {field!r}: turn {number}"))
    return found


def _message(turn: Message, place: str) -> Message:
    if "from" in turn and "role" not in turn:
        role = SHARE_GPT_ROLES.get(turn["from"])
        if role is None:
            raise RowProblem(f"{place} is from {turn['from']!r}; the names are {', '.join(SHARE_GPT_ROLES)}")
        turn = {"role": role, "content": turn.get("value")}
    if not isinstance(turn.get("role"), str):
        raise RowProblem(f"{place} has no role; turns have role and content, or from and value")
    if not isinstance(turn.get("content"), str) and "tool_calls" not in turn:
        raise RowProblem(f"{place} has no content (text), found {in_words(turn.get('content'))}")
    return turn


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def check_tools(value: Any, field: str) -> list[dict[str, Any]] | None:
    """The tools that the row offers, as JSON schemas; text is read as JSON."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except json.JSONDecodeError as err:
            raise RowProblem(f"column {field!r} is broken JSON ({err.msg} at column {err.colno})") from err
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowProblem(f"column {field!r} must hold a list of tools (JSON schemas), found {in_words(value)}")
    found: list[dict[str, Any]] = _without_nulls(value)
    return found


def chat_segments(
    turns: Sequence[Message], tools: list[dict[str, Any]] | None, tokenizer: "PreTrainedTokenizerBase | None"
) -> Templated:
    """The conversation as the model's template writes it; trained is what the assistant says, and its stop token.

    Without a tokenizer only the words themselves are there, which is what a scan counts.
    """
    if tokenizer is None:
        return Templated(Segment(str(turn.get("content", "")), turn["role"] == "assistant") for turn in turns)
    template = _template(tokenizer)
    if "{% generation" in template or "{%- generation" in template:
        text, spans = _marked(turns, tools, tokenizer, template)
    else:
        text, spans = _by_prefixes(turns, tools, tokenizer)
    return Templated(_divided(text, spans))


def render_question(
    turns: Sequence[Message], tools: list[dict[str, Any]] | None, tokenizer: "PreTrainedTokenizerBase"
) -> str:
    """The conversation so far, and the template's words that ask the assistant to speak."""
    _template(tokenizer)
    with _template_problems():
        return str(tokenizer.apply_chat_template(list(turns), tools=tools, tokenize=False, add_generation_prompt=True))


def _template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The template of the tokenizer; of several by name, the one called default."""
    if tokenizer.chat_template is None:
        raise UserError(
            "data.format",
            ": the model's tokenizer has no chat template; set model.chat_template to a Jinja file "
            "(package:chatml.jinja ships with fmstune)",
        )
    template: str = tokenizer.get_chat_template()
    return template


def _marked(
    turns: Sequence[Message], tools: list[dict[str, Any]] | None, tokenizer: "PreTrainedTokenizerBase", template: str
) -> tuple[str, list[Span]]:
    """The text, and what the template's own blocks mark; a stop token right behind a block belongs to it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    with _template_problems():
        texts, marks = render_jinja_template(
            [list(turns)],
            tools=tools,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    text = str(texts[0])
    stops = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
    spans = []
    for start, end in marks[0]:
        stop = next((stop for stop in stops if text.startswith(stop, end)), "")
        spans.append((start, end + len(stop)))
    return text, spans


def _by_prefixes(
    turns: Sequence[Message], tools: list[dict[str, Any]] | None, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[str, list[Span]]:
    """The text, and for each assistant turn what it adds to the text that asks for it."""

    def text_of(count: int, *, asks: bool = False) -> str:
        with _template_problems():
            return str(
                tokenizer.apply_chat_template(
                    list(turns[:count]), tools=tools, tokenize=False, add_generation_prompt=asks
                )
            )

    whole = text_of(len(turns))
    spans = []
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        if number == 0:
            raise RowProblem("the conversation begins with the assistant; begin with a turn of user or system")
        before = text_of(number, asks=True)
        up_to = whole if number + 1 == len(turns) else text_of(number + 1)
        if not whole.startswith(up_to):
            raise RowProblem(
                f"the chat template writes turn {number + 1} differently when later turns follow, so what the model "
                "would see in use cannot be trained in one row; give each assistant turn a row of its own, or a "
                "template with {% generation %} blocks (model.chat_template)"
            )
        if not up_to.startswith(before):
            raise RowProblem(
                f"the chat template does not begin turn {number + 1} with what it writes to ask for it, so where the "
                "assistant's words begin is not known; give a template with {% generation %} blocks "
                "(model.chat_template)"
            )
        spans.append(_with_stop(whole, (len(before), len(up_to)), str(turn.get("content", ""))))
    return whole, spans


def _with_stop(text: str, span: Span, content: str) -> Span:
    """The span up to its stop token; where the template has none, the white space behind it is its end."""
    start, end = span
    said, content = text[start:end].rstrip(), content.strip()
    stops = not content or not said.endswith(content)
    return (start, start + len(said)) if stops else span


@contextmanager
def _template_problems() -> Iterator[None]:
    """What a template says of a conversation that it was not made for."""
    try:
        yield
    except (TemplateError, TypeError, ValueError, LookupError) as err:
        raise RowProblem(f"the chat template refuses the conversation: {err or type(err).__name__}") from err


def _divided(text: str, spans: Sequence[Span]) -> Iterator[Segment]:
    """The whole text; white space behind the last trained span goes, since nobody writes it."""
    position = 0
    for start, end in spans:
        if start > position:
            yield Segment(text[position:start], trained=False)
        if end > start:
            yield Segment(text[start:end], trained=True)
        position = end
    rest = text[position:]
    if rest and (rest.strip() or not spans):
        yield Segment(rest, trained=False)
