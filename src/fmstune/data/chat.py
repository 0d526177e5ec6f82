"""A conversation under a chat template → segments: the characters that the assistant says are trained.

Templates with `{% generation %}` blocks mark them. With other templates, an assistant turn is the text that the
conversation up to that turn adds to the text that asks for it. That holds only where later turns leave earlier ones
unchanged, which is checked for every row.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from jinja2.exceptions import TemplateError

from fmstune.data.messages import Span, Tools, Turn, stretches
from fmstune.data.tokens import PreTrainedTokenizerBase, RowProblem, Segment, Templated
from fmstune.errors import UserError

_OTHER_TEMPLATE = "use a template with {% generation %} blocks (model.chat_template)"


def chat_segments(turns: Sequence[Turn], tools: Tools, tokenizer: PreTrainedTokenizerBase | None) -> Templated:
    """The conversation as the model's template writes it; the assistant's words and their stop tokens are trained."""
    if tokenizer is None:
        # a scan counts the words of the turns alone
        return Templated(
            piece for turn in turns for piece in turn.pieces or [Segment(turn.content, trained=turn.trained)]
        )
    template = _template(tokenizer)
    is_marked = "{% generation" in template or "{%- generation" in template
    marked = _marked(turns, tools, tokenizer, template) if is_marked else _by_prefixes(turns, tools, tokenizer)
    return Templated(_divided(*marked))


def render_chat(turns: Sequence[Turn], tools: Tools, tokenizer: PreTrainedTokenizerBase, *, asks: bool) -> str:
    """The conversation in the tokenizer's template; if it `asks`, the words follow that ask the assistant to speak."""
    _template(tokenizer)
    with _template_problems():
        messages = [turn.message for turn in turns]
        return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=asks))


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template of the tokenizer; of several by name, the one called default."""
    if tokenizer.chat_template is None:
        advice = "set model.chat_template to a Jinja file (package:chatml.jinja ships with fmstune)"
        raise UserError("data.format", f": the model's tokenizer has no chat template; {advice}")
    return str(tokenizer.get_chat_template())


def _marked(
    turns: Sequence[Turn], tools: Tools, tokenizer: PreTrainedTokenizerBase, template: str
) -> tuple[str, list[Span]]:
    """The text, and the trained parts of the spans that the template's own blocks mark, with the stop token of each."""
    text, blocks = _blocks(turns, tools, tokenizer, template)
    stops = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
    spans: list[Span] = []
    for turn, (start, end) in zip(_speakers(turns, blocks, tools, tokenizer, template), blocks, strict=True):
        stop = next((stop for stop in stops if text.startswith(stop, end)), "")
        spans += stretches(turn, text, (start, end + len(stop)))
    return text, spans


def _blocks(
    turns: Sequence[Turn], tools: Tools, tokenizer: PreTrainedTokenizerBase, template: str
) -> tuple[str, list[Span]]:
    """The text, and the spans of the template's `{% generation %}` blocks."""
    from transformers.utils.chat_template_utils import render_jinja_template

    with _template_problems():
        texts, marks = render_jinja_template(
            [[turn.message for turn in turns]],
            tools=tools,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    return str(texts[0]), list(marks[0])


def _speakers(
    turns: Sequence[Turn], blocks: Sequence[Span], tools: Tools, tokenizer: PreTrainedTokenizerBase, template: str
) -> list[Turn]:
    """The turn of each block: as many blocks as the conversation has more with this turn than without it."""
    said = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    if len(said) == len(blocks):
        return [turns[number] for number in said]
    if all(turns[number] == Turn(turns[number].message, trained=True) for number in said):
        # all is trained, whoever says it
        return [turns[said[0]]] * len(blocks)
    owners: list[Turn] = []
    for number in said:
        up_to = blocks if number == said[-1] else _blocks(turns[: number + 1], tools, tokenizer, template)[1]
        owners += [turns[number]] * (len(up_to) - len(owners))
    if len(owners) != len(blocks):
        raise RowProblem("the chat template does not mark each turn alike, so flags of turns cannot be heeded")
    return owners


def _by_prefixes(turns: Sequence[Turn], tools: Tools, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[Span]]:
    """The text, and for each trained turn the span that it adds to the text that asks for it."""
    whole = render_chat(turns, tools, tokenizer, asks=False)
    spans = []
    for number, turn in enumerate(turns):
        if not turn.trains:
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
        spans += stretches(turn, whole, _with_stop(whole, (len(before), len(up_to)), turn.content))
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
