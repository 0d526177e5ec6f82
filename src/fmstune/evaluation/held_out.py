"""Held-out rows → how well a model answers them: loss on the answer, exact match of the greedy answer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fmstune.config.job import Evaluation
from fmstune.data.chat_template import answer_ends
from fmstune.evaluation import metrics
from fmstune.evaluation.generate import by_length, cut, generate, never_empty
from fmstune.files import write_json
from fmstune.models.sharding import gathered_from_all, of_this_process
from fmstune.models.trl_internals import DataCollatorForLanguageModeling
from fmstune.runs import run_folder

SAMPLES = 8
"""Held-out rows whose answers are kept: the first ones, and not those that look well."""


class Sample(NamedTuple):
    """A held-out row with the answer of a model."""

    prompt: str
    expected: str
    answer: str


class Likelihood(NamedTuple):
    """How likely a model finds the supervised tokens of a row."""

    log_likelihood: float
    """Summed over the tokens, in nats."""
    tokens: int


@dataclass(frozen=True)
class Scores:
    """How a model did on the held-out rows."""

    expected: tuple[str, ...]
    """The answer of each row."""
    answers: tuple[str, ...]
    """The generated answer of each row."""
    likelihoods: tuple[Likelihood, ...]
    """Of the expected answers, end-of-sequence included."""
    rows_left_out: int = 0
    """Held-out rows that `max_rows` kept out."""
    answers_too_long: int = 0
    """Answers of more than `max_new_tokens` tokens, which cannot match."""
    labels: tuple[str, ...] = ()
    """The answers that the held-out rows have, where these are labels."""
    prompts: tuple[str, ...] = ()
    """Of the first rows."""

    @property
    def samples(self) -> list[Sample]:
        """The first rows."""
        return list(map(Sample, self.prompts, self.expected, self.answers))

    @property
    def figures(self) -> dict[str, Any]:
        """The figures of the summary; accuracy, micro and macro F1 too where the rows have labels."""
        judged = metrics.judge(self.expected, self.answers, self.labels, self.likelihoods)
        return {
            **metrics.measures(judged, len(self.labels)),
            "rows": len(self.expected),
            "rows_left_out": self.rows_left_out,
            "answers_too_long": self.answers_too_long,
            "answer_tokens": sum(one.tokens for one in self.likelihoods),
        }


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
    rows = held_out.select(range(min(len(held_out), evaluation.max_rows or len(held_out))))
    prompts = [never_empty(ids, tokenizer) for ids in rows["prompt_ids"]]
    expected = list(rows["answer_ids"])
    ends = stops(expected, tokenizer)
    # decoded alike, so that neither spaces at a boundary nor a straddling token makes a difference
    said = tokenizer.batch_decode(expected, skip_special_tokens=True)
    end_texts = stop_texts(said, tokenizer)
    limit = min(evaluation.max_new_tokens, max(map(len, expected)))
    size = evaluation.batch_size
    with _only_scored(model, autocast):
        supervised = rows.select_columns(["input_ids", "labels"]).to_list()
        likelihoods = log_likelihoods(model, supervised, tokenizer.pad_token_id, size)
        got = generate(
            model, tokenizer, prompts, batch_size=size, max_new_tokens=limit, stops=ends, stop_texts=end_texts
        )
    return Scores(
        expected=tuple(cut(text, end_texts) for text in said),
        answers=tuple(got),
        likelihoods=tuple(likelihoods),
        rows_left_out=len(held_out) - len(rows),
        answers_too_long=sum(len(ids) - (ids[-1] in ends) > evaluation.max_new_tokens for ids in expected),
        labels=tuple(labels),
        prompts=tuple(tokenizer.batch_decode(prompts[:SAMPLES], skip_special_tokens=True)),
    )


@contextmanager
def _only_scored(model: PreTrainedModel | PeftModel, autocast: str | None) -> Iterator[None]:
    """Without gradients or dropout, in the dtype of the training; the model trains again afterwards if it did."""
    was_training = model.training
    model.eval()
    # no inference_mode: what FSDP gathers under it could not be trained afterwards
    with torch.no_grad(), torch.autocast(model.device.type, getattr(torch, autocast)) if autocast else nullcontext():
        yield
    model.train(was_training)


def row_likelihoods(
    model: PreTrainedModel | PeftModel,
    held_out: Dataset,
    evaluation: Evaluation,
    *,
    pad_token_id: int,
    autocast: str | None = None,
) -> list[Likelihood]:
    """The log-likelihood of the answer of each row that is evaluated, while the model is trained."""
    rows = held_out.select(range(min(len(held_out), evaluation.max_rows or len(held_out))))
    with _only_scored(model, autocast):
        supervised = rows.select_columns(["input_ids", "labels"]).to_list()
        return log_likelihoods(model, supervised, pad_token_id, evaluation.batch_size)


def labels_of(held_out: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The labels of these rows: their answers, where there are few. None of texts, as most rows have their own."""
    different = {tuple(ids) for ids in held_out["answer_ids"]}
    if 2 * len(different) > len(held_out):
        return []
    found = metrics.labels(tokenizer.batch_decode(sorted(different), skip_special_tokens=True))
    return found if len(found) <= metrics.LABELS_AT_MOST else []


