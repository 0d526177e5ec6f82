"""Held-out rows → how well a model answers them: loss on the answer, exact match of the greedy answer."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fmstune.config.job import Evaluation
from fmstune.evaluation import metrics
from fmstune.evaluation.generate import begin, by_length, generate
from fmstune.models.sharding import gathered_from_all, of_this_process
from fmstune.models.trl_internals import DataCollatorForLanguageModeling

SAMPLES = 8
"""Held-out rows whose answers are kept: the first ones, and not those that look well."""


@dataclass(frozen=True)
class Sample:
    """A held-out row with what a model made of it."""

    prompt: str
    expected: str
    answer: str


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
    answer_tokens: int
    """Trained tokens of these rows, which `eval_loss` is the mean over."""
    labels: tuple[str, ...] = ()
    """The answers that the held-out rows have, where these are labels; no part of the summary, as what follows."""
    expected: tuple[str, ...] = ()
    """The answer of each row."""
    answers: tuple[str, ...] = ()
    """The generated answer of each row."""
    samples: tuple[Sample, ...] = ()
    """The first rows."""

    @property
    def figures(self) -> dict[str, Any]:
        """The figures of the summary; accuracy, micro and macro F1 too where the rows have labels."""
        texts = ("labels", "expected", "answers", "samples")
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in texts}
        return plain | metrics.of_labels(self.expected, self.answers, self.labels)


def score(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Dataset,
    evaluation: Evaluation,
    *,
    labels: Sequence[str] = (),
    autocast: str | None = None,
) -> Scores:
    """Score the model on held-out rows as `fmstune.data.dataset` prepares them, which have these `labels`, or none.

    The model must have TRL's fused LM head (`SFTTrainer` adds it): the loss never holds all logits at once.
    Several processes share the rows out, and each gets the scores of all of them.
    """
    count = min(len(held_out), evaluation.max_rows or len(held_out))
    rows = held_out.select(range(count))
    # a row that is trained from its first token on has nothing to ask with
    prompts = [ids or [begin(tokenizer)] for ids in rows["prompt_ids"]]
    expected = list(rows["answer_ids"])
    ends = stops(expected, tokenizer)
    limit = min(evaluation.max_new_tokens, max(map(len, expected)))
    was_training = model.training
    model.eval()
    # no inference_mode: what FSDP gathers under it could not be trained afterwards
    with torch.no_grad(), _autocast(model.device.type, autocast):
        loss, tokens = _loss(model, rows, tokenizer.pad_token_id, evaluation.batch_size)
        got = generate(model, tokenizer, prompts, batch_size=evaluation.batch_size, max_new_tokens=limit, stops=ends)
    model.train(was_training)
    # decoded alike, so that neither spaces at a boundary nor a straddling token makes a difference
    wanted = tokenizer.batch_decode(expected, skip_special_tokens=True)
    return Scores(
        eval_loss=loss,
        exact_match=sum(a.strip() == b.strip() for a, b in zip(got, wanted, strict=True)) / count,
        rows=count,
        rows_left_out=len(held_out) - count,
        answer_tokens=tokens,
        answers_too_long=sum(len(ids) - (ids[-1] in ends) > evaluation.max_new_tokens for ids in expected),
        labels=tuple(labels),
        expected=tuple(wanted),
        answers=tuple(got),
        samples=tuple(map(Sample, tokenizer.batch_decode(prompts[:SAMPLES], skip_special_tokens=True), wanted, got)),
    )


def labels_of(held_out: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The labels of these rows: their answers, where there are few. None of texts, as most rows have their own."""
    different = {tuple(ids) for ids in held_out["answer_ids"]}
    if 2 * len(different) > len(held_out):
        return []
    found = metrics.labels(tokenizer.batch_decode(sorted(different), skip_special_tokens=True))
    return found if len(found) <= metrics.LABELS_AT_MOST else []


def stops(answers: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer: end-of-sequence, and special tokens that end a chat turn."""
    special = set(tokenizer.all_special_ids)
    return sorted({tokenizer.eos_token_id, *(ids[-1] for ids in answers if ids[-1] in special)})


def together(scores: Mapping[str, Scores]) -> dict[str, Any]:
    """The scores of all sets: means over all rows and answers, and where there are several each set by name."""
    total = sum(one.rows for one in scores.values())
    tokens = sum(one.answer_tokens for one in scores.values())
    whole = {
        "eval_loss": sum(one.eval_loss * one.answer_tokens for one in scores.values()) / max(tokens, 1),
        "exact_match": sum(one.exact_match * one.rows for one in scores.values()) / total,
        "rows": total,
        "rows_left_out": sum(one.rows_left_out for one in scores.values()),
        "answers_too_long": sum(one.answers_too_long for one in scores.values()),
        "answer_tokens": tokens,
    }
    sets = {name: one.figures for name, one in scores.items() if name}
    return {**whole, **_of_labels(list(scores.values())), **({"sets": sets} if sets else {})}


def _of_labels(scores: Sequence[Scores]) -> dict[str, float]:
    """The measures of labels over all sets; none where one of them holds texts."""
    if not all(one.labels for one in scores):
        return {}
    labels = metrics.labels(label for one in scores for label in one.labels)
    expected = [answer for one in scores for answer in one.expected]
    return metrics.of_labels(expected, [answer for one in scores for answer in one.answers], labels)


class Likelihood(NamedTuple):
    """How likely a model finds what is supervised in a row."""

    log_likelihood: float
    """Summed over the tokens, in nats."""
    tokens: int


def log_likelihoods(
    model: PreTrainedModel | PeftModel, rows: Sequence[Mapping[str, Any]], pad_token_id: int, batch_size: int
) -> list[Likelihood]:
    """The log-likelihood of each row's `labels` under its `input_ids`, in batches of like length.

    The model must have TRL's fused LM head. Several processes share the rows out, and each gets all.
    """
    collate = DataCollatorForLanguageModeling(pad_token_id=pad_token_id)
    found: dict[int, Likelihood] = {}
    for batch in of_this_process(list(by_length([len(row["input_ids"]) for row in rows], batch_size))):
        examples = [{"input_ids": rows[i]["input_ids"], "labels": rows[i]["labels"]} for i in batch]
        inputs = {key: value.to(model.device) for key, value in collate(examples).items()}
        sums = model(**inputs, use_cache=False, fused_lm_head=True).log_probs.sum(dim=1).tolist()
        # the first position has no predecessor that could predict it
        counts = (inputs["labels"][:, 1:] != -100).sum(dim=1).tolist()
        found |= {i: Likelihood(*pair) for i, pair in zip(batch, zip(sums, counts, strict=True), strict=True)}
    for others in gathered_from_all(found):
        found |= others
    return [found[i] for i in range(len(rows))]


def _loss(model: PreTrainedModel | PeftModel, rows: Dataset, pad_token_id: int, batch_size: int) -> tuple[float, int]:
    """Summed over all supervised tokens and divided once, so that batching does not change it; and their number."""
    found = log_likelihoods(model, rows.select_columns(["input_ids", "labels"]).to_list(), pad_token_id, batch_size)
    supervised = sum(one.tokens for one in found)
    return -sum(one.log_likelihood for one in found) / max(supervised, 1), supervised


def _autocast(device: str, dtype: str | None) -> AbstractContextManager[object]:
    return torch.autocast(device, dtype=getattr(torch, dtype)) if dtype is not None else nullcontext()
