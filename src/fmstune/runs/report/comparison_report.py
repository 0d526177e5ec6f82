"""Two runs → what differs between them: settings, data, versions, curves and results."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fmstune.config.metrics import Place, comparable, metrics_of, names_at
from fmstune.flatten import flatten
from fmstune.runs.report import charts
from fmstune.runs.report.document import Block, Cell, Charts, Document, Section, Table, Text, change, number
from fmstune.runs.report.ranking import show_value
from fmstune.runs.report.run_data import Run

_DATA = ("data_hashes", "data_rows", "data_files", "tokens", "model_config_hash", "model_commits", "model_files")
_TOLD_ELSEWHERE = ("command", "seed")
"""Of `lock.json`, what the settings say already."""
_PARTS = 5
"""Places at which two curves are laid side by side."""


def comparison_document(a: Run, b: Run) -> Document:
    """How two runs differ; what is the same is counted."""
    sections = [
        ("Settings", _fields(a.job, b.job, "field", "settings")),
        ("Data and model", _fields(_locked(a, data=True), _locked(b, data=True), "what", "facts of data and model")),
        ("Code, versions and devices", _fields(_locked(a, data=False), _locked(b, data=False), "what", "facts")),
        ("Results", _results(a, b)),
        ("Curves", _curves(a, b)),
    ]
    kept = [Section(title, made) for title, blocks in sections if (made := list(blocks))]
    return Document(f"A {a.folder.name} and B {b.folder.name}", "compared", f"A: {a.folder}, B: {b.folder}", kept)


def _locked(run: Run, *, data: bool) -> dict[str, Any]:
    kept = {key: value for key, value in run.lock.items() if (key in _DATA) is data}
    return {key: value for key, value in kept.items() if key not in _TOLD_ELSEWHERE}


def _fields(a: Mapping[str, Any], b: Mapping[str, Any], what: str, plural: str) -> Iterator[Block]:
    """What two mappings hold differently; where the runs write to is no difference."""
    if not a or not b:
        yield Text(f"{'Neither run has' if not a and not b else 'One of the runs lacks'} a record of its {plural}.")
        return
    first, second = flatten(a), flatten(b)
    names = [name for name in dict.fromkeys([*first, *second]) if name != "output_dir"]
    rows = [
        [Cell(name), _value(name, first), _value(name, second)]
        for name in names
        if not _same(first.get(name, ...), second.get(name, ...))
    ]
    if rows:
        yield Table((what, "A", "B"), rows)
    yield Text(f"{len(names) - len(rows):,} of {len(names):,} {plural} are the same.")


def _same(x: Any, y: Any) -> bool:
    """Whether two values mean the same: a line break does, whether YAML or a shell wrote it."""
    return x == y or (isinstance(x, str) and isinstance(y, str) and show_value(x) == show_value(y))


def _value(name: str, of: Mapping[str, Any]) -> Cell:
    return Cell(show_value(of[name]) if name in of else "(not there)")


def _results(a: Run, b: Run) -> Iterator[Block]:
    yield Text(f"A: {a.status}, B: {b.status}.")
    table = {**metrics_of(a.job), **metrics_of(b.job)}
    scores = [f"{model}.{name}" for model in ("base", "tuned") for name in names_at(table, Place.held_out)]
    rows = []
    for name in dict.fromkeys((*scores, *names_at(table, Place.result), *comparable(table))):
        x, y = a.figure(name), b.figure(name)
        if x is not None or y is not None:
            difference = y - x if x is not None and y is not None else None
            rows.append([Cell(name), number(x), number(y), change(difference)])
    if rows:
        yield Table(("", "A", "B", "B − A"), rows)


def _curves(a: Run, b: Run) -> Iterator[Block]:
    both = []
    for name in ("loss", "eval_loss"):
        first, second = dict(a.curve(name)), dict(b.curve(name))
        steps = sorted(first.keys() & second.keys())
        if not steps:
            continue
        both.append(name)
        yield Text(f"{name}: {_how(first, second, steps)}")
        at = sorted({steps[round(part * (len(steps) - 1) / max(_PARTS - 1, 1))] for part in range(_PARTS)})
        rows = [[number(s), number(first[s]), number(second[s]), change(second[s] - first[s])] for s in at]
        yield Table(("step", "A", "B", "B − A"), rows)
    if not both:
        yield Text("The runs have no logged step in common.")
        return
    lines = [
        line._replace(label=f"{name}: {line.label}", place=2 * (line.place % 4) + place)
        for place, (name, run) in enumerate((("A", a), ("B", b)))
        for line in charts.loss_lines(run.metrics)
    ]
    yield Charts([charts.draw_curves(lines, charts.LOSS)])


def _how(a: Mapping[int, float], b: Mapping[int, float], steps: Sequence[int]) -> str:
    """Where two curves part, and how far."""
    apart = [step for step in steps if a[step] != b[step]]
    if not apart:
        return f"equal, number for number, at all {len(steps):,} steps that both have logged"
    widest = max(apart, key=lambda step: abs(b[step] - a[step]))
    mean = sum(b[step] - a[step] for step in steps) / len(steps)
    return (
        f"they differ from step {apart[0]:,} on, most at step {widest:,} ({b[widest] - a[widest]:+.4g}); "
        f"B − A is {mean:+.4g} in the mean over {len(steps):,} steps"
    )
