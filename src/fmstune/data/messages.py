"""The turns and tools of a row, in the shapes of OpenAI, ShareGPT and axolotl → turns as a chat template takes them.

A turn knows what of it is trained; `stretches` finds that in the text that a template made of it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fmstune.data.tokens import RowProblem, Segment
from fmstune.errors import in_words

Message = dict[str, Any]
Tools = list[dict[str, Any]] | None
Span = tuple[int, int]
"""Start and end of a stretch of a rendered text, in characters."""

FLAGS = ("train", "weight")
"""Keys of a turn or of a part of its content that say whether it is trained: axolotl's and OpenAI's."""
OFFSETS = "train_detail"
"""axolotl's key of a turn for flags of stretches of its content."""
NAMES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function": "tool",
    "function_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
"""Names of other shapes for the roles of OpenAI."""
ROLES = ("user", "assistant", "system", "developer", "tool", "ipython", "observation")
"""Names of `from` in the ShareGPT shape, in addition to NAMES; as a `role`, any name is taken."""
CALLS = ("function_call", "tool_call")
"""Names of `from` whose value is a call, or a list of calls, as JSON text."""
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Keys of a turn that hold its thoughts, of which transformers fills those that a template reads."""
TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of a part of the content that hold text: of Chat Completions and of Responses."""


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


class Columns(NamedTuple):
    """The names of the columns that hold a conversation; all but the first may be missing."""

    messages: str = "messages"
    tools: str = "tools"
    system: str = "system"
    functions: str = "functions"


class Conversation(NamedTuple):
    """The turns of a row and the tools that it offers."""

    turns: list[Turn]
    tools: Tools


def read_conversation(row: Mapping[str, Any], columns: Columns, train: str, *, nulls: bool) -> Conversation:
    """The row's turns and tools, checked; without `nulls`, a nested null stands for a missing key, as in Parquet."""
    values = {name: row.get(name) if nulls else _of_arrow(row.get(name), f"column {name!r}") for name in columns}
    turns = check_messages(values[columns.messages], columns.messages, train)
    system = values[columns.system]
    if system is not None and not isinstance(system, str):
        raise RowProblem(f"column {columns.system!r} must hold text, found {in_words(system)}")
    if system and turns[0].role == "system" and turns[0].content != system:
        raise RowProblem(f"column {columns.system!r} and the first turn are two system turns; keep one of them")
    if system and turns[0].role != "system":
        turns = [Turn({"role": "system", "content": system}, trained=False), *turns]
    tools = check_tools(values[columns.tools], columns.tools)
    functions = check_tools(values[columns.functions], columns.functions)
    if tools and functions:
        raise RowProblem(f"columns {columns.tools!r} and {columns.functions!r} both offer tools; keep one of them")
    return Conversation(turns, tools or functions)


def check_messages(value: Any, field: str, train: str = "all") -> list[Turn]:
    """The turns of a column, checked; `train` says which of the assistant's are trained."""
    value = _parsed(value, f"column {field!r}") if isinstance(value, str) else value
    if not isinstance(value, list) or not value:
        raise RowProblem(f"column {field!r} must hold a list of turns, found {in_words(value)}")
    places = [f"column {field!r}: turn {number}" for number in range(1, len(value) + 1)]
    messages = [_message(given, place) for given, place in zip(value, places, strict=True)]
    last = max((number for number, one in enumerate(messages) if one["role"] == "assistant"), default=None)
    found = []
    for number, (message, place) in enumerate(zip(messages, places, strict=True)):
        flag, speaks = _flag(message, place), message["role"] == "assistant"
        if flag and not speaks:
            named = f"{place} ({message['role']}) is marked to be trained"
            raise RowProblem(f"{named}, and only the assistant's turns can be; remove its {' and '.join(FLAGS)}")
        chosen = {"all": True, "last": number == last, "marked": bool(flag)}[train]
        found.append(_turn(message, speaks and chosen and flag is not False, place))
    return found


def _message(given: Any, place: str) -> Message:
    """The turn with its role, content and calls under OpenAI's names of today."""
    if not isinstance(given, Mapping):
        raise RowProblem(f"{place} must be an object, found {in_words(given)}")
    message: Message = {key: one for key, one in given.items() if one is not None}
    if "role" not in message and "from" in message:
        named = message.pop("from")
        if not isinstance(named, str) or named not in (*NAMES, *ROLES):
            raise RowProblem(f"{place} is from {named!r}; the names are {', '.join([*NAMES, *ROLES])}")
        message["role"] = named
    if not isinstance(message.get("role"), str):
        raise RowProblem(f"{place} has no role; turns have role and content, or from and value")
    if "content" not in message and "value" in message:
        message["content"] = message.pop("value")
    if message["role"] in CALLS:
        message["tool_calls"] = message.pop("content", None)
    elif isinstance(message.get("function_call"), Mapping):
        message["tool_calls"] = [message.pop("function_call")]
    message["role"] = NAMES.get(message["role"], message["role"])
    if "tool_calls" in message:
        message["tool_calls"] = _calls(message["tool_calls"], place)
    if not isinstance(message.get("content"), str | list) and not message.keys() & {"tool_calls", *THOUGHTS}:
        raise RowProblem(f"{place} has no content (text), found {in_words(message.get('content'))}")
    if not isinstance(message.get("content", ""), str | list):
        raise RowProblem(f"{place}: content must be text, or a list of parts, found {in_words(message['content'])}")
    return message


