"""Answers → bodies of OpenAI's API, whole or in chunks."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fmstune import __version__
from fmstune.serving.engine import Piece, Token


@dataclass(frozen=True)
class Usage:
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def body(self) -> dict[str, int]:
        """The object `usage`."""
        total = self.prompt_tokens + self.completion_tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens, "total_tokens": total}


@dataclass(frozen=True)
class Shape:
    """The shape of the answers to one request: of chat, or of texts."""

    model: str
    is_chat: bool
    logprobs: bool
    prompts: Sequence[Sequence[int]] | None = None
    """The tokens of each prompt, where they are to be told."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        """The body of an answer that is told at once."""
        choices = []
        for index, answer in enumerate(answers):
            said: dict[str, Any]
            if self.is_chat:
                said = {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
            else:
                said = {"text": answer.text}
            if self.prompts is not None:
                said["token_ids"] = list(answer.ids)
                said |= {} if self.is_chat else {"prompt_token_ids": list(self.prompts[index])}
            choices.append({"index": index, **said, **self._end(answer)})
        # those of chat have one prompt, and vLLM tells it once
        told = {"prompt_token_ids": list(self.prompts[0])} if self.prompts is not None and self.is_chat else {}
        return {**self._head(chunk=False), "choices": choices, "usage": usage.body, **told}

    def begin(self, index: int) -> dict[str, Any]:
        """The first chunk of a choice of chat."""
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        return {**self._head(chunk=True), "choices": [choice]}

    def grow(self, index: int, piece: Piece) -> dict[str, Any]:
        """A chunk of a choice."""
        if not self.is_chat:
            return {**self._head(chunk=True), "choices": [{"index": index, "text": piece.text, **self._end(piece)}]}
        delta = {"content": piece.text} if piece.text else {}
        return {**self._head(chunk=True), "choices": [{"index": index, "delta": delta, **self._end(piece)}]}

    def close(self, usage: Usage) -> dict[str, Any]:
        """The last chunk of a stream that tells its usage."""
        return {**self._head(chunk=True), "choices": [], "usage": usage.body}

    def _head(self, *, chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion" + ".chunk" * chunk) if self.is_chat else "text_completion"
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        return {
            "id": f"{prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"fmstune-{__version__}",
        }

    def _end(self, piece: Piece) -> dict[str, Any]:
        told = piece.tokens if self.logprobs else None
        found = None if told is None else _of_chat(told) if self.is_chat else _of_text(told)
        return {"logprobs": found, "finish_reason": piece.finish}


def _of_chat(tokens: Sequence[Token]) -> dict[str, Any]:
    content = [
        {**_of_token(one.text, one.logprob), "top_logprobs": [_of_token(*other) for other in one.likeliest]}
        for one in tokens
    ]
    return {"content": content, "refusal": None}


def _of_token(text: str, logprob: float | None) -> dict[str, Any]:
    # a token that is a part of a character has no text of its own
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


def _of_text(tokens: Sequence[Token]) -> dict[str, Any]:
    offsets, place = [], 0
    for one in tokens:
        offsets.append(place)
        place += len(one.text)
    return {
        "tokens": [one.text for one in tokens],
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": [dict(one.likeliest) for one in tokens],
        "text_offset": offsets,
    }


def joined(pieces: Sequence[Piece]) -> Piece:
    """The answer that has grown by these pieces."""
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    last = pieces[-1]
    return Piece("".join(piece.text for piece in pieces), tokens, last.count, last.finish, last.ids)
