"""Requests of the API → questions for the engine: prompts in tokens, within the limits of model and server."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fmstune.errors import UserError
from fmstune.evaluation.prompts import Stops
from fmstune.serving.api_requests import AnswerRequest, ApiError, ChatRequest, TextRequest
from fmstune.serving.engine import Question
from fmstune.serving.served_models import Served

TEXT_TOKENS = 16
"""OpenAI's own number of tokens of a completion that does not say it."""


@dataclass(frozen=True)
class Limits:
    """What the server gives to one request."""

    max_new_tokens: int


def chat_questions(request: ChatRequest, served: Served, limits: Limits) -> list[Question]:
    """One question for each of the `n` answers; raises ApiError."""
    asker = served.asker
    if request.chat_template_kwargs and request.chat_template_kwargs != asker.template_kwargs:
        known = json.dumps(asker.template_kwargs)
        text = f"chat_template_kwargs: the model is asked as it was trained, with {known}; leave it out."
        raise ApiError(400, text, param="chat_template_kwargs", code="invalid_value")
    try:
        prompt = asker.of_messages(request.messages) if request.row is None else asker.of_row(request.row)
    except UserError as err:
        text = str(err).replace("messages, row 1: ", "messages: ").replace("row, row 1: ", "row: ")
        raise ApiError(400, text, param="messages" if request.row is None else "row") from None
    asked = request.max_completion_tokens or request.max_tokens
    top = (request.top_logprobs or 0) if request.logprobs else None
    return _questions([prompt.ids], request, served, limits, _Wish(asked, None, top, asker.ends))


def text_questions(request: TextRequest, served: Served, limits: Limits) -> list[Question]:
    """`n` questions for each prompt; raises ApiError."""
    given: Any = request.prompt
    several = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    try:
        prompts = [served.asker.of_text(one).ids if isinstance(one, str) else one for one in several]
    except UserError as err:
        raise ApiError(400, str(err), param="prompt", code="invalid_value") from None
    known = len(served.asker.tokenizer)
    for ids in prompts:
        if not ids or not all(0 <= token < known for token in ids):
            text = f"prompt: token ids must be a list of numbers from 0 to {known - 1:,}, and not empty."
            raise ApiError(400, text, param="prompt", code="invalid_value")
    wish = _Wish(request.max_tokens, TEXT_TOKENS, request.logprobs, Stops([], []))
    return _questions(prompts, request, served, limits, wish)


@dataclass(frozen=True)
class _Wish:
    """What the two kinds of requests name differently."""

    max_new_tokens: int | None
    usual: int | None
    """Tokens where the request does not say; None is as many as there is room for."""
    top_logprobs: int | None
    ends: Stops


def _questions(
    prompts: Sequence[Sequence[int]], request: AnswerRequest, served: Served, limits: Limits, wish: _Wish
) -> list[Question]:
    most = wish.max_new_tokens
    if most is not None and most > limits.max_new_tokens:
        text = f"max_tokens is {most:,}, and this server gives at most {limits.max_new_tokens:,} (--max_new_tokens)."
        raise ApiError(400, text, param="max_tokens", code="invalid_value")
    found = []
    for ids in prompts:
        room = limits.max_new_tokens if served.positions is None else served.positions - len(ids)
        if room < (most or 1):
            text = f"This model's maximum context length is {served.positions:,} tokens. The prompt has {len(ids):,}"
            wanted = f" and {most:,} are asked for" if most else ", which leaves no room for an answer"
            field = "messages" if isinstance(request, ChatRequest) else "prompt"
            raise ApiError(400, f"{text}{wanted}.", param=field, code="context_length_exceeded")
        question = Question(
            model=request.model,
            prompt=tuple(ids),
            max_new_tokens=most or min(room, limits.max_new_tokens, wish.usual or room),
            stops=(served.asker.tokenizer.eos_token_id, *wish.ends.tokens),
            stop_texts=(*request.stop_texts, *wish.ends.texts),
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=request.seed,
            top_logprobs=wish.top_logprobs,
            grows=bool(request.stream),
            echoes=isinstance(request, TextRequest) and bool(request.echo),
        )
        # each answer of the same prompt has a seed of its own, or all would be the same
        seeds = [None if request.seed is None else request.seed + number for number in range(request.n or 1)]
        found += [replace(question, seed=seed) for seed in seeds]
    return found
