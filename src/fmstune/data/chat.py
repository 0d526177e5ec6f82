"""A conversation under a chat template → rows of segments: the characters that the assistant says are trained.

Each trained answer is written as the model is asked for it: the text that asks, then what the turn adds, up to what
ends the turn. A row trains an answer where it begins with exactly that text; so every trained token is one that the
model is asked for. A template that rewrites earlier turns, as those do that drop earlier thoughts, needs several rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from fmstune.data.chat_template import ChatTemplate, Written, trl_templates
from fmstune.data.messages import Span, Tools, Turn, stretches
from fmstune.data.reasoning import in_content, place_thoughts, thought_span, thoughts_of, without_span
from fmstune.data.tokens import RowProblem, Rows, Segment, Templated

_BEGIN = "begin with a turn of user or system, or say train: false of the turn"


@dataclass(frozen=True)
class Answer:
    """A turn of the assistant as the model is asked for it."""

    turn: int
    """Its place in the conversation."""
    text: str
    """The conversation up to the end of the turn."""
    spans: tuple[Span, ...]
    """What of the text is trained."""


@dataclass(frozen=True)
class Conversation:
    """The turns of a row, the tools that it offers, and the template that writes both."""

    turns: Sequence[Turn]
    tools: Tools
    template: ChatTemplate

    def written(self, count: int, *, asks: bool = False) -> Written:
        """The first turns, and if it `asks` the words that ask the assistant to speak."""
        return self.template.write(self.turns[:count], self.tools, asks=asks)


def chat_rows(
    turns: Sequence[Turn],
    tools: Tools,
    template: ChatTemplate | None,
    *,
    reasoning: str = "train",
    split_turns: bool = True,
) -> Templated | Rows:
    """The conversation as the template writes it, in one row, or where `split_turns` allows it in several."""
    if template is None:
        # a scan counts the words of the turns alone
        said = place_thoughts(turns, None, reasoning)
        return Templated(piece for turn in said for piece in turn.pieces or [Segment(turn.content, turn.trained)])
    chat = Conversation(place_thoughts(turns, template, reasoning), tools, template)
    speaks = [number for number, turn in enumerate(chat.turns) if turn.trains]
    answers = [_answer(chat, number, masks=reasoning == "mask") for number in speaks]
    ends = bool(speaks) and speaks[-1] == len(turns) - 1
    groups = _grouped(answers, answers[-1].text if ends else chat.written(len(turns)).text)
    if len(groups) > 1 and not split_turns:
        first = groups[0][1][-1].turn + 1
        raise RowProblem(
            f"the chat template writes turn {first} differently when later turns follow, so one row cannot train what "
            "the model sees in use; set data.format.split_turns=true, which makes several rows of it"
        )
    has_end = bool(template.turn_end.text)
    rows = [Templated(_divided(text, [span for one in said for span in one.spans])) for text, said in groups]
    for row in rows:
        row.ended = has_end
    return rows[0] if len(rows) == 1 else Rows(rows)


def chat_question(turns: Sequence[Turn], tools: Tools, template: ChatTemplate, reasoning: str) -> Templated:
    """The conversation with the words that ask the assistant to speak."""
    asked = template.write(place_thoughts(turns, template, reasoning), tools, asks=True)
    return Templated([Segment(asked.text, trained=False)])


def _answer(chat: Conversation, number: int, *, masks: bool) -> Answer:
    """The answer of a turn as the model is asked for it; `masks` leaves its thoughts out of what is trained."""
    asked, blocks, text = _asked(chat, number)
    end = chat.template.end_of_answer(text, asked)
    turn = chat.turns[number]
    if (thoughts := thoughts_of(turn)) and thoughts not in text[asked:end]:
        advice = "set model.chat_template to one that writes them, or data.format.reasoning=drop to do so everywhere"
        raise RowProblem(f"the chat template leaves out the thoughts of turn {number + 1}; {advice}")
    marked = [(asked, end)] if not chat.template.marks else list(_ended(text, blocks, (asked, end), chat.template))
    trained = [
        (max(start, first), min(stop, last))
        for start, stop in stretches(turn, text, (asked, end))
        for first, last in marked
        if max(start, first) < min(stop, last)
    ]
    spans = without_span(trained, thought_span(text, asked, end) if masks else None)
    return Answer(number, text[:end], tuple(spans))


def _asked(chat: Conversation, number: int) -> tuple[int, Sequence[Span], str]:
    """Where the answer begins, the template's blocks in it, and the text up to it and with it."""
    if number == 0:
        raise RowProblem(f"the conversation begins with the assistant; {_BEGIN}")
    question, said = chat.written(number, asks=True), chat.written(number + 1)
    if said.text.startswith(question.text):
        return len(question.text), said.blocks[len(question.blocks) :], said.text
    blocks = said.blocks[len(question.blocks) :]
    before = chat.written(number).text
    if blocks and question.text.startswith(before):
        # the turn makes the template rewrite what stands before it: GPT-OSS drops the thoughts of a call
        words, first = question.text[len(before) :], blocks[0][0]
        place = next(at for at in range(max(0, first - len(words)), first + 1) if words.startswith(said.text[at:first]))
        if said.text.startswith(words, place):
            moved = len(question.text) - (place + len(words))
            text = question.text + said.text[place + len(words) :]
            return len(question.text), [(start + moved, end + moved) for start, end in blocks], text
    if blocks and question.text.rstrip().endswith("<think>") and not thoughts_of(chat.turns[number]):
        # TRL's training templates of DeepSeek and Nemotron ask for thoughts, and write none where there are none
        empty = chat.template.write([*chat.turns[:number], in_content(chat.turns[number], "")], chat.tools)
        if empty.text.startswith(question.text):
            return len(question.text), empty.blocks[len(question.blocks) :], empty.text
    raise RowProblem(_not_asked(chat, number, question.text, said.text))


