"""The turns and tools of a row, in the shapes of OpenAI, ShareGPT and axolotl → turns as a chat template takes them.

A turn knows what of it is trained; `stretches` finds that in the text that a template made of it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fmstune.data.tokens import RowProblem, Segment, in_words

Message = dict[str, Any]
Tools = list[dict[str, Any]] | None
Span = tuple[int, int]
"""Start and end of a stretch of a rendered text, in characters."""

TRAIN = ("all", "last", "marked")
"""The assistant's turns that are trained: all, the last one, or those with `train: true` or `weight: 1`."""
FLAGS = ("train", "weight")
"""Keys of a turn or of a part of its content that say whether it is trained: axolotl's and OpenAI's."""
SHARE_GPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "tool": "tool", "function": "tool"}
"""Names of `from` in the ShareGPT shape, whose turns are `from` and `value`."""


@dataclass(frozen=True)
class Turn:
    """A turn as a chat template takes it, and what of it is trained."""

    message: Message
    trained: bool
    """Whether the assistant's turn is trained, but for the pieces; the turns of others never are."""
    pieces: tuple[Segment, ...] = ()
    """The whole of `content`, where the flags of its parts say otherwise than `trained` for some of it."""

    @property
    def role(self) -> str:
        """Who speaks."""
        return str(self.message["role"])

    @property
    def content(self) -> str:
        """The words; none in a turn that only calls tools."""
        return str(self.message.get("content") or "")

    @property
    def trains(self) -> bool:
        """Whether anything of the turn is trained."""
        return self.trained or any(piece.trained for piece in self.pieces)


def check_messages(value: Any, field: str, train: str = "all") -> list[Turn]:
    """The turns of a row, checked; nulls are left out, which Parquet and Arrow put in for missing keys."""
    if not isinstance(value, list) or not value:
        raise RowProblem(f"column {field!r} must hold a list of turns, found {in_words(value)}")
    messages = [_message(given, f"column {field!r}: turn {number}") for number, given in enumerate(value, start=1)]
    speaks = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    found = []
    for number, message in enumerate(messages):
        flag = _flag(message, f"column {field!r}: turn {number + 1}")
        if number not in speaks and flag:
            named = f"column {field!r}: turn {number + 1} ({message['role']}) is marked to be trained"
            raise RowProblem(f"{named}, and only the assistant's turns can be; remove its {' and '.join(FLAGS)}")
        chosen = {"all": number in speaks, "last": number in speaks[-1:], "marked": bool(flag)}[train]
        found.append(_turn(message, chosen and flag is not False, f"column {field!r}: turn {number + 1}"))
    return found


def _message(given: Any, place: str) -> Message:
    """The turn with its role and content under OpenAI's names."""
    if not isinstance(given, Mapping):
        raise RowProblem(f"{place} must be an object, found {in_words(given)}")
    message: Message = _without_nulls(given)
    if "from" in message and "role" not in message:
        role = SHARE_GPT_ROLES.get(message["from"])
        if role is None:
            raise RowProblem(f"{place} is from {message['from']!r}; the names are {', '.join(SHARE_GPT_ROLES)}")
        others = {name: one for name, one in message.items() if name not in ("from", "value")}
        message = {"role": role, "content": message.get("value"), **others}
    if not isinstance(message.get("role"), str):
        raise RowProblem(f"{place} has no role; turns have role and content, or from and value")
    if not isinstance(message.get("content"), str | list) and "tool_calls" not in message:
        raise RowProblem(f"{place} has no content (text), found {in_words(message.get('content'))}")
    return message


def _turn(message: Message, trained: bool, place: str) -> Turn:
    """The turn without its flags; the parts of its content are joined."""
    plain = {name: one for name, one in message.items() if name not in FLAGS}
    if not isinstance(message.get("content"), list):
        return Turn(plain, trained)
    pieces = []
    for number, part in enumerate(message["content"], start=1):
        named = f"{place}: part {number}"
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else None
        if not isinstance(text, str):
            raise RowProblem(f"{named} must be text, such as {{'type': 'text', 'text': 'Hi'}}, found {in_words(part)}")
        flag = _flag(part, named)
        pieces.append(Segment(text, trained if flag is None or message["role"] != "assistant" else flag))
    plain["content"] = "".join(piece.text for piece in pieces)
    return Turn(plain, trained, tuple(pieces) if any(piece.trained != trained for piece in pieces) else ())


def _flag(marked: Mapping[str, Any], place: str) -> bool | None:
    """Whether its flags say that it is trained; None where it has none."""
    found = {name: marked[name] for name in FLAGS if marked.get(name) is not None}
    for name, value in found.items():
        if value not in (0, 1):
            wanted = "true or false" if name == "train" else "0 or 1"
            raise RowProblem(f"{place}: {name} must be {wanted}, found {in_words(value)}")
    if len(set(found.values())) > 1:
        says = " and ".join(f"{name} {value!r}" for name, value in found.items())
        raise RowProblem(f"{place} has {says}, which contradict each other; remove one")
    return bool(next(iter(found.values()))) if found else None


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


def stretches(turn: Turn, text: str, span: Span) -> list[Span]:
    """The stretches of the turn's span that are trained; raises RowProblem where a piece of it cannot be found.

    What stands before the content (thoughts) and the calls behind it are trained as the turn is; the end of the turn
    as the piece that it ends.
    """
    if not turn.pieces:
        return [span] if turn.trained else []
    start, end = span
    begin, trained = start, turn.trained
    found: list[tuple[int, int, bool]] = []
    for place, piece in zip(_places(turn, text, span), turn.pieces, strict=True):
        found.append((begin, place, trained))
        begin, trained = place, piece.trained
    if "tool_calls" in turn.message:
        place = text.find(turn.pieces[-1].text.strip(), begin, end) + len(turn.pieces[-1].text.strip())
        found.append((begin, place, trained))
        begin, trained = place, turn.trained
    return _joined([*found, (begin, end, trained)])


def _places(turn: Turn, text: str, span: Span) -> Iterator[int]:
    """Where each piece begins; white space at the ends of the content may be gone."""
    start, end = span
    thoughts = str(turn.message.get("reasoning_content") or "")
    begin = start + max(text[start:end].find(thoughts), 0) + len(thoughts)
    whole = text.find(turn.content.strip(), begin, end)
    position = whole - (len(turn.content) - len(turn.content.lstrip()))
    for piece in turn.pieces:
        if whole < 0:
            position = text.find(piece.text.strip(), begin, end)
            if position < 0:
                raise RowProblem(f"the chat template rewrites {piece.text!r:.60}, so its flag cannot be heeded")
        yield min(max(position, begin), end)
        begin = max(position, begin)
        position += len(piece.text)


def _joined(stretches: Sequence[tuple[int, int, bool]]) -> list[Span]:
    """The trained ones, neighbours as one, without empty ones."""
    found: list[Span] = []
    for start, end, trained in stretches:
        if trained and end > start:
            joins = bool(found) and found[-1][1] == start
            found.append((found.pop()[0] if joins else start, end))
    return found
