"""`fmstune evaluate` in the runner: held-out rows → how a tuned model and its base answer them, in one table."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from fmstune.config import freeze
from fmstune.config.requests import Method, Scoring
from fmstune.data.dataset import prepare_held_out
from fmstune.data.ledger import Ledger
from fmstune.data.tokens import IGNORED, Segment, encode_rows
from fmstune.errors import UserError
from fmstune.evaluation import generate, held_out, metrics
from fmstune.evaluation.metrics import LABELS_AT_MOST, Answers, key
from fmstune.models import tuned
from fmstune.models.trl_internals import add_fused_lm_head, score_supervised_positions_on_cpu
from fmstune.models.tuned import Tuned


class Asked(NamedTuple):
    """A held-out row."""

    input_ids: list[int]
    labels: list[int]
    prompt_ids: list[int]
    answer_ids: list[int]
    answer: str


@dataclass(frozen=True)
class Task:
    """The rows to evaluate, the labels that they may have, and how many rows are not among them."""

    rows: list[Asked]
    labels: tuple[str, ...]
    stops: list[int]
    """Tokens that end an answer."""
    counts: dict[str, int]


def evaluate_rows(request: Scoring) -> int:
    """Evaluate, print the table, and write it with all figures; raises UserError."""
    job = freeze.freeze(request.job or {}, trusted=request.trusted).job
    place, base = tuned.with_base(request)
    tokenizer = tuned.tokenizer_of(place)
    parts = prepare_held_out(job.data, tokenizer.tokenizer, job.seed)
    ledger = Ledger.total([part.ledger for part in parts])
    rows = [row for part in parts for row in _rows(part.rows, tokenizer.tokenizer)]
    found: dict[str, Answers] = {}
    task: Task | None = None
    for name, model in tuned.in_turn(request, place, base, tokenizer):
        task = task or _task(request, rows, ledger, model)
        print(f"evaluating the {name} model on {len(task.rows):,} rows …", file=sys.stderr, flush=True)
        found[name] = _answers(request, task, model)
        del model
    assert task is not None
    _report(request, task, found, base and base.model)
    return 0


def _rows(rows: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[Asked]:
    said = tokenizer.batch_decode(list(rows["answer_ids"]), skip_special_tokens=True)
    ends = held_out.stop_texts(said, tokenizer)
    texts = [generate.cut(text, ends) for text in said]
    for row, text in zip(rows, texts, strict=True):
        asked = generate.never_empty(row["prompt_ids"], tokenizer)
        yield Asked(row["input_ids"], row["labels"], asked, row["answer_ids"], text.strip())


def _task(request: Scoring, rows: list[Asked], ledger: Ledger, model: Tuned) -> Task:
    """Choose the rows, each that is left out counted; raises UserError where none is left."""
    stops = held_out.stops([row.answer_ids for row in rows], model.tokenizer.tokenizer)
    taken = rows[: request.max_rows]
    fitting = [row for row in taken if _room(row, request, model) >= 0]
    allowed = {key(label): label.strip() for label in request.label or metrics.labels(row.answer for row in fitting)}
    known = [row for row in fitting if key(row.answer) in allowed] if request.label else fitting
    if not request.label and len(allowed) > LABELS_AT_MOST:
        if request.method is Method.rank:
            why = f"rank: the rows have {len(allowed):,} different answers, and up to {LABELS_AT_MOST} can be ranked"
            raise UserError("--method", f"{why} unasked; name the labels with --label, or take --method generate")
        allowed = {}
    counts = {
        "rows_read": ledger.rows_read,
        "rows_dropped": ledger.rows_dropped,
        "rows_truncated": ledger.rows_truncated,
        "rows_left_out": len(rows) - len(taken),
        "rows_beyond_positions": len(taken) - len(fitting),
        "rows_with_unknown_label": len(fitting) - len(known),
        "rows": len(known),
    }
    if not known:
        said = "; ".join(_left_out(counts)) or "there is none"
        found = metrics.labels(row.answer for row in fitting)[:LABELS_AT_MOST]
        hint = f"; the answers that the rows have are {', '.join(map(repr, found))}" if found else ""
        raise UserError("", f"no row of {ledger.rows_read:,} is left to evaluate: {said}{hint}")
    return Task(known, tuple(allowed.values()), stops, counts)


def _room(row: Asked, request: Scoring, model: Tuned) -> int:
    """Positions of the model that the row and its answer leave."""
    positions = tuned.positions(model)
    if positions is None:
        return 0
    longest = len(row.answer_ids) if request.method is Method.rank else max(request.max_new_tokens, len(row.answer_ids))
    return positions - max(len(row.input_ids), len(row.prompt_ids) + longest)


def _answers(request: Scoring, task: Task, model: Tuned) -> Answers:
    tokenizer = model.tokenizer.tokenizer
    score_supervised_positions_on_cpu()
    add_fused_lm_head(model.model.get_base_model() if isinstance(model.model, PeftModel) else model.model)
    with torch.inference_mode():
        rows = [{"input_ids": row.input_ids, "labels": row.labels} for row in task.rows]
        scored = held_out.log_likelihoods(model.model, rows, tokenizer.pad_token_id, request.batch_size)
        if request.method is Method.rank:
            texts = _ranked(task, model, request.batch_size)
        else:
            prompts, size, most = [row.prompt_ids for row in task.rows], request.batch_size, request.max_new_tokens
            said = tokenizer.batch_decode([row.answer_ids for row in task.rows], skip_special_tokens=True)
            texts = generate.generate(
                model.model,
                tokenizer,
                prompts,
                batch_size=size,
                max_new_tokens=most,
                stops=task.stops,
                stop_texts=held_out.stop_texts(said, tokenizer),
            )
    return metrics.judge([row.answer for row in task.rows], texts, task.labels, scored)


def _ranked(task: Task, model: Tuned, batch_size: int) -> list[str]:
    """The likeliest label of each row (of equal ones the first), the answer's end not scored: the harness's `acc`."""
    tokenizer = model.tokenizer.tokenizer
    ids = {label: _label_ids(label, task, tokenizer) for label in task.labels}
    sequences = []
    for row in task.rows:
        for label in task.labels:
            answer = without_end(row.answer_ids, task.stops) if key(label) == key(row.answer) else ids[label]
            labels = [IGNORED] * len(row.prompt_ids) + answer
            sequences.append({"input_ids": row.prompt_ids + answer, "labels": labels})
    found = held_out.log_likelihoods(model.model, sequences, tokenizer.pad_token_id, batch_size)
    likelihoods = np.reshape([one.log_likelihood for one in found], (len(task.rows), len(task.labels)))
    # in the row's own spelling, where that is the label
    return [
        row.answer if key(row.answer) == key(task.labels[number]) else task.labels[number]
        for row, number in zip(task.rows, likelihoods.argmax(axis=1), strict=True)
    ]


def _label_ids(label: str, task: Task, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The label's tokens: from a row with that answer, else as they would follow the first prompt."""
    row = next((row for row in task.rows if key(row.answer) == key(label)), None)
    if row is not None:
        return without_end(row.answer_ids, task.stops)
    first = task.rows[0]
    before = str(tokenizer.decode(first.prompt_ids, skip_special_tokens=True))
    whole = str(tokenizer.decode([*first.prompt_ids, *first.answer_ids], skip_special_tokens=True))
    answer = whole[len(before) :]
    space = answer[: len(answer) - len(answer.lstrip())]
    segments = [Segment(before, trained=False), Segment(space + label, trained=True)]
    return without_end(encode_rows([segments], tokenizer, 2**31)[0].answer_ids, [tokenizer.eos_token_id])


