"""Rules that end a training early → what is wrong with them: a metric that this job never logs, or no limit."""

from collections.abc import Iterator

from fmstune.errors import did_you_mean
from fmstune.job import ANSWERED, EarlyStopping, Job, StopWhen, has_held_out, sources

_TRAINED = ("loss", "mean_token_accuracy", "entropy", "grad_norm", "learning_rate")
"""Logged while training, and the same on every process."""
_HELD_OUT = ("loss", "mean_token_accuracy", "entropy")
"""Logged for each set of held-out rows."""


def problems(job: Job) -> Iterator[str]:
    """Why a rule could never hold, or not be read."""
    if job.callbacks.early_stopping is not None:
        yield from _early_stopping(job, job.callbacks.early_stopping)
    if job.callbacks.stop_when is not None:
        yield from _stop_when(job, job.callbacks.stop_when)


def _early_stopping(job: Job, rule: EarlyStopping) -> Iterator[str]:
    yield from _metric(job, "callbacks.early_stopping.metric", rule.metric)
    if rule.patience < 1:
        yield f"callbacks.early_stopping.patience must be at least 1, got {rule.patience}"
    if rule.threshold < 0:
        yield f"callbacks.early_stopping.threshold must be at least 0, got {rule.threshold:g}"


def _stop_when(job: Job, rule: StopWhen) -> Iterator[str]:
    yield from _metric(job, "callbacks.stop_when.metric", rule.metric)
    if rule.below is None and rule.above is None:
        yield "callbacks.stop_when needs a limit; set callbacks.stop_when.below or callbacks.stop_when.above"


def _metric(job: Job, field: str, metric: str) -> Iterator[str]:
    evaluates = job.training.get("eval_strategy", "no") != "no" and has_held_out(job.data)
    known = [*_TRAINED, *_held_out(job)]
    if metric in _TRAINED or (metric in known and evaluates):
        return
    if metric in known:
        yield (
            f"{field}={metric} is measured by evaluating while training; set training.eval_strategy=epoch or steps, "
            "and data.eval or data.eval_fraction"
        )
    else:
        yield f"{field} must be one of {', '.join(known)}; got {metric!r}{did_you_mean(metric, known)}"


def _held_out(job: Job) -> list[str]:
    """The names of what is measured on held-out rows: of each set, where they have names."""
    names = sources(job.data, "train" if job.data.eval is None else "eval")
    prefixes = [f"eval_{name}_" if name else "eval_" for name in names]
    found = [f"{prefix}{measure}" for prefix in prefixes for measure in _HELD_OUT]
    answered = [f"{prefix}{measure}" for prefix in ("eval_", *prefixes) for measure in ANSWERED]
    return [*found, *(dict.fromkeys(answered) if job.evaluation.sample else [])]
