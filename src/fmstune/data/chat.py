"""A conversation under a chat template → segments: the characters that the assistant says are trained.

Templates with `{% generation %}` blocks mark them. With other templates, an assistant turn is the text that the
conversation up to that turn adds to the text that asks for it. That holds only where later turns leave earlier ones
unchanged, which is checked for every row.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jinja2.exceptions import TemplateError

from fmstune.data.tokens import PreTrainedTokenizerBase, RowProblem, Segment, Templated, in_words
from fmstune.errors import UserError

Message = dict[str, Any]
Tools = list[dict[str, Any]] | None
Span = tuple[int, int]
"""Start and end of a stretch of the rendered text, in characters."""

SHARE_GPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "tool": "tool", "function": "tool"}
"""Names of `from` in the ShareGPT shape, whose turns are `from` and `value`."""

_OTHER_TEMPLATE = "use a template with {% generation %} blocks (model.chat_template)"


def check_messages(value: Any, field: str) -> list[Message]:
    """The turns of a row, checked; nulls are left out, which Parquet and Arrow put in for missing keys."""
    if not isinstance(value, list) or not value:
        raise RowProblem(f"column {field!r} must hold a list of turns, found {in_words(value)}")
    found = []
    for number, given in enumerate(value, start=1):
        place = f"column {field!r}: turn {number}"
        if not isinstance(given, Mapping):
            raise RowProblem(f"{place} must be an object, found {in_words(given)}")
        turn: Message = _without_nulls(given)
        if "from" in turn and "role" not in turn:
            role = SHARE_GPT_ROLES.get(turn["from"])
            if role is None:
                raise RowProblem(f"{place} is from {turn['from']!r}; the names are {', '.join(SHARE_GPT_ROLES)}")
            turn = {"role": role, "content": turn.get("value")}
        if not isinstance(turn.get("role"), str):
            raise RowProblem(f"{place} has no role; turns have role and content, or from and value")
        if not isinstance(turn.get("content"), str) and "tool_calls" not in turn:
            raise RowProblem(f"{place} has no content (text), found {in_words(turn.get('content'))}")
        found.append(turn)
    return found


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def check_tools(value: Any, field: str) -> Tools:
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


def chat_segments(turns: Sequence[Message], tools: Tools, tokenizer: PreTrainedTokenizerBase | None) -> Templated:
    """The conversation as the model's template writes it; the assistant's words and their stop tokens are trained."""
    if tokenizer is None:
        # a scan counts the words of the turns alone
        return Templated(Segment(str(turn.get("content", "")), turn["role"] == "assistant") for turn in turns)
    template = _template(tokenizer)
    is_marked = "{% generation" in template or "{%- generation" in template
    marked = _marked(turns, tools, tokenizer, template) if is_marked else _by_prefixes(turns, tools, tokenizer)
    return Templated(_divided(*marked))


def render_chat(turns: Sequence[Message], tools: Tools, tokenizer: PreTrainedTokenizerBase, *, asks: bool) -> str:
    """The conversation in the tokenizer's template; if it `asks`, the words follow that ask the assistant to speak."""
    _template(tokenizer)
    with _template_problems():
        return str(tokenizer.apply_chat_template(list(turns), tools=tools, tokenize=False, add_generation_prompt=asks))


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template of the tokenizer; of several by name, the one called default."""
    if tokenizer.chat_template is None:
        advice = "set model.chat_template to a Jinja file (package:chatml.jinja ships with fmstune)"
        raise UserError("data.format", f": the model's tokenizer has no chat template; {advice}")
    return str(tokenizer.get_chat_template())


def _marked(
    turns: Sequence[Message], tools: Tools, tokenizer: PreTrainedTokenizerBase, template: str
) -> tuple[str, list[Span]]:
    """The text, and the spans that the template's own blocks mark, each with a stop token that follows it."""
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


def _by_prefixes(turns: Sequence[Message], tools: Tools, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[Span]]:
    """The text, and for each assistant turn the span that it adds to the text that asks for it."""
    whole = render_chat(turns, tools, tokenizer, asks=False)
    spans = []
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        if number == 0:
            raise RowProblem("the conversation begins with the assistant; begin with a turn of user or system")
        before = render_chat(turns[:number], tools, tokenizer, asks=True)
        up_to = whole if number + 1 == len(turns) else render_chat(turns[: number + 1], tools, tokenizer, asks=False)
        if not whole.startswith(up_to):
            raise RowProblem(
                f"the chat template writes turn {number + 1} differently when later turns follow, so one row cannot "
                f"train what the model sees in use; give each assistant turn a row of its own, or {_OTHER_TEMPLATE}"
            )
        if not up_to.startswith(before):
            raise RowProblem(
                f"the chat template does not begin turn {number + 1} with what it writes to ask for it, so nothing "
                f"says where the answer begins; {_OTHER_TEMPLATE}"
            )
        spans.append(_with_stop(whole, (len(before), len(up_to)), str(turn.get("content", ""))))
    return whole, spans


def _with_stop(text: str, span: Span, content: str) -> Span:
    """The span up to its stop token; without a stop token, white space ends the turn and stays in the span."""
    start, end = span
    said, content = text[start:end].rstrip(), content.strip()
    return span if content and said.endswith(content) else (start, start + len(said))


@contextmanager
def _template_problems() -> Iterator[None]:
    """Turn the errors of a template that cannot write the conversation into RowProblem."""
    try:
        yield
    except (TemplateError, TypeError, ValueError, LookupError) as err:
        raise RowProblem(f"the chat template refuses the conversation: {err or type(err).__name__}") from err


def _divided(text: str, spans: Sequence[Span]) -> Iterator[Segment]:
    """The whole text in segments; white space after the last trained span is left out."""
    position = 0
    for start, end in spans:
        if start > position:
            yield Segment(text[position:start], trained=False)
        if end > start:
            yield Segment(text[start:end], trained=True)
        position = end
    if text[position:].strip() or (text and not spans):
        yield Segment(text[position:], trained=False)
