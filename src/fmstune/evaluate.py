"""Held-out rows → how well a model answers them: loss on the answer, exact match of the greedy answer."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from fmstune.job import Evaluation


@dataclass(frozen=True)
class Scores:
    """How a model did on the held-out rows."""

    eval_loss: float
    """Mean negative log-likelihood of an answer's token, end-of-sequence included, in nats."""
    exact_match: float
    """Share of rows whose greedily generated answer equals theirs, white space at both ends aside."""
    rows: int
    rows_left_out: int
    """Held-out rows that `max_rows` kept out."""
    answers_too_long: int
    """Answers of more than `max_new_tokens` tokens, which cannot match."""


def score(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Dataset,
    evaluation: Evaluation,
    *,
    autocast: str | None = None,
) -> Scores:
    """Score the model on held-out rows as `fmstune.data` prepares them.

    The model must have TRL's fused LM head (`SFTTrainer` adds it): the loss never holds all logits at once.
    """
    count = min(len(held_out), evaluation.max_rows or len(held_out))
    rows = held_out.select(range(count))
    # a row that is trained from its first token on has nothing to ask with but the begin of a text
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    prompts = [ids or [begin] for ids in rows["prompt_ids"]]
    expected = list(rows["answer_ids"])
    lengths = [len(ids) for ids in expected]
    # one more for end of sequence
    limit = min(evaluation.max_new_tokens, max(lengths) + 1)
    was_training = model.training
    model.eval()
    with torch.inference_mode(), _autocast(model.device.type, autocast):
        loss = _loss(model, rows, tokenizer.pad_token_id, evaluation.batch_size)
        got = generate(model, tokenizer, prompts, batch_size=evaluation.batch_size, max_new_tokens=limit)
    model.train(was_training)
    # decoded alike, so that neither spaces at a boundary nor a straddling token tells them apart
    wanted = tokenizer.batch_decode(expected, skip_special_tokens=True)
    return Scores(
        eval_loss=loss,
        exact_match=sum(a.strip() == b.strip() for a, b in zip(got, wanted, strict=True)) / count,
        rows=count,
        rows_left_out=len(held_out) - count,
        answers_too_long=sum(length > evaluation.max_new_tokens for length in lengths),
    )


def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
) -> list[str]:
    """Greedy answers to the prompts (token ids), in their order, each as it would be alone.

    Prompts are padded on the left. Under prompt learning they are not padded at all, but grouped by length: PEFT drops
    `position_ids`, so padding would move the text away from the virtual tokens. (Of prefix tuning it keeps them.)
    """
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    answers: list[str] = [""] * len(prompts)
    lengths = [len(prompt) for prompt in prompts]
    with _without_own_generation_config(model):
        for batch in _by_length(lengths, batch_size, equal=_learns_a_prompt(model)):
            encoded = tokenizer.pad(
                {"input_ids": [list(prompts[i]) for i in batch]}, padding_side="left", return_tensors="pt"
            ).to(model.device)
            output = model.generate(**encoded, generation_config=settings)
            new = output[:, encoded["input_ids"].shape[1] :]
            for i, text in zip(batch, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                answers[i] = text
    return answers


@contextmanager
def _without_own_generation_config(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """transformers fills what our settings leave open from the model's own, such as a repetition penalty."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own


def _loss(model: PreTrainedModel | PeftModel, rows: Dataset, pad_token_id: int, batch_size: int) -> float:
    """Summed over all supervised tokens and divided once, so that batching does not change it."""
    collate = DataCollatorForLanguageModeling(pad_token_id=pad_token_id)
    total, supervised = 0.0, 0
    for batch in _by_length([len(ids) for ids in rows["input_ids"]], batch_size):
        examples = [{"input_ids": rows[i]["input_ids"], "labels": rows[i]["labels"]} for i in batch]
        inputs = {key: value.to(model.device) for key, value in collate(examples).items()}
        total -= model(**inputs, use_cache=False, fused_lm_head=True).log_probs.sum().item()
        # the first position has no predecessor that could predict it
        supervised += int((inputs["labels"][:, 1:] != -100).sum())
    return total / max(supervised, 1)


def _by_length(lengths: Sequence[int], batch_size: int, *, equal: bool = False) -> Iterator[list[int]]:
    """Row numbers in batches of like length, or of equal length: less padding, or none."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    groups = [list(group) for _, group in groupby(order, key=lambda i: lengths[i])] if equal else [order]
    for group in groups:
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def _learns_a_prompt(model: PreTrainedModel | PeftModel) -> bool:
    return isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning


def _autocast(device: str, dtype: str | None) -> AbstractContextManager[object]:
    return torch.autocast(device, dtype=getattr(torch, dtype)) if dtype is not None else nullcontext()
