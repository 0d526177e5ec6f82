"""A tokenizer's chat template: what it writes for turns, how it ends a turn, whether it takes thoughts as a field."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError

from fmstune import files
from fmstune.data.messages import Message, Span, Tools, Turn
from fmstune.data.template_inputs import check_variables, fitted
from fmstune.data.templates import LimitReached, bounded, check_template, limited, names
from fmstune.data.tokens import PreTrainedTokenizerBase, RowProblem
from fmstune.errors import UserError, in_words

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""As transformers finds it (render_jinja_template in utils/chat_template_utils.py)."""
_TAG = r"(?:<[^\s<>]+>|\[[^\s\[\]]+\])"
"""Tokens that control a model look like this in all families: <|im_end|>, </s>, [/INST]."""
_TAGS, _LAST_TAG = re.compile(rf"{_TAG}+"), re.compile(rf"{_TAG}\Z")
_ONLY_TAGS = re.compile(rf"(?:\s|{_TAG})*")
_PROBE = "7f3a9c"
"""Words that no template writes by itself."""


class Written(NamedTuple):
    """A conversation as a template writes it."""

    text: str
    blocks: tuple[Span, ...] = ()
    """What stands in its `{% generation %}` blocks; none of a template without them."""


class TurnEnd(NamedTuple):
    """What a template writes behind an answer to end it."""

    text: str
    """Such as <|im_end|>; "" where it is nothing but white space."""
    token: int | None
    """The token that it ends with; None where the tokenizer has no token for it."""
    decoded: str
    """The text as the tokenizer gives it back; of a Llama tokenizer ▁ is a space."""


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    source: str
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Values of variables of its own, such as `enable_thinking`."""

    @cached_property
    def marks(self) -> bool:
        """Whether it marks what the assistant says."""
        return _GENERATION.search(self.source) is not None

    def write(self, turns: Sequence[Turn], tools: Tools = None, *, asks: bool = False) -> Written:
        """The conversation; if it `asks`, the words follow that ask the assistant to speak. Raises RowProblem."""
        messages = [turn.message for turn in turns]
        return self._write(list(map(_in_parts, messages)) if self.takes_parts else messages, tools, asks=asks)

    def _write(self, messages: list[Message], tools: Tools = None, *, asks: bool = False) -> Written:
        from transformers.utils.chat_template_utils import render_jinja_template

        with _template_problems(names.get(self.source, "the chat template")), limited(self.source):
            texts, blocks = render_jinja_template(
                [messages],
                tools=tools,
                chat_template=self.source,
                return_assistant_tokens_mask=self.marks,
                add_generation_prompt=asks,
                **{**self.tokenizer.special_tokens_map, **self.variables},
            )
            text = bounded(str(texts[0]))
        return Written(text, tuple(blocks[0]) if blocks else ())

    @cached_property
    def turn_end(self) -> TurnEnd:
        """How it ends an answer in words; of <|end|> and, a line later, <|endoftext|>, the first is the end."""
        behind = self._probed({"content": _PROBE}).rpartition(_PROBE)[2]
        tags = _TAGS.match(behind.lstrip())
        return self._end(tags[0] if tags else behind.strip())

    @cached_property
    def call_end(self) -> TurnEnd:
        """How it ends an answer that calls a tool; "" where it writes no tag for that."""
        call = {"type": "function", "id": "call00001", "function": {"name": _PROBE, "arguments": {}}}
        written = self._probed({"tool_calls": [call]})
        tag = _LAST_TAG.search(written.rstrip()) if _PROBE in written else None
        closes_call = tag is not None and tag[0].startswith("</") and tag[0] != self.tokenizer.eos_token
        return self._end("" if tag is None or closes_call else tag[0])

    @cached_property
    def takes_parts(self) -> bool:
        """Whether it writes no content but a list of parts, as templates of models for images do."""
        question, answer = ({"role": role, "content": _PROBE} for role in ("user", "assistant"))
        plain, parts = [question, answer], [_in_parts(question), _in_parts(answer)]
        return _PROBE not in self._tried(plain) and _PROBE in self._tried(parts)

    @cached_property
    def takes_thoughts(self) -> bool:
        """Whether it writes thoughts that are given in a field of the turn."""
        return _PROBE in self._probed({"content": "Hello", "reasoning_content": _PROBE})

    def end_of_answer(self, text: str, start: int) -> int:
        """Where the answer ends that begins at `start` and is the last of the text: behind what ends its turn."""
        end = self.turn_end.text
        place = text.rfind(end, start) if end else -1
        if place >= 0 and _ONLY_TAGS.fullmatch(text, place + len(end)):
            return place + len(end)
        bare = text.rstrip()
        # white space alone may be what ends a turn
        return max(start, len(bare)) if end or _LAST_TAG.search(bare) else len(text)

    @property
    def training_variant(self) -> str | None:
        """The name of TRL's template for training, where this is one of TRL's for inference."""
        names = (name for name, source in trl_templates().items() if source == self.source.strip())
        return next((f"{name}_training" for name in names if f"{name}_training" in trl_templates()), None)

    def _probed(self, answer: Message) -> str:
        """The template's text of a question and this answer."""
        turns = [Turn({"role": "user", "content": "Hi"}, False), Turn({"role": "assistant", **answer}, True)]
        messages = [turn.message for turn in fitted(turns, self.source)]
        return self._tried(list(map(_in_parts, messages)) if self.takes_parts else messages)

    def _tried(self, messages: list[Message]) -> str:
        """The template's text of these messages; none where it refuses them."""
        try:
            return self._write(messages).text
        except RowProblem:
            return ""

    def _end(self, text: str) -> TurnEnd:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        tag = _LAST_TAG.search(text)
        is_token = tag is not None and self.tokenizer.convert_ids_to_tokens(ids[-1]) == tag[0]
        return TurnEnd(text, ids[-1] if is_token else None, str(self.tokenizer.decode(ids)).strip())


