"""What `serve` and `chat` answer with: the tuned model and its base by name, one tokenizer, and how each is asked."""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from fmstune.config.after_training.serving import Serving, Talk
from fmstune.data import formats
from fmstune.data.format_loading import question_row
from fmstune.data.read import Row
from fmstune.errors import UserError, naming_flag
from fmstune.evaluation import prompts
from fmstune.evaluation.prompts import Prompt, Stops
from fmstune.models import tuned
from fmstune.models.sharding import as_base
from fmstune.serving.engine import Model

TUNED, BASE = "tuned", "base"
_CHAT = f"{formats.__name__}.chat"
_PLACE = "messages"
"""In place of a file in the problems of a question."""


@dataclass(frozen=True)
class Asker:
    """Makes prompts of what users say, in the format that the model was tuned in; several threads may call it."""

    tokenizer: PreTrainedTokenizerBase
    format: Mapping[str, Any] | None
    """None where nothing says how the model is asked; it continues texts then."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """One thread at a time tokenises: a fast tokenizer may not be changed while another thread uses it."""

    @property
    def is_chat(self) -> bool:
        """Whether the model takes conversations."""
        return self.format is not None and self.format["_target_"] == _CHAT

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """The values that the chat template is given."""
        return dict((self.format or {}).get("template_kwargs") or {})

    @cached_property
    def name(self) -> str:
        """The format as messages name it."""
        return "no format" if self.format is None else str(self.format["_target_"]).removeprefix(f"{formats.__name__}.")

    @cached_property
    def ends(self) -> Stops:
        """What ends an answer, besides end-of-sequence."""
        return Stops([], []) if self.format is None else prompts.turn_ends(self.format, self.tokenizer)

    def of_text(self, text: str) -> Prompt:
        """The text as it is, as `fmstune generate` asks it without a format; raises UserError for half a character."""
        try:
            text.encode()
        except UnicodeEncodeError as err:
            raise UserError("prompt", f"holds half a character (a lone surrogate) at {err.start:,}; remove it") from err
        with self.lock:
            return prompts.of_texts([text], self.tokenizer)[0]

    def of_row(self, row: Mapping[str, Any]) -> Prompt:
        """The prompt of a row of the run's format; raises UserError for a row that does not fit."""
        if self.format is None:
            raise UserError("row", "needs a data format, and nothing says which; start the server with --format CHOICE")
        with self.lock:
            return prompts.of_rows([Row("row", 1, dict(row))], self.format, self.tokenizer)[0]

    def of_messages(self, messages: Sequence[Mapping[str, Any]]) -> Prompt:
        """The conversation in the model's chat template, or its one question in another format; raises UserError."""
        if self.format is None:
            raise UserError(_PLACE, "need a chat template, and the model has none; send its text to /v1/completions")
        if messages[-1].get("role") == "assistant":
            raise UserError(_PLACE, "end with a turn of the assistant; the last turn must ask it to speak")
        if self.is_chat:
            row: dict[str, Any] = {self.format.get("messages_field", "messages"): list(messages)}
        else:
            row = self._question(messages)
        with self.lock:
            return prompts.of_rows([Row(_PLACE, 1, row)], self.format, self.tokenizer)[0]

    def _question(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The row that asks one question, in a format that has no turns."""
        assert self.format is not None
        other = f"the model was tuned on rows of the format {self.name}"
        if len(messages) != 1 or messages[0].get("role") != "user":
            hint = "send one message of the user, without system or earlier turns"
            raise UserError(_PLACE, f"cannot be a conversation: {other}; {hint}")
        content = messages[0].get("content")
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        if not isinstance(content, str):
            raise UserError(_PLACE, "must have text as content")
        row = question_row(self.format, content)
        if row is None:
            raise UserError(_PLACE, f"cannot be asked: {other}, which does not say where a text goes; send `row`")
        return row


class Served(NamedTuple):
    """The models by name, over as few copies of the weights as can be."""

    models: Mapping[str, Callable[[], AbstractContextManager[Model]]]
    asker: Asker
    positions: int | None
    """Most tokens of a prompt with its answer; None where the model does not say."""
    exact_batches: bool
    """Whether a question is answered in a batch as it is alone."""


def load_served(request: Serving | Talk) -> Served:
    """Load the tuned model and, where it is known and wanted, its base; raises UserError where one cannot be."""
    # the model is a word of the command and no flag
    with naming_flag("serve" if isinstance(request, Serving) else "chat", ["--model"]):
        place, base = tuned.with_base(request)
    tokenizer = tuned.tokenizer_of(place)
    asker = Asker(tokenizer.tokenizer, _format(request, tokenizer.tokenizer))
    load = partial(tuned.load_tuned, dtype=request.dtype, attention=request.attention, device=request.device)
    model = load(place, tokenizer)
    models: dict[str, Callable[[], AbstractContextManager[Model]]] = {TUNED: lambda: nullcontext(model.model)}
    if base is not None and place.base is not None:
        models[BASE] = lambda: _without_adapter(model.model)
    elif base is not None:
        untuned = load(base, tokenizer)
        models[BASE] = lambda: nullcontext(untuned.model)
    # now and not when the first are asked: problems of the format, and what the tokenizer sets up
    asker.of_text("")
    _ = asker.ends
    exact = next(model.model.parameters()).dtype == torch.float32
    return Served(models, asker, tuned.positions(model), exact)


def _format(request: Serving | Talk, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Any] | None:
    """The format of the request; chat only where the tokenizer has a template."""
    if request.format is None or request.format["_target_"] != _CHAT or tokenizer.chat_template is not None:
        return request.format
    print("fmstune: note: the model has no chat template, so it continues texts", file=sys.stderr)
    return None


@contextmanager
def _without_adapter(model: Model) -> Iterator[Model]:
    assert isinstance(model, PeftModel)
    with as_base(model):
        yield model
