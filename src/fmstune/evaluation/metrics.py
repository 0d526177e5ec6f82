"""Answers and the right ones → metrics with intervals, for each class too, and the table of base against tuned."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fmstune import tables
from fmstune.config.metrics import SFT
from fmstune.files import explain_write_errors, write_json

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Heads and rows."""
LABELS_AT_MOST = 50
"""Different answers; rows with more hold texts, and no labels that could be counted."""
RESAMPLES = 1000
"""Samples of the bootstrap: the bounds of 95 % are known to about a hundredth of their distance."""


class Answers(NamedTuple):
    """A model's answer to each row."""

    wanted: Sequence[int]
    """The number of the right label; no row has another."""
    got: Sequence[int]
    """The number of the label that was answered; -1 for an answer that is not a label."""
    exact: Sequence[bool]
    """Whether the answer is the right one word for word."""
    losses: Sequence[float]
    """Negative log-likelihood of the right answer, its end included, in nats, summed over its tokens."""
    tokens: Sequence[int]
    """Tokens that each loss is a sum over."""
    texts: Sequence[str] = ()
    """The answers in words."""


def key(answer: str) -> str:
    """Return what two spellings of one label share: neither case nor spaces count."""
    return " ".join(answer.casefold().split())


def labels(answers: Iterable[str]) -> list[str]:
    """The different answers in order, each in the first of its spellings."""
    found: dict[str, str] = {}
    for answer in answers:
        found.setdefault(key(answer), answer.strip())
    return sorted(found.values())


class PerClass(NamedTuple):
    """How one label is answered; a share of nothing is 0."""

    precision: float
    recall: float
    f1: float
    support: int
    """Rows with this label."""


def per_class(wanted: Sequence[int], got: Sequence[int], labels: Sequence[str]) -> dict[str, PerClass]:
    """Precision, recall and F1 of each label."""
    right, answered, support = _counts(np.asarray(wanted), np.asarray(got), len(labels))
    shares = zip(_share(right, answered), _share(right, support), _share(2 * right, answered + support), strict=True)
    found = zip(labels, shares, support, strict=True)
    return {label: PerClass(float(p), float(r), float(f1), int(rows)) for label, (p, r, f1), rows in found}


def judge(
    wanted: Sequence[str], got: Sequence[str], labels: Sequence[str], likelihoods: Iterable[tuple[float, int]]
) -> Answers:
    """Compare answers with the right ones; `likelihoods` has the log-likelihood and the tokens of each right one."""
    pairs = list(likelihoods)
    numbers = {key(label): number for number, label in enumerate(labels)}
    return Answers(
        wanted=[numbers.get(key(answer), -1) for answer in wanted],
        got=[numbers.get(key(answer), -1) for answer in got],
        exact=[one.strip() == other.strip() for one, other in zip(wanted, got, strict=True)],
        losses=[-log_likelihood for log_likelihood, _ in pairs],
        tokens=[tokens for _, tokens in pairs],
        texts=[text.strip() for text in got],
    )


def measures(answers: Answers, labels: int) -> dict[str, float]:
    """The measures by name; with no label there are none of labels.

    Micro F1 counts an answer that is not a label as missed only, so that it differs from accuracy where there are such.
    Macro F1 is the mean over the labels that a row has or that were answered.
    """
    wanted, got, exact, losses, tokens = map(np.asarray, answers[:5])
    found = {"eval_loss": float(losses.sum() / max(tokens.sum(), 1)), "exact_match": float(exact.mean())}
    if not labels:
        return found
    right, answered, support = _counts(wanted, got, labels)
    f1 = _share(2 * right, answered + support)
    return found | {
        "accuracy": float((wanted == got).mean()),
        "micro_f1": float(2 * right.sum() / (answered.sum() + support.sum())),
        "macro_f1": float(f1[(answered + support) > 0].mean()),
    }


def compared(tuned: Answers, base: Answers | None, labels: int, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Each model's measures and the change, each with the bounds of 95 % that a bootstrap over the rows gives.

    The same rows are drawn for both models, so that the bounds of the change belong to the paired difference.
    """
    models = (("tuned", tuned), ("base", base))
    arrays = {name: [np.asarray(part) for part in one[:5]] for name, one in models if one is not None}
    count, random = len(tuned.wanted), np.random.default_rng(seed)
    samples = []
    # the first of them is the rows themselves
    for rows in chain([np.arange(count)], (random.integers(0, count, count) for _ in range(RESAMPLES))):
        sample = {name: measures(Answers(*(part[rows] for part in parts)), labels) for name, parts in arrays.items()}
        if base is not None:
            sample["change"] = {key: value - sample["base"][key] for key, value in sample["tuned"].items()}
        samples.append(sample)
    return {
        name: {key: _interval([sample[name][key] for sample in samples]) for key in measured}
        for name, measured in samples[0].items()
    }


def _interval(values: Sequence[float]) -> dict[str, float]:
    """The first value, between the bounds of the others."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return {"value": values[0], "low": float(low), "high": float(high)}


def _counts(wanted: Any, got: Any, labels: int) -> list[Any]:
    """How often each label was answered rightly, was answered, and was right."""
    return [np.bincount(which, minlength=labels) for which in (wanted[wanted == got], got[got >= 0], wanted)]


def _share(part: Any, whole: Any) -> Any:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def cells(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """The rows of the table: measure, base, tuned, change, each with its bounds."""
    for key, one in found["tuned"].items():
        before, change = (found.get(name, {}).get(key) for name in ("base", "change"))
        label, form = SFT[key].label, SFT[key].form
        yield label, _bounded(before, form), _bounded(one, form), _bounded(change, f"+{form}")


def _bounded(one: Mapping[str, float] | None, form: str) -> str:
    return "-" if one is None else f"{one['value']:{form}} [{one['low']:{form}}, {one['high']:{form}}]"


def write_results(out_file: str, report: Mapping[str, Any], shown: Sequence[Table], notes: Sequence[str]) -> None:
    """Print the tables and notes; write the report as JSON, and the tables and notes as Markdown next to it."""
    path, page = Path(out_file), Path(out_file).with_suffix(".md")
    print("\n\n".join("\n".join(part) for part in (*(tables.lines(*table) for table in shown), notes)))
    with explain_write_errors("--out_file", path):
        write_json(path, report)
        parts = [*(markdown(*table) for table in shown), "\n".join(f"- {note}" for note in notes)]
        page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"wrote {path} and {page}")


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown: the first column to the left, the others to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