def without_end(ids: Sequence[int], stops: Sequence[int]) -> list[int]:
    """The answer without the token that ends it."""
    return list(ids[:-1]) if ids[-1] in stops else list(ids)


def _report(request: Scoring, task: Task, found: dict[str, Answers], base: str | None) -> None:
    compared = metrics.compared(found["tuned"], found.get("base"), len(task.labels), request.seed)
    classes = {name: metrics.per_class(one.wanted, one.got, task.labels) for name, one in found.items()}
    unknown = {name: sum(number < 0 for number in one.got) for name, one in found.items()} if task.labels else {}
    report = {
        "model": request.model,
        "base_model": base,
        # which rows these are
        "data": (request.job or {}).get("data"),
        "method": request.method.value,
        "labels": list(task.labels),
        **task.counts,
        "answers_without_label": unknown,
        "confidence": 0.95,
        "resamples": metrics.RESAMPLES,
        "seed": request.seed,
        **compared,
        "classes": {name: {label: one._asdict() for label, one in each.items()} for name, each in classes.items()},
        "answers": [
            {"wanted": row.answer, **{name: one.texts[i] for name, one in found.items()}}
            for i, row in enumerate(task.rows)
        ],
    }
    heads = (f"{task.counts['rows']:,} rows, by {request.method.value}", "base", "tuned", "change")
    tables: list[metrics.Table] = [(heads, list(metrics.cells(compared)))]
    if of_classes := _class_rows(classes):
        tables.append((("label", "model", "precision", "recall", "F1", "rows"), of_classes))
    metrics.write_results(request.out_file, report, tables, list(_notes(task, unknown)))


_LEFT_OUT = {
    "rows_dropped": "rows were dropped when they were tokenised (data.over_length, data.untrainable)",
    "rows_truncated": "rows were cut to data.max_length",
    "rows_left_out": "more rows were left out by --max_rows",
    "rows_beyond_positions": "rows with their answer are longer than the model's positions, and were left out",
    "rows_with_unknown_label": "rows have an answer that is not a --label, and were left out",
}


def _left_out(counts: Mapping[str, int]) -> Iterator[str]:
    return (f"{counts[name]:,} {text}" for name, text in _LEFT_OUT.items() if counts[name])


def _class_rows(classes: dict[str, dict[str, metrics.PerClass]]) -> list[tuple[str, ...]]:
    return [
        (label, name, f"{one.precision:.3f}", f"{one.recall:.3f}", f"{one.f1:.3f}", f"{one.support:,}")
        for label in classes["tuned"]
        for name in ("base", "tuned")
        if name in classes
        for one in [classes[name][label]]
    ]


def _notes(task: Task, unknown: dict[str, int]) -> Iterator[str]:
    yield f"in brackets: 95 % of {metrics.RESAMPLES:,} bootstrap samples of the rows; a change is of the same rows"
    yield from _left_out(task.counts)
    if not task.labels:
        yield f"more than {LABELS_AT_MOST} different answers: no measures of labels"
    for name, count in unknown.items():
        if count:
            yield f"{count:,} answers of the {name} model are none of the labels, and count as wrong"