def stops(answers: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer: end-of-sequence, and tokens that end a chat turn."""
    special = {*tokenizer.all_special_ids, *(end.token for end in answer_ends(tokenizer))}
    return sorted({tokenizer.eos_token_id, *(ids[-1] for ids in answers if ids[-1] in special)})


def stop_texts(answers: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return texts that end these answers and stay in them when they are decoded: no special token stands for them."""
    special = set(tokenizer.all_special_ids)
    texts = [end.decoded for end in answer_ends(tokenizer) if end.token not in special]
    return [text for text in texts if any(answer.rstrip().endswith(text) for answer in answers)]


def together(scores: Mapping[str, Scores]) -> dict[str, Any]:
    """The figures over all rows, and of each named set; without the measures of labels where a set holds texts."""
    each = list(scores.values())
    labels = metrics.labels(label for one in each for label in one.labels) if all(one.labels for one in each) else []
    whole = Scores(
        expected=tuple(chain.from_iterable(one.expected for one in each)),
        answers=tuple(chain.from_iterable(one.answers for one in each)),
        likelihoods=tuple(chain.from_iterable(one.likelihoods for one in each)),
        rows_left_out=sum(one.rows_left_out for one in each),
        answers_too_long=sum(one.answers_too_long for one in each),
        labels=tuple(labels),
    )
    sets = {name: one.figures for name, one in scores.items() if name}
    return whole.figures | ({"sets": sets} if sets else {})


def log_likelihoods(
    model: PreTrainedModel | PeftModel, rows: Sequence[Mapping[str, Any]], pad_token_id: int, batch_size: int
) -> list[Likelihood]:
    """The log-likelihood of each row's `labels` under its `input_ids`; as in `score`, processes share the rows out."""
    collate = DataCollatorForLanguageModeling(pad_token_id=pad_token_id)
    found: dict[int, Likelihood] = {}
    for batch in of_this_process(list(by_length([len(row["input_ids"]) for row in rows], batch_size))):
        examples = [{"input_ids": rows[i]["input_ids"], "labels": rows[i]["labels"]} for i in batch]
        inputs = {key: value.to(model.device) for key, value in collate(examples).items()}
        # nothing predicts the first token but virtual tokens, which a base has not
        inputs["labels"][:, 0] = -100
        sums = model(**inputs, use_cache=False, fused_lm_head=True).log_probs.sum(dim=1).tolist()
        counts = (inputs["labels"] != -100).sum(dim=1).tolist()
        found |= {i: Likelihood(*pair) for i, pair in zip(batch, zip(sums, counts, strict=True), strict=True)}
    for others in gathered_from_all(found):
        found |= others
    return [found[i] for i in range(len(rows))]


def keep_samples(folder: Path, scores: Mapping[str, Scores], answered: str) -> None:
    """Add this model's answers to the first held-out rows in `samples.json`."""
    path = folder / run_folder.SAMPLES
    known = {(row["set"], row["row"]): row for row in run_folder.read_or_set_aside(path).get("rows", ())}
    rows = [
        {**known.get((name, number), {}), "set": name, "row": number, "prompt": sample.prompt}
        | {"expected": sample.expected, answered: sample.answer}
        for name, one in scores.items()
        for number, sample in enumerate(one.samples, start=1)
    ]
    write_json(path, {"rows": rows})
