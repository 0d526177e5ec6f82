"""One run → what its report says: the result first, then how it came about, and how to do it again."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from fmstune.config import metrics
from fmstune.config.compare_by import is_number
from fmstune.config.metrics import Place, label_with_unit, names_at
from fmstune.flatten import flatten
from fmstune.runs import run_folder
from fmstune.runs.report import charts
from fmstune.runs.report.charts import Axes, Line
from fmstune.runs.report.document import (
    Block,
    Cell,
    Charts,
    Command,
    Document,
    Example,
    More,
    Section,
    Table,
    Text,
    change,
    number,
    word,
)
from fmstune.runs.report.run_data import Run
from fmstune.units import size

_COUNTS = frozenset({"rows", "rows_left_out", "answers_too_long", "answer_tokens"})
"""Of the scores, what says how much was scored."""
_LEDGER = (
    ("rows read", "rows_read"),
    ("rows trained on", "rows_trained"),
    ("dropped: no template", "rows_without_template"),
    ("dropped: no answer", "rows_without_answer"),
    ("dropped: too long", "rows_too_long"),
    ("dropped: held out too", "rows_held_out_too"),
    ("trained without their end", "rows_truncated"),
    ("tokens", "tokens_total"),
    ("tokens trained", "tokens_trained"),
    ("tokens cut off", "tokens_cut"),
    ("longest row, tokens", "longest"),
)
_STEP = "optimizer step"


def run_document(run: Run) -> Document:
    """The report of a run, whatever it got to."""
    sections = [
        ("Result", [*_result(run), *_scores(run)]),
        ("Curves", _curves(run)),
        ("Samples", _samples(run)),
        ("Cost", _cost(run)),
        ("Plan and actual", _plan(run)),
        ("Rows", _ledger(run)),
        ("Again", repeat_commands(run)),
        ("Job", _job(run)),
        ("Made with", _made_with(run)),
    ]
    kept = [Section(title, made) for title, blocks in sections if (made := list(blocks))]
    return Document(f"{run.job.get('name', 'run')}: report of a run", run.status, str(run.folder), kept)


def headline(run: Run) -> str:
    """What came out, in one sentence."""
    if run.status == run_folder.FAILED or run.status == run_folder.INTERRUPTED:
        return (
            f"The run {'failed' if run.status == run_folder.FAILED else 'was interrupted'}: {run.error or 'no cause'}"
        )
    changes = []
    # the last of the table says most to a reader
    for key in reversed(names_at(run.table, Place.headline)):
        name = run.table[key].label
        before, after = run.figure(f"base.{key}"), run.figure(f"tuned.{key}")
        if after is not None:
            of = f" from {before:.4g}" if before is not None else ""
            changes.append(f"{name}{of} to {after:.4g}" if of else f"{name} {after:.4g}")
    if changes:
        text = ", ".join(changes)
        return f"{text[0].upper()}{text[1:]}, on {run.summary['tuned']['rows']:,} held-out rows."
    loss = run.figure("train_loss")
    if loss is not None:
        return f"Train loss {loss:.4g}; no row was held out, so nothing tells how it does on new ones."
    seen = run.curve("loss")
    at = f" It is at step {seen[-1][0]:,} of {_total_steps(run)}, with loss {seen[-1][1]:.4g}." if seen else ""
    return f"The run has no result yet.{at}"


def repeat_commands(run: Run) -> Iterator[Block]:
    """The commands that repeat the run."""
    yield Command(shlex.join(["fmstune", "--from", str(run.folder / run_folder.JOB)]))
    if run.words:
        words = [word for word in run.words if not word.startswith("output_dir=")]
        yield Text("or, composed anew, as it was typed:")
        yield Command(shlex.join(["fmstune", *words]))


def _result(run: Run) -> Iterator[Block]:
    yield Text(headline(run), strong=True)
    if run.summary.get("stopped"):
        yield Text(f"Stopped after step {run.summary.get('steps', 0):,}: {run.summary['stopped']}")


def _scores(run: Run) -> Iterator[Block]:
    base, tuned = run.summary.get("base") or {}, run.summary.get("tuned") or {}
    if not base and not tuned:
        return
    yield Table(("held-out rows", "base", "tuned", "change"), list(_score_rows(base, tuned, run.table)))
    sets = dict.fromkeys([*base.get("sets", {}), *tuned.get("sets", {})])
    rows = [
        row
        for name in sets
        for one, other in [[part.get("sets", {}).get(name, {}) for part in (base, tuned)]]
        for row in _score_rows(one, other, run.table, f"{name}: ")
    ]
    if rows:
        yield Table(("of each set", "base", "tuned", "change"), rows)
    scores = tuned or base
    if scores.get("rows_left_out"):
        yield Text(f"{scores['rows_left_out']:,} more held-out rows were left out by evaluation.max_rows.")
    if scores.get("answers_too_long"):
        yield Text(f"{scores['answers_too_long']:,} answers are longer than max_new_tokens and cannot match.")


def _score_rows(
    base: Mapping[str, Any], tuned: Mapping[str, Any], table: metrics.Table, before: str = ""
) -> Iterator[list[Cell]]:
    for key in dict.fromkeys([*base, *tuned]):
        if key in _COUNTS or key == "sets":
            continue
        b, t = base.get(key), tuned.get(key)
        if is_number(b) or is_number(t):
            gained = t - b if is_number(b) and is_number(t) else None
            yield [Cell(before + label_with_unit(table, key)), number(b), number(t), change(gained)]
        elif _is_interval(b) or _is_interval(t):
            yield [Cell(before + label_with_unit(table, key)), _interval(b), _interval(t), Cell("")]
    yield [Cell(f"{before}rows scored"), number(base.get("rows")), number(tuned.get("rows")), Cell("")]


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


def _interval(value: Any) -> Cell:
    return Cell(f"{value[0]:.4g} to {value[1]:.4g}") if _is_interval(value) else Cell("–")


def _curves(run: Run) -> Iterator[Block]:
    losses = charts.loss_lines(run.metrics)
    pictures = [charts.draw_curves(losses, charts.LOSS)] if losses else []
    for name, title, unit, zero in (
        ("learning_rate", "Learning rate by step", "learning rate", True),
        ("tokens_per_second", "Speed by step", "tokens a second", True),
        ("mean_token_accuracy", "Accuracy on trained tokens by step", "share of tokens", False),
        ("grad_norm", "Norm of the gradient by step", "norm", True),
    ):
        if points := run.curve(name):
            pictures.append(charts.draw_curves([Line("", points)], Axes(title, _STEP, unit, from_zero=zero)))
    if pictures:
        yield Charts(pictures, [run_folder.LOSS_PLOT] if (run.folder / run_folder.LOSS_PLOT).is_file() else [])


def _samples(run: Run) -> Iterator[Block]:
    if not run.samples:
        return
    yield Text("The first held-out rows, chosen before any answer was seen.")
    for sample in run.samples:
        of = f" of {sample['set']}" if sample.get("set") else ""
        names = ("prompt", "expected", "base", "tuned")
        yield Example(
            f"Held-out row {sample.get('row')}{of}",
            [(name, str(sample[name])) for name in names if sample.get(name) is not None],
        )


def _cost(run: Run) -> Iterator[Block]:
    rows = [
        [Cell(run.table[name].label), number(run.figure(name), run.table[name].form)]
        for name in names_at(run.table, Place.cost)
        if run.figure(name) is not None
    ]
    if rows:
        yield Table(("what", "how much"), rows)


def _plan(run: Run) -> Iterator[Block]:
    plan = run.summary.get("plan") or {}
    if not plan:
        return
    peak, before = run.figure("peak_memory_bytes"), run.figure("memory_before_model_bytes")
    used = peak - before if peak is not None and before is not None else None
    rows = [[Cell("memory"), _bytes(plan.get("total")), _bytes(used)]]
    for name, planned, actual in (
        ("steps", plan.get("total_steps"), run.figure("steps")),
        (
            "parameters",
            plan.get("base_parameters", 0) + plan.get("adapter_parameters", 0),
            run.figure("total_parameters"),
        ),
        ("trainable", plan.get("trainable_parameters"), run.figure("trainable_parameters")),
    ):
        rows.append([Cell(name), number(planned), number(actual)])
    yield Table(("", "planned", "actual"), rows)
    parts = ", ".join(f"{name} {size(value)}" for name, value in plan.get("memory", {}).items() if value)
    yield Text(f"Planned memory: {parts}. Actual is what the process took beyond what the libraries had before.")


def _bytes(count: float | None) -> Cell:
    return Cell("–") if count is None else Cell(size(int(count)), float(count))


def _ledger(run: Run) -> Iterator[Block]:
    data = run.summary.get("data") or {}
    found: dict[str, Mapping[str, Any]] = {}
    for whole, parts in (("train", "sources"), ("held_out", "held_out_sets")):
        if data.get(whole):
            found[whole.replace("_", " ")] = data[whole]
        found |= {f"{whole.replace('_', ' ')}: {name}": one for name, one in data.get(parts, {}).items()}
    if not found:
        return
    rows = [
        [Cell(name), *(number(one.get(key)) for one in found.values())]
        for name, key in _LEDGER
        if any(one.get(key) for one in found.values())
    ]
    yield Table(("", *found), rows)
    dropped = sum(data[part]["rows_dropped"] for part in ("train", "held_out") if data.get(part))
    yield Text(f"{dropped:,} rows were dropped; every row that was read is in one of these lines.")


def _job(run: Run) -> Iterator[Block]:
    fields = list(flatten(run.job).items())
    if not run.origins:
        yield Text("Where the values come from was not recorded when this run began.")
        yield Table(("field", "value"), [_field(name, value) for name, value in fields], sortable=True)
        return
    head = ("field", "value", "set by")
    parts: dict[str, list[list[Cell]]] = {"typed": [], "chosen": [], "default": []}
    for name, value in fields:
        source = run.origins.get(name, "default")
        part = "typed" if source.startswith("command line") else "default" if source == "default" else "chosen"
        parts[part].append(_field(name, value, source))
    if parts["typed"]:
        yield Table(head, parts["typed"], sortable=True)
    yield More(f"{len(parts['chosen'])} fields that chosen files set", [Table(head, parts["chosen"], sortable=True)])
    yield More(f"{len(parts['default'])} fields with their defaults", [Table(head, parts["default"], sortable=True)])


def _field(name: str, value: Any, *source: str) -> list[Cell]:
    return [
        Cell(name),
        word("null" if value is None else str(value).lower() if isinstance(value, bool) else value),
        *map(Cell, source),
    ]


def _made_with(run: Run) -> Iterator[Block]:
    rows = [[Cell(name), word("null" if value is None else value)] for name, value in flatten(run.lock).items()]
    if rows:
        yield More("Versions, devices and hashes", [Table(("what", "value"), rows)])


def _total_steps(run: Run) -> str:
    total = run.figure("plan.total_steps")
    return f"{total:,}" if total is not None else "?"
