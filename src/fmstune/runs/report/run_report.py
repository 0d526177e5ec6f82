"""The report of one run: its result, how the run got there, and how to repeat it."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from fmstune.config.compare_by import figure, is_number
from fmstune.config.metrics import Place, label_with_unit, names_at
from fmstune.config.metrics import Table as Metrics
from fmstune.flatten import flatten
from fmstune.runs import run_folder
from fmstune.runs.report import charts
from fmstune.runs.report.cells import MISSING, Cell, change_cell, number_cell, setting_cell
from fmstune.runs.report.charts import Axes, Line
from fmstune.runs.report.document import Block, Charts, Command, Document, Example, More, Text, make_table
from fmstune.runs.report.run_data import Run
from fmstune.runs.report.terminal_summary import plan_rows
from fmstune.tables import show_bytes

_NO_SCORES = frozenset({"rows", "rows_left_out", "answers_too_long", "answer_tokens", "sets"})
"""Entries of `base` and `tuned` that count what was scored, or hold the scores of parts."""
_LEDGER = (
    ("rows read", "rows_read"),
    ("rows from split conversations", "rows_added"),
    ("rows trained on", "rows_trained"),
    ("dropped: no template", "rows_without_template"),
    ("dropped: no answer", "rows_without_answer"),
    ("dropped: too long", "rows_too_long"),
    ("dropped: also held out", "rows_held_out_too"),
    ("dropped: quarantined", "rows_quarantined"),
    ("trained truncated", "rows_truncated"),
    ("tokens", "tokens_total"),
    ("tokens trained", "tokens_trained"),
    ("tokens cut off", "tokens_cut"),
    ("longest row, tokens", "longest"),
)
_CURVES = (
    ("learning_rate", "Learning rate by step", "learning rate", True),
    ("tokens_per_second", "Speed by step", "tokens a second", True),
    ("mfu", "Model FLOPs utilisation by step", "share of the peak", True),
    ("mean_token_accuracy", "Accuracy on trained tokens by step", "share of tokens", False),
    ("grad_norm", "Norm of the gradient by step", "norm", True),
)
"""Name in `metrics.jsonl`, title, unit, and whether the axis begins at zero."""


_LEG = {"train_seconds": "training, seconds", "step_seconds": "steps alone, seconds", "processes": "processes"}
"""Figures of a leg, beyond its steps."""


def run_document(run: Run) -> Document:
    """Return the report of a run in any state."""
    sections = {
        "Result": [*_result(run), *_scores(run)],
        "Curves": _curves(run),
        "Samples": _samples(run),
        "Cost": _cost(run),
        "Plan and actual": _plan(run),
        "Rows": _ledger(run),
        "Again": repeat_commands(run),
        "Job": _job(run),
        "Made with": _made_with(run),
    }
    return Document.of(f"{run.job.get('name', 'run')}: report of a run", run.status, str(run.folder), sections)


def headline(run: Run) -> str:
    """Say the result in one sentence."""
    if run.status in (run_folder.FAILED, run_folder.INTERRUPTED):
        ended = "failed" if run.status == run_folder.FAILED else "was interrupted"
        return f"The run {ended}: {run.error or 'no cause was recorded'}"
    if changes := list(_changes(run)):
        rows = number_cell(run.figure("tuned.rows")).text
        return f"{capitalize(', '.join(changes))}, on {rows} held-out rows."
    if (loss := run.figure("train_loss")) is not None:
        return f"Train loss {loss:.4g}; no rows were held out, so nothing measures answers to new prompts."
    if not (seen := run.curve("loss")):
        return "The run has no result yet."
    total = run.figure("plan.total_steps")
    steps = f"{total:,}" if total is not None else "?"
    return f"The run has no result yet. It is at step {seen[-1][0]:,} of {steps}, with loss {seen[-1][1]:.4g}."


def capitalize(text: str) -> str:
    """The text with its first letter in upper case, and the others as they are."""
    return text[:1].upper() + text[1:]


def _changes(run: Run) -> Iterator[str]:
    # the last of the table says most to a reader
    for key in reversed(names_at(run.table, Place.headline)):
        name = run.table[key].label
        before, after = run.figure(f"base.{key}"), run.figure(f"tuned.{key}")
        if after is not None:
            yield f"{name} {after:.4g}" if before is None else f"{name} from {before:.4g} to {after:.4g}"


def repeat_commands(run: Run) -> Iterator[Block]:
    """Yield the commands that repeat the run."""
    yield Command(shlex.join(["fmstune", "--from", str(run.folder / run_folder.JOB)]))
    if run.words:
        yield Text("or composed anew, as it was typed:")
        yield Command(shlex.join(["fmstune", *(w for w in run.words if not w.startswith("output_dir="))]))


def _result(run: Run) -> Iterator[Block]:
    yield Text(headline(run), strong=True)
    if run.summary.get("stopped"):
        yield Text(f"Stopped after step {number_cell(run.figure('steps')).text}: {run.summary['stopped']}")


def _scores(run: Run) -> Iterator[Block]:
    base, tuned = run.summary.get("base") or {}, run.summary.get("tuned") or {}
    if not base and not tuned:
        return
    yield make_table(("held-out rows", "base", "tuned", "change"), _score_rows(base, tuned, run.table))
    sets = [one.get("sets") or {} for one in (base, tuned)]
    rows = [
        [f"{name}: {label}", *cells]
        for name in dict.fromkeys([*sets[0], *sets[1]])
        for label, *cells in _score_rows(sets[0].get(name, {}), sets[1].get(name, {}), run.table)
    ]
    yield make_table(("of each set", "base", "tuned", "change"), rows)
    scores = tuned or base
    if _count(scores, "rows_left_out"):
        yield Text(f"{_count(scores, 'rows_left_out'):,} more held-out rows were not scored (evaluation.max_rows).")
    if _count(scores, "answers_too_long"):
        yield Text(f"{_count(scores, 'answers_too_long'):,} answers are longer than max_new_tokens and cannot match.")


def _count(scores: Mapping[str, Any], name: str) -> float:
    value = scores.get(name)
    return value if is_number(value) else 0


def _score_rows(base: Mapping[str, Any], tuned: Mapping[str, Any], metrics: Metrics) -> Iterator[list[Any]]:
    for key in dict.fromkeys(key for key in (*base, *tuned) if key not in _NO_SCORES):
        b, t = _score_cell(base.get(key)), _score_cell(tuned.get(key))
        if {b.text, t.text} != {MISSING}:
            change = "" if b.value is None and t.value is None else change_cell(b.value, t.value)
            yield [label_with_unit(metrics, key), b, t, change]
    yield ["rows scored", base.get("rows"), tuned.get("rows"), ""]


def _score_cell(value: Any) -> Cell:
    if isinstance(value, list) and len(value) == 2 and all(map(is_number, value)):
        return Cell(f"{value[0]:.4g} to {value[1]:.4g}")
    return number_cell(value if is_number(value) else None)


def _curves(run: Run) -> Iterator[Block]:
    losses = charts.loss_lines(run.metrics)
    pictures = [charts.draw_curves(losses, charts.LOSS)] if losses else []
    for name, title, unit, zero in _CURVES:
        if points := run.curve(name):
            axes = Axes(title, "optimizer step", unit, from_zero=zero)
            pictures.append(charts.draw_curves([Line("", points)], axes))
    if pictures:
        yield Charts(pictures, [run_folder.LOSS_PLOT] if (run.folder / run_folder.LOSS_PLOT).is_file() else [])


def _samples(run: Run) -> Iterator[Block]:
    if run.samples:
        yield Text("The first held-out rows, chosen before any answer was seen.")
    for sample in run.samples:
        of = f" of {sample['set']}" if sample.get("set") else ""
        names = [name for name in ("prompt", "expected", "base", "tuned") if sample.get(name) is not None]
        yield Example(f"Held-out row {sample.get('row')}{of}", [(name, str(sample[name])) for name in names])


def _cost(run: Run) -> Iterator[Block]:
    found = ((run.table[name], run.figure(name)) for name in names_at(run.table, Place.cost))
    rows = [[metric.label, number_cell(value, metric.form)] for metric, value in found if value is not None]
    yield make_table(("what", "how much"), rows)
    legs = run.summary.get("legs") or []
    if len(legs) > 1:
        yield Text(f"The run was resumed {'once' if len(legs) == 2 else f'{len(legs) - 1} times'}; its legs:")
        heads = {"from_step": "after step", "to_step": "to step", **_LEG}
        yield make_table(tuple(heads.values()), [[figure(leg, name) for name in heads] for leg in legs])


def _plan(run: Run) -> Iterator[Block]:
    plan = run.summary.get("plan") or {}
    if not plan:
        return
    rows = [[name, *(map(_bytes_cell, pair) if name == "memory" else pair)] for name, *pair in plan_rows(run.summary)]
    yield make_table(("", "planned", "actual"), rows)
    memory = plan.get("memory") or {}
    parts = ", ".join(
        f"{name} {show_bytes(int(value))}" for name, value in memory.items() if is_number(value) and value
    )
    yield Text(f"Planned memory: {parts}. Actual memory leaves out what the libraries take before the model is loaded.")


def _bytes_cell(count: float | None) -> Cell:
    return Cell(MISSING) if count is None else Cell(show_bytes(int(count)), float(count))


def _ledger(run: Run) -> Iterator[Block]:
    data = run.summary.get("data") or {}
    found: dict[str, Mapping[str, Any]] = {}
    for whole, parts in (("train", "sources"), ("held_out", "held_out_sets")):
        title = whole.replace("_", " ")
        found |= {title: data[whole]} if data.get(whole) else {}
        found |= {f"{title}: {name}": one for name, one in (data.get(parts) or {}).items()}
    if not found:
        return
    rows = [[name, *(one.get(key) for one in found.values())] for name, key in _LEDGER]
    yield make_table(("", *found), [row for row in rows if any(row[1:])])
    dropped = sum(run.figure(f"data.{part}.rows_dropped") or 0 for part in ("train", "held_out"))
    yield Text(f"{dropped:,} rows were dropped; each row that was read is counted in one of these lines.")


def _job(run: Run) -> Iterator[Block]:
    fields = flatten(run.job).items()
    if not run.origins:
        yield Text("This run did not record where its values come from.")
        yield make_table(("field", "value"), [[name, setting_cell(value)] for name, value in fields], sortable=True)
        return
    parts: dict[str, list[list[object]]] = {"typed": [], "chosen": [], "default": []}
    for name, value in fields:
        source = run.origins.get(name, "default")
        part = "typed" if source.startswith("command line") else "default" if source == "default" else "chosen"
        parts[part].append([name, setting_cell(value), source])
    tables = {part: make_table(("field", "value", "set by"), rows, sortable=True) for part, rows in parts.items()}
    yield tables["typed"]
    yield More(f"{len(parts['chosen'])} fields that chosen files set", [tables["chosen"]])
    yield More(f"{len(parts['default'])} fields with their defaults", [tables["default"]])


def _made_with(run: Run) -> Iterator[Block]:
    if facts := flatten(run.lock):
        rows = [[name, setting_cell(value)] for name, value in facts.items()]
        yield More("Versions, devices and hashes", [make_table(("what", "value"), rows)])
