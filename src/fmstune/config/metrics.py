"""The one table of metrics: each number that a run logs or measures, which way is better, and where it is shown."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from fmstune.config.choices import Direction
from fmstune.config.job import SUPERVISED, Job
from fmstune.errors import Problem, did_you_mean


class Place(Enum):
    """Where a metric is logged, measured or shown."""

    training = "training"  # logged with each training log under its own name, and equal on every process
    evaluation = "evaluation"  # logged with each evaluation while training: `eval_NAME`, of a set `eval_SET_NAME`
    sample = "sample"  # the same, measured on the answers that `evaluation.sample` generates
    labels = "labels"  # measured only where the held-out answers are labels
    held_out = "held_out"  # in `base` and `tuned` of `summary.json`, and of each named set
    table = "table"  # in the table of base against tuned
    headline = "headline"  # in the one sentence about a run, and among the columns of a sweep
    summary = "summary"  # at the top of `summary.json`
    result = "result"  # the same, and equal in a run that repeats another
    cost = "cost"  # the same, in a report's table of costs


@dataclass(frozen=True)
class Metric:
    """A number of a run."""

    label: str  # its name for a reader
    where: tuple[Place, ...]  # where it is logged, measured and shown
    better: Direction | None = None  # which values are better; None where neither end is
    unit: str = ""
    form: str = ".4g"  # format of the value in tables
    progress: str = ""  # format of the value, with its name, in the progress line; empty where it is not shown there


Table = Mapping[str, Metric]
"""Metrics by name."""

_LESS, _MORE = Direction.minimize, Direction.maximize
_COST = (Place.summary, Place.cost)
_RESULT = (Place.summary, Place.result)
_LOGGED = (Place.training, Place.evaluation)
_SCORE = (Place.held_out, Place.sample)
_HELD_OUT = (Place.held_out, Place.table, Place.headline)

OF_EVERY_OBJECTIVE: Table = {
    "loss": Metric("loss", _LOGGED, _LESS, progress="loss {:.4f}"),
    "grad_norm": Metric("norm of the gradient", (Place.training,)),
    "learning_rate": Metric("learning rate", (Place.training,), progress="lr {:.2e}"),
    "eval_loss": Metric("held-out loss", _HELD_OUT, _LESS, form=".4f", progress="eval loss {:.4f}"),
    "train_loss": Metric("train loss", _RESULT, _LESS),
    "steps": Metric("optimizer steps", (*_RESULT, Place.cost), form=","),
    "epochs": Metric("epochs", _COST),
    "train_seconds": Metric("training, seconds", _COST, _LESS, form=",.1f"),
    "step_seconds": Metric("optimizer steps alone, seconds", _COST, _LESS, form=",.1f"),
    "preparation_seconds": Metric("reading and tokenising, seconds", _COST, _LESS, form=",.1f"),
    "load_seconds": Metric("loading the model, seconds", _COST, _LESS, form=",.1f"),
    "tokens_per_second": Metric("tokens a second", _COST, _MORE, form=",.0f", progress="{:,.0f} tokens/s"),
    "tokens_per_second_per_device": Metric("tokens a second and device", _COST, _MORE, form=",.0f"),
    "tflops_per_device": Metric("model TFLOP/s of a device", _COST, _MORE, form=",.3g"),
    "mfu": Metric("model FLOPs utilisation", _COST, _MORE, form=".1%", progress="MFU {:.1%}"),
    "model_flops": Metric("model FLOPs", _COST, form=".3e"),
    "peak_memory_bytes": Metric("peak memory, bytes", (Place.summary,), _LESS, form=","),
    "tokens_trained_on": Metric("tokens trained on", (*_RESULT, Place.cost), form=","),
    "positions": Metric("positions, padding included", _COST, form=","),
    "padding_share": Metric("share of padding", _COST, _LESS, form=".1%"),
    "processes": Metric("processes", _COST, form=","),
}
"""Metrics of a run, whatever it is trained for."""

SFT: Table = {
    "mean_token_accuracy": Metric("accuracy on trained tokens", _LOGGED, _MORE, unit="share of tokens"),
    "entropy": Metric("entropy", _LOGGED, unit="nats"),
    "eval_loss": replace(OF_EVERY_OBJECTIVE["eval_loss"], label="loss on the answer", unit="nats a token"),
    "exact_match": Metric("exact match", (*_HELD_OUT, Place.sample), _MORE, unit="share of rows", form=".3f"),
    "accuracy": Metric("accuracy", (*_SCORE, Place.labels), _MORE, unit="share of rows", form=".3f"),
    "micro_f1": Metric("micro F1", (*_SCORE, Place.labels), _MORE, form=".3f"),
    "macro_f1": Metric("macro F1", (*_SCORE, Place.labels, Place.table), _MORE, form=".3f"),
}
"""Metrics of supervised fine-tuning, in the order of its tables."""


def metrics_of(job: Job | Mapping[str, Any]) -> Table:
    """All metrics of this job, a `Job` or the tree of its file."""
    objective = job.get("objective") if isinstance(job, Mapping) else dataclasses.asdict(job.objective)
    if not isinstance(objective, Mapping) or objective["_target_"] == SUPERVISED._target_:
        return {**OF_EVERY_OBJECTIVE, **SFT}
    return {**OF_EVERY_OBJECTIVE, **{name: _metric(one) for name, one in (objective.get("metrics") or {}).items()}}


def metric_problems(name: str, fields: Any) -> Iterator[Problem]:
    """Yield a problem for each field of one of `objective.metrics` that makes no metric."""
    field, known = f"objective.metrics.{name}", {one.name for one in dataclasses.fields(Metric)}
    if not isinstance(fields, Mapping) or not {"label", "where"} <= fields.keys():
        yield Problem(field, f"must give label and where, got {fields!r}")
        return
    for key in fields.keys() - known:
        yield Problem(f"{field}.{key}", f": unknown field{did_you_mean(str(key), known)} ({', '.join(sorted(known))})")
    places = [place.value for place in Place]
    for word in fields["where"] if isinstance(fields["where"], list) else [fields["where"]]:
        if word not in places:
            yield Problem(f"{field}.where", f"must list some of {', '.join(places)}; got {word!r}")
    if fields.get("better") not in (None, _LESS.value, _MORE.value):
        yield Problem(f"{field}.better", f"must be minimize, maximize or null, got {fields['better']!r}")


def _metric(fields: Mapping[str, Any]) -> Metric:
    better = fields.get("better")
    return Metric(**{**fields, "better": better and Direction(better), "where": tuple(map(Place, fields["where"]))})


def names_at(table: Table, place: Place) -> tuple[str, ...]:
    """The metrics of one place, in the order of the table."""
    return tuple(name for name, metric in table.items() if place in metric.where)


def comparable(table: Table) -> tuple[str, ...]:
    """Numbers at the top of the summary of which less or more is better."""
    return tuple(name for name in names_at(table, Place.summary) if table[name].better is not None)


def better_end(table: Table, figure: str) -> Direction | None:
    """Which values of a figure of `summary.json` are better, by its dotted name; None where that is not known."""
    name = figure.rpartition(".")[2]
    if name in table:
        return table[name].better
    return _LESS if any(word in name for word in ("loss", "seconds", "bytes", "perplexity")) else None


def label_with_unit(table: Table, figure: str) -> str:
    """The name of a figure for a reader, with its unit."""
    name = figure.rpartition(".")[2]
    if name not in table:
        return name.replace("_", " ")
    return table[name].label + (f" ({table[name].unit})" if table[name].unit else "")
