"""The report of two runs: which settings, data, versions, curves and results differ between them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fmstune.config.metrics import Place, comparable, metrics_of, names_at
from fmstune.flatten import flatten
from fmstune.runs.report import charts
from fmstune.runs.report.cells import change_cell, show_value
from fmstune.runs.report.document import Block, Charts, Document, Text, make_table
from fmstune.runs.report.run_data import Run

_DATA = ("data_hashes", "data_rows", "data_files", "tokens", "model_config_hash", "model_commits", "model_files")
_IN_SETTINGS = ("command", "seed", "learning_rate")
"""Entries of `lock.json` that the settings show already."""


def comparison_document(a: Run, b: Run) -> Document:
    """Return the differences of two runs; values that are equal are counted."""
    locks = (a.lock, b.lock)
    data = [{key: lock[key] for key in _DATA if key in lock} for lock in locks]
    code = [{key: lock[key] for key in lock if key not in (*_DATA, *_IN_SETTINGS)} for lock in locks]
    sections = {
        "Settings": _differences("field", "settings", a.job, b.job),
        "Data and model": _differences("what", "facts of data and model", *data),
        "Code, versions and devices": _differences("what", "facts", *code),
        "Results": _results(a, b),
        "Curves": _curves(a, b),
    }
    title = f"A {a.folder.name} and B {b.folder.name}"
    return Document.of(title, "compared", f"A: {a.folder}, B: {b.folder}", sections)


def _differences(head: str, plural: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Block]:
    """Show the values of two mappings that differ; the folders of the runs always do."""
    if not a or not b:
        yield Text(f"{'Neither run has a' if not a and not b else 'One of the runs has no'} record of its {plural}.")
        return
    first, second = flatten(a), flatten(b)
    names = [name for name in dict.fromkeys([*first, *second]) if name != "output_dir"]
    rows = [[name, _shown(first, name), _shown(second, name)] for name in names if not _is_same(first, second, name)]
    yield make_table((head, "A", "B"), rows)
    yield Text(f"{len(names) - len(rows):,} of {len(names):,} {plural} are the same.")


def _is_same(a: Mapping[str, Any], b: Mapping[str, Any], name: str) -> bool:
    """Whether two values mean the same: a line break does, whether YAML or a shell wrote it."""
    x, y = a.get(name, ...), b.get(name, ...)
    return x == y or (isinstance(x, str) and isinstance(y, str) and show_value(x) == show_value(y))


def _shown(values: Mapping[str, Any], name: str) -> str:
    return show_value(values[name]) if name in values else "(not set)"


def _results(a: Run, b: Run) -> Iterator[Block]:
    yield Text(f"A: {a.status}, B: {b.status}.")
    table = {**metrics_of(a.job), **metrics_of(b.job)}
    scores = [f"{model}.{name}" for model in ("base", "tuned") for name in names_at(table, Place.held_out)]
    names = dict.fromkeys((*scores, *names_at(table, Place.result), *comparable(table)))
    pairs = [(name, a.figure(name), b.figure(name)) for name in names]
    rows = [[name, x, y, change_cell(x, y)] for name, x, y in pairs if (x, y) != (None, None)]
    yield make_table(("", "A", "B", "B − A"), rows)


def _curves(a: Run, b: Run) -> Iterator[Block]:
    found = False
    for name in ("loss", "eval_loss"):
        first, second = dict(a.curve(name)), dict(b.curve(name))
        if steps := sorted(first.keys() & second.keys()):
            found = True
            yield Text(f"{name}: {_curve_difference(first, second, steps)}")
            # the first step, the last one and three between
            sampled = sorted({steps[round(quarter * (len(steps) - 1) / 4)] for quarter in range(5)})
            rows = [[step, first[step], second[step], change_cell(first[step], second[step])] for step in sampled]
            yield make_table(("step", "A", "B", "B − A"), rows)
    if not found:
        yield Text("The runs have no logged step in common.")
        return
    lines = [
        line._replace(label=f"{name}: {line.label}", place=2 * (line.place % 4) + place)
        for place, (name, run) in enumerate((("A", a), ("B", b)))
        for line in charts.loss_lines(run.metrics)
    ]
    yield Charts([charts.draw_curves(lines, charts.LOSS)])


def _curve_difference(a: Mapping[int, float], b: Mapping[int, float], steps: Sequence[int]) -> str:
    """Say from which step on two curves differ, and by how much."""
    different = [step for step in steps if a[step] != b[step]]
    if not different:
        return f"identical at all {len(steps):,} steps that both have logged"
    widest = max(different, key=lambda step: abs(b[step] - a[step]))
    mean = sum(b[step] - a[step] for step in steps) / len(steps)
    differ = f"they differ from step {different[0]:,} on, most at step {widest:,} ({b[widest] - a[widest]:+.4g})"
    return f"{differ}; B − A is {mean:+.4g} in the mean over {len(steps):,} steps"
