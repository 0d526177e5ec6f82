"""The summary of a run as text for a terminal; the only module of the parent that is about looks."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fmstune import tables
from fmstune.config.compare_by import figure
from fmstune.config.metrics import Place, Table, names_at
from fmstune.runs import run_folder
from fmstune.tables import show_bytes


def metric_rows(
    base: Mapping[str, Any] | None, tuned: Mapping[str, Any], table: Table
) -> Iterator[tuple[str, str, str, str]]:
    """Yield the lines of the table of base against tuned: metric, base, tuned and change, of what was measured."""
    for key in (name for name in names_at(table, Place.table) if figure(tuned, name) is not None):
        form = table[key].form
        before, after = figure(base or {}, key), figure(tuned, key)
        cells = [f"{value:{form}}" if value is not None else "-" for value in (before, after)]
        change = f"{after - before:+{form}}" if before is not None and after is not None else ""
        yield table[key].label, cells[0], cells[1], change


def render_summary(summary: Mapping[str, Any], folder: Path, table: Table, trust: Sequence[str] = ()) -> str:
    """Result of a run: status, base against tuned, cost, and where the files are; `trust` are flags to repeat it."""
    found: list[str] = []
    if summary.get("tuned"):
        found += ["", *comparison_lines(summary.get("base"), summary["tuned"], table)]
    if "train_loss" in summary:
        found += ["", *_cost(summary)]
    status = summary.get("status", run_folder.FAILED)
    error = (summary.get("error") or {}).get("message")
    found += ["", f"{status}: {folder}" + (f"\n  {error}" if error and status != run_folder.FINISHED else "")]
    if (folder / run_folder.MODEL).is_dir():
        again = shlex.join(["fmstune", "train", "--from", str(folder / run_folder.JOB), *trust])
        found += [f"  model   {folder / run_folder.MODEL}", f"  again   {again}"]
    for name, one in (summary.get("tracking") or {}).items():
        run = f"run {one.get('run')} in " if one.get("run") != one.get("place") else ""
        what = f"{run}{one.get('place')}" if one.get("error") is None else f"left out: {one['error']}"
        found.append(f"  {name:<12}{what}")
    return "\n".join(found)


def comparison_lines(
    base: Mapping[str, Any] | None, tuned: Mapping[str, Any], table: Table, name: str = "held-out rows"
) -> Iterator[str]:
    """The table of base against tuned on the held-out rows, and on each of their sets where they have names."""
    heads = (f"{name}: {_number(tuned, 'rows')}", "base", "tuned", "change")
    yield from tables.lines(heads, list(metric_rows(base, tuned, table)), least=(22, 8, 8, 8))
    for name, one in (tuned.get("sets") or {}).items():
        yield ""
        yield from comparison_lines(((base or {}).get("sets") or {}).get(name), one, table, name)
    if figure(tuned, "rows_left_out"):
        yield f"({_number(tuned, 'rows_left_out')} more held-out rows were left out by evaluation.max_rows)"
    if figure(tuned, "answers_too_long"):
        yield f"({_number(tuned, 'answers_too_long')} answers are longer than max_new_tokens and cannot match)"


def _cost(summary: Mapping[str, Any]) -> Iterator[str]:
    number = partial(_number, summary)
    trainable, total = figure(summary, "trainable_parameters"), figure(summary, "total_parameters")
    share = f" ({trainable / total:.2%})" if trainable is not None and total else ""
    yield f"trained {number('trainable_parameters')} of {number('total_parameters')} parameters{share}"
    speed = f", {number('tokens_per_second', ',.0f')} tokens/s" if figure(summary, "tokens_per_second") else ""
    took = f"{number('steps')} steps in {number('train_seconds', '.1f')} s{_resumes(summary)}"
    yield f"{took}{speed}, train loss {number('train_loss', '.4f')}"
    if summary.get("stopped"):
        yield f"stopped after step {number('steps')}: {summary['stopped']}"
    tokens, positions = figure(summary, "tokens_trained_on"), figure(summary, "positions")
    if tokens is not None and positions and (shared := summary.get("prefix_sharing")):
        saved = (
            f"{_number(shared, 'share_saved', '.1%')} saved, as beginnings that rows of a batch share are computed once"
        )
        yield f"{tokens:,} tokens in {positions:,} positions ({saved})"
    elif tokens is not None and positions:
        yield f"{tokens:,} tokens in {positions:,} positions ({tokens / positions:.1%}; the rest is padding)"
    yield from _speed(summary)
    if summary.get("plan"):
        rows = []
        for name, *pair in plan_rows(summary):
            show = show_bytes if name == "memory" else "{:,}".format
            rows.append((name, *("-" if number is None else show(int(number)) for number in pair)))
        yield ""
        yield from tables.lines(("", "planned", "actual"), rows, least=(22, 13, 13))


def _speed(summary: Mapping[str, Any]) -> Iterator[str]:
    """The speed of a device, over all steps but the first."""
    if figure(summary, "tflops_per_device") is None:
        return
    mfu = f", MFU {_number(summary, 'mfu', '.1%')}" if figure(summary, "mfu") is not None else ""
    tokens = _number(summary, "tokens_per_second_per_device", ",.0f")
    yield f"a device: {tokens} tokens/s, {_number(summary, 'tflops_per_device', ',.3g')} TFLOP/s of the model{mfu}"


def _resumes(summary: Mapping[str, Any]) -> str:
    """Say after which steps the run was resumed; empty where it was not."""
    steps = [number for leg in summary.get("legs") or () if (number := figure(leg, "from_step"))]
    return f" (resumed after step {', '.join(f'{step:,}' for step in steps)})" if steps else ""


def _number(values: Mapping[str, Any], name: str, form: str = ",") -> str:
    """Return a number as it is shown; a dash where a damaged or an unfinished summary has none."""
    found = figure(values, name)
    return "-" if found is None else f"{found:{form}}"


def plan_rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, float | None, float | None]]:
    """Yield the planned and the actual memory in bytes, steps and parameters; None where a number is not known."""
    planned, actual = partial(figure, summary.get("plan") or {}), partial(figure, summary)
    peak, before = actual("peak_memory_bytes"), actual("memory_before_model_bytes")
    # the libraries take their share before the model is loaded, which no plan can know
    yield "memory", planned("total"), None if peak is None or before is None else peak - before
    yield "steps", planned("total_steps"), actual("steps")
    yield (
        "parameters",
        (planned("base_parameters") or 0) + (planned("adapter_parameters") or 0),
        actual("total_parameters"),
    )
    yield "trainable", planned("trainable_parameters"), actual("trainable_parameters")
