"""Prompts in tokens → what a model answers: in batches, each answer as it would be alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from fmstune.models.sharding import gathered_from_all, holds_shard, of_this_process, virtual_tokens


def never_empty(prompt: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The prompt, or the beginning of a text for an empty one, as of a row that is trained from its first token on."""
    return prompt or [tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id]


def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
    stops: Sequence[int] = (),
    stop_texts: Sequence[str] = (),
    sampling: Mapping[str, Any] | None = None,
    show: Callable[[str], None] | None = None,
    behind_prompt: bool = False,
) -> list[str]:
    """Answers to the prompts (token ids), in their order, each as it would be alone, up to one of the `stops`.

    They are greedy, unless `sampling` (fields of GenerationConfig) says otherwise. `stop_texts` end an answer too and
    are cut off. `show` is given each answer's text as it grows; `batch_size` must be 1 then. `behind_prompt` gives the
    text as it continues its prompt: many tokenizers write no space before the first word of what they decode alone.

    Prompts are padded on the left. Under prompt learning they are not padded at all, but grouped by length: PEFT drops
    `position_ids`, so padding would move the text away from the virtual tokens. (Of prefix tuning it keeps them.)
    """
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stops) or tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        stop_strings=list(stop_texts) or None,
        **{"do_sample": False, **(sampling or {})},
    )
    answers: dict[int, str] = {}
    lengths = [len(prompt) for prompt in prompts]
    # each process generates until the last one has ended, as all hold a part of the weights
    more = {"synced_gpus": holds_shard(model), "tokenizer": tokenizer}
    for batch in of_this_process(list(by_length(lengths, batch_size, equal=virtual_tokens(model) > 0))):
        texts = [Continued(tokenizer, prompts[i] if behind_prompt else ()) for i in batch]
        streamer = Streamer(texts[0], stop_texts, show) if show is not None else None
        made = continue_batch(model, tokenizer, [prompts[i] for i in batch], settings, streamer=streamer, **more)
        for i, text, ids in zip(batch, texts, made.tolist(), strict=True):
            answers[i] = cut(text.of(ids), stop_texts)
    for others in gathered_from_all(answers):
        answers |= others
    return [answers[i] for i in range(len(prompts))]


def continue_batch(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: GenerationConfig,
    /,
    **more: Any,
) -> Tensor:
    """The new tokens of each prompt, padded on the right; `more` is for transformers' `generate`."""
    rows = {"input_ids": [list(prompt) for prompt in prompts]}
    encoded = tokenizer.pad(rows, padding_side="left", return_tensors="pt").to(model.device)
    with _without_own_generation_config(model):
        output: Tensor = model.generate(**encoded, generation_config=settings, **more)
    return output[:, encoded["input_ids"].shape[1] :]


def cut(text: str, stop_texts: Sequence[str]) -> str:
    """The text up to the first of the stop texts that is in it."""
    return text[: min([place for stop in stop_texts if (place := text.find(stop)) >= 0], default=len(text))]


class Continued:
    """New tokens → their text behind these old ones."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int]) -> None:
        self.tokenizer, self.before = tokenizer, list(before)
        self.start = self._decoded(self.before)

    def of(self, ids: Sequence[int]) -> str:
        """The text that the tokens add; where they change the text before them, their text alone."""
        whole = self._decoded([*self.before, *ids])
        return whole[len(self.start) :] if whole.startswith(self.start) else self._decoded(ids)

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


class Streamer(BaseStreamer):
    """Hands on an answer's text as it grows; what may still become a stop text or a character is held back."""

    def __init__(self, continued: Continued, stop_texts: Sequence[str], show: Callable[[str], None]) -> None:
        self.continued, self.stop_texts, self.show = continued, stop_texts, show
        self.held = max(map(len, stop_texts), default=1) - 1
        self.ids: list[int] = []
        self.prompt_seen = False
        self.stopped = False
        """Whether one of the stop texts has come."""
        self.shown = 0

    def put(self, value: Tensor) -> None:
        """Take the prompt first, then a token at a time."""
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        self.ids += value.flatten().tolist()
        text = self._text()
        # U+FFFD: the token ends within a character
        self._show(text[: len(text) - self.held].rstrip("\ufffd"))

    def end(self) -> None:
        """Hand on what was held back."""
        self._show(self._text())

    def _text(self) -> str:
        whole = self.continued.of(self.ids)
        text = cut(whole, self.stop_texts)
        self.stopped = len(text) < len(whole)
        return text

    def _show(self, text: str) -> None:
        self.show(text[self.shown :])
        self.shown = max(self.shown, len(text))


@contextmanager
def _without_own_generation_config(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """transformers fills what our settings leave open from the model's own, such as a repetition penalty."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own


def by_length(lengths: Sequence[int], batch_size: int, *, equal: bool = False) -> Iterator[list[int]]:
    """Row numbers in batches of like length, or of equal length: less padding, or none."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    groups = [list(group) for _, group in groupby(order, key=lengths.__getitem__)] if equal else [order]
    for group in groups:
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]