def _ended(text: str, blocks: Sequence[Span], answer: Span, template: ChatTemplate) -> Iterator[Span]:
    """The template's blocks in the answer; what ends the turn belongs to the block that it follows."""
    inside = [(max(start, answer[0]), min(end, answer[1])) for start, end in blocks if start < answer[1]]
    for place, (start, end) in enumerate(inside, start=1):
        closes = place == len(inside) and text[end : answer[1]].strip() in (
            "",
            template.turn_end.text,
            template.call_end.text,
        )
        yield start, answer[1] if closes else end


def _not_asked(chat: Conversation, number: int, question: str, said: str) -> str:
    """The problem of a turn that does not begin with what asks for it, and what would do."""
    asks = question[len(_common(question, said)) :]
    problem = f"the chat template does not begin turn {number + 1} with what it writes to ask for it ({asks!r:.60})"
    problem += ", so nothing says where the answer begins"
    name = chat.template.training_variant
    if name is not None:
        with suppress(RowProblem):
            variant = replace(chat, template=replace(chat.template, source=trl_templates()[name]))
            _asked(variant, number)
            return f"{problem}; model.chat_template=trl:{name} is its variant for training"
    if thoughts_of(chat.turns[number]):
        return f"{problem}; data.format.reasoning=drop leaves out the thoughts of the turn"
    blocks = "" if chat.template.marks else " with {% generation %} blocks"
    return f"{problem}; use another template{blocks} (model.chat_template)"


def _common(one: str, other: str) -> str:
    """What both texts begin with, without a tag that they differ in."""
    same = next((at for at, pair in enumerate(zip(one, other, strict=False)) if len(set(pair)) > 1), len(one))
    tag = one.rfind("<", 0, same)
    return one[:same] if tag < 0 or ">" in one[tag:same] else one[:tag]


def _grouped(answers: Sequence[Answer], whole: str) -> list[tuple[str, list[Answer]]]:
    """The texts of the rows, each with the answers that it begins with; the first is the whole, if it has any."""
    groups: list[tuple[str, list[Answer]]] = []
    left, text = list(answers), whole
    while left or not groups:
        inside = [answer for answer in left if text.startswith(answer.text)]
        if inside or not left:
            groups.append((text, inside))
        turns = {answer.turn for answer in inside}
        left = [answer for answer in left if answer.turn not in turns]
        text = left[-1].text if left else ""
    return groups[::-1]


def _divided(text: str, spans: Sequence[Span]) -> Iterator[Segment]:
    """The whole text in segments; white space after the last trained span is left out."""
    position = 0
    for start, end in spans:
        if start > position:
            yield Segment(text[position:start], trained=False)
        yield Segment(text[start:end], trained=True)
        position = end
    if text[position:].strip() or (text and not spans):
        yield Segment(text[position:], trained=False)
