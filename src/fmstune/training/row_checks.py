"""Rules on the rows of a job: lengths that the model has positions for, batches, and labels."""

import math
import re
from collections.abc import Iterator

from fmstune.checks.plan_inputs import Rows, Training
from fmstune.config.conditions import read_condition, stop_rules
from fmstune.config.job import Job
from fmstune.config.metrics import Place, metrics_of, names_at
from fmstune.data.dataset import Prepared
from fmstune.errors import Problem
from fmstune.evaluation import held_out as evaluate
from fmstune.evaluation import metrics
from fmstune.models.load import Tokenizer
from fmstune.training.debugging.overfit import Overfit
from fmstune.training.preflight import Checked

_OVERFIT = f"{Overfit.__module__}.{Overfit.__name__}"


def length_problems(job: Job, checked: Checked, rows: Rows) -> Iterator[Problem]:
    """Rows, or packs of rows, with more positions than the model has."""
    positions, virtual = checked.dimensions.max_positions, checked.dimensions.virtual_tokens
    longest = job.data.max_length if job.training.get("packing") else min(rows.longest, job.data.max_length)
    if positions is not None and virtual > positions - 2:
        text = f"={virtual} leaves no room for a row in the {positions:,} positions of the model; lower it"
        yield Problem("peft.num_virtual_tokens", text)
    elif positions is not None and longest + virtual > positions:
        what = "a streamed row may take" if job.data.streaming else "the longest row takes"
        change = f"set data.max_length={positions - virtual}"
        yield Problem("", f"{what} {_tokens(longest, virtual)}, and the model has {positions:,} positions; {change}")


def held_out_problems(job: Job, checked: Checked, prepared: Prepared) -> Iterator[Problem]:
    """Held-out rows, or prompts with the answer to generate, with more positions than the model has."""
    positions, virtual = checked.dimensions.max_positions, checked.dimensions.virtual_tokens
    watched = job.training.get("eval_strategy", "no") != "no"
    if positions is None or not (job.evaluation.enabled or watched) or virtual > positions - 2:
        return  # `length_problems` names too many virtual tokens
    packing, eval_packing = job.training.get("packing", False), job.training.get("eval_packing")
    packs = watched and (packing if eval_packing is None else eval_packing)
    for part in prepared.held_out:
        longest = job.data.max_length if packs else min(part.ledger.longest, job.data.max_length)
        if longest > positions - virtual:
            text = f": the longest held-out row takes {_tokens(longest, virtual)}, and the model has {positions:,}"
            field = f"data.eval.{part.name}" if part.name else "data.eval"
            yield Problem(field, f"{text} positions; set data.max_length={positions - virtual}")
        elif job.evaluation.enabled:
            scored = slice(job.evaluation.max_rows or None)
            prompt, expected = (max(map(len, part.rows[name][scored])) for name in ("prompt_ids", "answer_ids"))
            # no answer gets longer than the longest expected one
            answer = min(job.evaluation.max_new_tokens, expected)
            if prompt + answer > positions - virtual:
                takes = f"the longest held-out prompt takes {_tokens(prompt, virtual)} and its answer up to {answer:,}"
                change = f"set evaluation.max_new_tokens={positions - virtual - prompt}"
                text = f": {takes}, and the model has {positions:,} positions; {change}"
                yield Problem("evaluation.max_new_tokens", text)


def _tokens(count: int, virtual: int) -> str:
    return f"{count:,} tokens" + (f" and {virtual} virtual tokens" if virtual else "")


def batch_problems(training: Training, rows: Rows) -> Iterator[Problem]:
    """Fewer rows than one batch needs, where an incomplete one is dropped; of packed rows the plan knows the least."""
    batch = training.per_device_train_batch_size
    if training.dataloader_drop_last and not training.packing and rows.rows < batch:
        change = "lower it, or set training.dataloader_drop_last=false"
        text = f"=true leaves no batch of {rows.rows:,} rows: training.per_device_train_batch_size={batch}; {change}"
        yield Problem("training.dataloader_drop_last", text)


def one_batch_problems(job: Job, batch: int, rows: Rows) -> Iterator[Problem]:
    """More rows than a batch of all processes, for `debug=overfit`: a command's `data.max_rows` wins over its own."""
    if not any(one["_target_"] == _OVERFIT for one in job.callbacks.others.values()):
        return
    if job.data.streaming:
        yield Problem("data.streaming", "=true: debug=overfit takes one batch at all steps; add data.streaming=false")
    elif rows.rows > batch:
        text = f": debug=overfit trains on one batch, and {rows.rows:,} rows are {math.ceil(rows.rows / batch):,}"
        yield Problem("data.max_rows", f"{text}; set data.max_rows={batch}")


def label_problems(job: Job, prepared: Prepared, tokenizer: Tokenizer) -> Iterator[Problem]:
    """Settings that look at a measure of labels, where the held-out rows have none."""
    early, of_labels = job.callbacks.early_stopping, names_at(metrics_of(job), Place.labels)
    asked = [
        ("training.metric_for_best_model", job.training.get("metric_for_best_model")),
        ("callbacks.early_stopping.metric", early.metric if early is not None else None),
        *(
            ("callbacks.stop_when", name)
            for rule in stop_rules(job.callbacks.stop_when)
            for name in read_condition(rule).names
        ),
        ("compare_by", job.compare_by),
    ]
    for field, metric in asked:
        if metric is None or not metric.endswith(of_labels):
            continue
        # of one set, or of all
        named = [one for one in prepared.held_out if one.name and re.search(rf"[_.]{re.escape(one.name)}[_.]", metric)]
        if not all(evaluate.labels_of(part.rows, tokenizer.tokenizer) for part in named or prepared.held_out):
            labels = f"labels, up to {metrics.LABELS_AT_MOST} different ones"
            needs = f"={metric} needs held-out rows whose answers are {labels}"
            yield Problem(field, f"{needs}; most of these have an answer of their own: take exact_match")