def _in_parts(message: Message) -> Message:
    """The message with its content as a list of one part."""
    return {**message, "content": [{"type": "text", "text": message.get("content") or ""}]}


def chat_template(
    tokenizer: PreTrainedTokenizerBase, tools: Tools = None, variables: Mapping[str, Any] | None = None
) -> ChatTemplate:
    """The template of the tokenizer; of several by name, the one called tool_use for tools, else default."""
    if tokenizer.chat_template is None:
        advice = "set model.chat_template to a Jinja file (package:chatml.jinja ships with fmstune)"
        raise UserError("data.format", f": the model's tokenizer has no chat template; {advice}")
    named = tokenizer.chat_template
    if isinstance(named, dict) and "default" not in named:
        names = ", ".join(named)
        text = f": the model has chat templates called {names}, and none called default; set model.chat_template"
        raise UserError("data.format", text)
    source = tokenizer.get_chat_template(tools=tools)
    if not isinstance(source, str):
        text = f": the model's chat template must be text, found {in_words(source)}; set model.chat_template"
        raise UserError("data.format", text)
    tokens = len(tokenizer), tuple(tokenizer.special_tokens_map.values())
    return _chat_template(tokenizer, source, json.dumps(variables or {}, sort_keys=True), tokens)


def answer_ends(tokenizer: PreTrainedTokenizerBase) -> list[TurnEnd]:
    """What the tokenizer's chat template ends an answer with, in words and in calls; none without a template."""
    named = tokenizer.chat_template
    if named is None or (isinstance(named, dict) and "default" not in named):
        return []
    template = chat_template(tokenizer)
    return list(dict.fromkeys(end for end in (template.turn_end, template.call_end) if end.text))


@lru_cache(maxsize=8)
def _chat_template(tokenizer: PreTrainedTokenizerBase, source: str, variables: str, tokens: Any) -> ChatTemplate:
    """One object for all rows; a token that is added later makes another."""
    given = json.loads(variables)
    try:
        check_template(source)
    except TemplateError as err:
        raise UserError("data.format", f": the chat template cannot be used: {err}; set model.chat_template") from err
    check_variables(source, given)
    return ChatTemplate(tokenizer, source, given)


@lru_cache(maxsize=1)
def trl_templates() -> dict[str, str]:
    """The text of each chat template that TRL ships, by name."""
    return {name: file.read_text(encoding="utf-8").strip() for name, file in files.trl_template_files().items()}


@contextmanager
def _template_problems(name: str) -> Iterator[None]:
    """Turn the errors of a template that cannot write the conversation into RowProblem."""
    try:
        yield
    except LimitReached as err:
        raise RowProblem(f"{name} is stopped, as {err}") from err
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as err:
        raise RowProblem(f"{name} refuses the conversation: {err or type(err).__name__}") from err