def _calls(value: Any, place: str) -> list[Message]:
    """The calls of a turn in the shape of Chat Completions, each with its arguments as an object."""
    calls = _parsed(value, place) if isinstance(value, str) else value
    calls = [calls] if isinstance(calls, Mapping) else calls
    if not isinstance(calls, list):
        raise RowProblem(f"{place}: tool_calls must be a list of calls, found {in_words(calls)}")
    return [_call(given, f"{place}: call {number}") for number, given in enumerate(calls, start=1)]


def _call(given: Any, place: str) -> Message:
    call = _wrapped(given, place, ("name", "arguments"))
    arguments = call["function"].get("arguments")
    if isinstance(arguments, str):
        # the two are the same call, and a template would encode text twice
        arguments = _parsed(arguments, f"{place}: arguments") if arguments.strip() else None
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, Mapping):
        raise RowProblem(f"{place}: arguments must be an object, or its JSON text, found {in_words(arguments)}")
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _wrapped(given: Any, place: str, inner: Sequence[str]) -> Message:
    """A call or a tool as `{"type": "function", "function": {…}}`, which templates are written for."""
    given = _parsed(given, place) if isinstance(given, str) else given
    if not isinstance(given, Mapping):
        raise RowProblem(f"{place} must be an object, found {in_words(given)}")
    outer: Message = {"type": "function", **{key: one for key, one in given.items() if one is not None}}
    if not isinstance(outer.get("function"), Mapping):
        outer["function"] = {key: outer.pop(key) for key in inner if key in outer}
    if not isinstance(outer["function"].get("name"), str):
        raise RowProblem(f"{place} names no function, found {in_words(given)}")
    return outer


def _turn(message: Message, trained: bool, place: str) -> Turn:
    """The turn without its flags; the parts of its content are joined."""
    plain = {name: one for name, one in message.items() if name not in (*FLAGS, OFFSETS)}
    if OFFSETS in message:
        cut = tuple(_cut(message, trained, f"{place}: {OFFSETS}"))
        return Turn(plain, trained, cut if any(piece.trained != trained for piece in cut) else ())
    if not isinstance(message.get("content"), list):
        return Turn(plain, trained)
    pieces, thoughts = [], ""
    for number, part in enumerate(message["content"], start=1):
        named = f"{place}: part {number}"
        flag = _flag(part, named) if isinstance(part, Mapping) else None
        if isinstance(part, Mapping) and part.get("type") == "thinking" and isinstance(part.get("thinking"), str):
            if flag is not None:
                raise RowProblem(f"{named}: a flag of thoughts is not heeded; set data.format.reasoning for all rows")
            thoughts += part["thinking"]
            continue
        is_text = isinstance(part, Mapping) and part.get("type", "text") in TEXT_PARTS
        if not is_text or not isinstance(part.get("text"), str):
            raise RowProblem(f"{named} must be text, such as {{'type': 'text', 'text': 'Hi'}}, found {in_words(part)}")
        pieces.append(Segment(part["text"], trained if flag is None or message["role"] != "assistant" else flag))
    plain = {**({"reasoning_content": thoughts} if thoughts else {}), **plain}
    plain["content"] = "".join(piece.text for piece in pieces)
    return Turn(plain, trained, tuple(pieces) if any(piece.trained != trained for piece in pieces) else ())


def _cut(message: Message, trained: bool, place: str) -> Iterator[Segment]:
    """The content in pieces; those that `train_detail` says `train: false` of are not trained, as in axolotl."""
    text, details, position = message.get("content"), message[OFFSETS], 0
    keys = ("begin_offset", "end_offset")
    if not isinstance(text, str) or not isinstance(details, list):
        raise RowProblem(f"{place} must be a list, of a turn whose content is text")
    for number, detail in enumerate(details, start=1):
        bounds: list[Any] = [detail.get(key) for key in keys] if isinstance(detail, Mapping) else []
        if not all(type(one) is int for one in bounds) or not position <= bounds[0] <= bounds[1] < len(text):
            wanted = f"begin_offset and end_offset (included), in order and within the {len(text):,} characters"
            raise RowProblem(f"{place}: number {number} must have {wanted}, found {in_words(detail)}")
        yield Segment(text[position : bounds[0]], trained)
        position = bounds[1] + 1
        yield Segment(text[bounds[0] : position], trained and _flag(detail, place) is not False)
    yield Segment(text[position:], trained)


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


def _of_arrow(value: Any, place: str) -> Any:
    """JSON's value of a value of Arrow, without the nulls of missing keys."""
    if isinstance(value, Mapping):
        return {key: _of_arrow(one, f"{place}: {key}") for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_of_arrow(one, f"{place}: {number}") for number, one in enumerate(value, start=1)]
    if value is not None and not isinstance(value, str | int | float):
        # how it was written is not known: as 2025-08-01, or with a time
        raise RowProblem(f"{place} must be text, found {in_words(value)}; write it as text")
    return value


def check_tools(value: Any, field: str) -> Tools:
    """The tools that the row offers, as JSON schemas in the shape of Chat Completions; text is read as JSON."""
    value = _parsed(value, f"column {field!r}") if isinstance(value, str) and value.strip() else value
    if not value or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, list):
        raise RowProblem(f"column {field!r} must hold a list of tools (JSON schemas), found {in_words(value)}")
    places = [f"column {field!r}: tool {number}" for number in range(1, len(value) + 1)]
    inner = ("name", "description", "parameters", "strict")
    return [_wrapped(tool, place, inner) for tool, place in zip(value, places, strict=True)]


def _parsed(text: Any, place: str) -> Any:
    """The value that JSON text stands for."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as err:
        raise RowProblem(f"{place} is broken JSON ({err.msg} at column {err.colno})") from err
    except (TypeError, ValueError, RecursionError) as err:
        raise RowProblem(f"{place} is not JSON that can be read, found {in_words(text)}") from err


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
