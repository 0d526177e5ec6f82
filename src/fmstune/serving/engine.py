"""Questions in tokens → answers as they grow: one thread owns the model, and answers waiting questions together.

Only greedy questions of one model share a batch, and only where `batch_size` allows it: in float32 they are answered as
each would be alone. A question that draws tokens has a batch of its own, so that its seed decides what is drawn.
"""

import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from fmstune.evaluation.generate import Continued, Streamer, continue_batch
from fmstune.models.sharding import virtual_tokens

log = logging.getLogger(__name__)
Model: TypeAlias = PreTrainedModel | PeftModel
CONTEXT = 8
"""Tokens before one that decide how it is written, such as the space of a first word."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt in tokens, and how it is to be answered."""

    model: str
    prompt: tuple[int, ...]
    max_new_tokens: int
    stops: tuple[int, ...]
    """Tokens that end the answer."""
    stop_texts: tuple[str, ...] = ()
    """Texts that end the answer and are cut off."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    seed: int | None = None
    top_logprobs: int | None = None
    """How many alternatives each token is told with; None tells no log-probabilities."""
    grows: bool = False
    """Whether the text is told as it grows, in place of once at the end."""
    echoes: bool = False
    """Whether the prompt is told first, with the log-probabilities of its tokens."""

    @property
    def greedy(self) -> bool:
        """Whether the likeliest tokens are taken."""
        return self.temperature == 0 or self.top_p == 0


class Token(NamedTuple):
    """A token of an answer with its natural log-probability, before temperature and top_p."""

    text: str
    logprob: float | None
    """None of the first token of a prompt, before which nothing stands."""
    likeliest: list[tuple[str, float]]


@dataclass(frozen=True)
class Piece:
    """What an answer has grown by."""

    text: str = ""
    tokens: tuple[Token, ...] = ()
    """With log-probabilities only, without the token that ended the answer."""
    count: int = 0
    """Tokens of the answer so far, with the one that ends it."""
    finish: str | None = None
    """`stop`, `length` or `cancelled` of the last piece."""
    ids: tuple[int, ...] = ()
    """Of the last piece: all tokens of the answer, with the one that ends it."""


Tell = Callable[[Piece | Exception], None]


class QueueFull(Exception):
    """More questions wait than may."""


@dataclass(eq=False)
class Ticket:
    """A question that waits or is being answered; `tell` is called in the engine's thread."""

    question: Question
    tell: Tell
    cancelled: threading.Event = field(default_factory=threading.Event)


class Engine:
    """Answers questions until it is closed; several threads may ask."""

    def __init__(
        self,
        models: Mapping[str, Callable[[], AbstractContextManager[Model]]],
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 1,
        max_waiting: int = 64,
    ) -> None:
        """`models` gives each model by its name; one model at a time is asked."""
        self._models, self._tokenizer = models, tokenizer
        # rows behind a learned prompt cannot be padded (fmstune.evaluation.generate)
        self._of_one_length = False
        for name in models:
            with models[name]() as model:
                self._of_one_length |= virtual_tokens(model) > 0
        self._batch_size, self.max_waiting = batch_size, max_waiting
        self._waiting: deque[Ticket] = deque()
        self._running: list[Ticket] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Questions that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Questions that are being answered."""
        return len(self._running)

    @property
    def is_alive(self) -> bool:
        """Whether questions are answered."""
        return self._thread.is_alive() and not self._closed

    def ask(self, asked: Sequence[tuple[Question, Tell]]) -> list[Ticket]:
        """Let these questions wait for their answers, all or none; raises QueueFull."""
        tickets = [Ticket(question, tell) for question, tell in asked]
        with self._changed:
            if len(self._waiting) + len(tickets) > self.max_waiting:
                raise QueueFull
            self._waiting.extend(tickets)
            self._changed.notify()
        return tickets

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Free the places of these questions; those that have ended stay as they are."""
        with self._changed:
            for ticket in tickets:
                ticket.cancelled.set()
                with suppress(ValueError):
                    self._waiting.remove(ticket)
                    ticket.tell(Piece(finish="cancelled"))

    def close(self, timeout: float | None = None) -> None:
        """End what is being answered after its next token, and take nothing any more."""
        with self._changed:
            self._closed = True
            left = [*self._waiting, *self._running]
            self._changed.notify()
        self.cancel(left)
        self._thread.join(timeout)

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            try:
                with torch.inference_mode(), self._models[batch[0].question.model]() as model:
                    self._answer(model, batch)
            except Exception as err:
                # the next question may be well: a device out of memory has it back by then
                log.exception("%d questions could not be answered", len(batch))
                for ticket in batch:
                    ticket.tell(err)
            finally:
                self._running = []

    def _next_batch(self) -> list[Ticket] | None:
        """The oldest question and those that can be answered with it; None when the engine is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            first = self._waiting[0].question
            batch = [one for one in self._waiting if one is self._waiting[0] or self._go_together(first, one.question)]
            self._running = batch[: self._batch_size]
            for ticket in self._running:
                self._waiting.remove(ticket)
            return self._running

    def _go_together(self, one: Question, other: Question) -> bool:
        alike = one.model == other.model and one.greedy and other.greedy and not (one.echoes or other.echoes)
        return alike and (len(one.prompt) == len(other.prompt) or not self._of_one_length)

    def _answer(self, model: Model, batch: Sequence[Ticket]) -> None:
        first = batch[0].question
        if first.echoes:
            batch[0].tell(_echo(model, self._tokenizer, first))
        rows = [_Row(ticket, self._tokenizer) for ticket in batch]
        drawing = {} if first.greedy else {"temperature": first.temperature, "top_p": first.top_p, "top_k": 0}
        settings = GenerationConfig(
            max_new_tokens=max(ticket.question.max_new_tokens for ticket in batch),
            pad_token_id=self._tokenizer.pad_token_id,
            bos_token_id=self._tokenizer.bos_token_id,
            do_sample=not first.greedy,
            **drawing,
        )
        if not first.greedy:
            torch.manual_seed(secrets.randbits(63) if first.seed is None else first.seed)
        logits = _Logits()
        wants = any(ticket.question.top_logprobs is not None for ticket in batch)
        continue_batch(
            model,
            self._tokenizer,
            [ticket.question.prompt for ticket in batch],
            settings,
            stopping_criteria=StoppingCriteriaList([_Step(rows, logits)]),
            logits_processor=LogitsProcessorList([logits] if wants else []),
        )


class _Logits(LogitsProcessor):
    """Keeps the model's logits of the newest token, before temperature and top_p change them."""

    def __init__(self) -> None:
        self.newest: Tensor | None = None

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        self.newest = scores
        return scores


class _Step(StoppingCriteria):
    """Gives each row its newest token, and ends the rows one by one."""

    def __init__(self, rows: "Sequence[_Row]", logits: _Logits) -> None:
        self.rows, self.logits = rows, logits

    def __call__(self, ids: Tensor, _scores: object, **_: object) -> Tensor:
        for number, (row, token) in enumerate(zip(self.rows, ids[:, -1].tolist(), strict=True)):
            if not row.ended:
                row.take(token, None if self.logits.newest is None else self.logits.newest[number])
        return torch.tensor([row.ended for row in self.rows], device=ids.device)


class _Row:
    """One question of a batch while its answer grows."""

    def __init__(self, ticket: Ticket, tokenizer: PreTrainedTokenizerBase) -> None:
        self.ticket, self.tokenizer = ticket, tokenizer
        self.ended = False
        self.text, self.tokens = "", list[Token]()
        question = ticket.question
        self.streamer = Streamer(Continued(tokenizer, question.prompt), question.stop_texts, self._grow)
        self.streamer.prompt_seen = True

    def _grow(self, text: str) -> None:
        self.text += text

    def take(self, token: int, logits: Tensor | None) -> None:
        """Add a token, tell what is sure of the text, and see whether it was the last."""
        question, streamer = self.ticket.question, self.streamer
        stops = token in question.stops
        if logits is not None and question.top_logprobs is not None and not stops:
            self.tokens.append(self._with_logprob(token, logits, question.top_logprobs))
        if question.grows or question.stop_texts:
            streamer.put(torch.tensor([token]))
        else:
            streamer.ids.append(token)
        finish = "cancelled" if self.ticket.cancelled.is_set() else "stop" if stops or streamer.stopped else None
        if finish is None and len(streamer.ids) >= question.max_new_tokens:
            finish = "length"
        if finish is not None:
            self.ended = True
            streamer.end()
            # a text that ends the answer may be complete only now
            finish = "stop" if streamer.stopped and finish == "length" else finish
        if finish is not None or (question.grows and self.text):
            ids = () if finish is None else tuple(streamer.ids)
            self.ticket.tell(Piece(self.text, tuple(self.tokens), len(streamer.ids), finish, ids))
            self.text, self.tokens = "", []

    def _with_logprob(self, token: int, logits: Tensor, count: int) -> Token:
        before = [*self.ticket.question.prompt[-CONTEXT:], *self.streamer.ids]
        return _with_logprob(Continued(self.tokenizer, before[-CONTEXT:]), token, logits, count)


def _with_logprob(before: Continued, token: int, logits: Tensor, count: int) -> Token:
    logprobs = logits.float().log_softmax(-1)
    best = logprobs.topk(count)
    likeliest = [
        (_written(before, one), value) for one, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return Token(_written(before, token), float(logprobs[token]), likeliest)


def _echo(model: Model, tokenizer: PreTrainedTokenizerBase, question: Question) -> Piece:
    """The prompt as a piece; the log-probabilities of its tokens where they are asked for."""
    prompt, top = list(question.prompt), question.top_logprobs
    text = str(tokenizer.decode(prompt, skip_special_tokens=True))
    if top is None:
        return Piece(text)
    ids = torch.tensor([prompt], device=model.device)
    # virtual tokens stand before the prompt
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, -len(prompt) :]
    tokens = [Token(_written(Continued(tokenizer, []), prompt[0]), None, [])]
    for at in range(1, len(prompt)):
        before = Continued(tokenizer, prompt[max(at - CONTEXT, 0) : at])
        tokens.append(_with_logprob(before, prompt[at], logits[at - 1], top))
    return Piece(text, tuple(tokens))


def _written(before: Continued, token: int) -> str:
    """How the token is written behind those; a special one, which answers leave out, by its name."""
    return before.of([token]) or str(before.tokenizer.convert_ids_to_tokens(token))
