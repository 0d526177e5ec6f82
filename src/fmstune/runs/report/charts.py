"""Curves and points → pictures (SVG for a page, PNG for `loss.png`) legible in print and for the colour-blind."""

import html
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fmstune.config.compare_by import curve, is_number

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C7B00")
"""By Okabe and Ito (Color Universal Design, 2008), with a darker yellow that can be seen on white."""
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MOST_POINTS = 12_000
"""Points of all lines of a chart together, so that a page stays small; longer lines are averaged."""
MOST_OF_A_LINE = 600
_LOOKS = {
    # text stays text: small, and found by a search
    "svg.fonttype": "none",
    "svg.hashsalt": "fmstune",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # names of users may hold dollars
    "text.parse_math": False,
}


class Line(NamedTuple):
    """A curve with its name in the legend; `place` chooses its colour and style."""

    label: str
    points: Sequence[tuple[float, float]]
    place: int = 0
    marked: bool = False
    """Few points that are to be seen as such."""


class Axes(NamedTuple):
    """Title and labels of a chart, units included, and the scales of its axes."""

    title: str
    x: str
    y: str
    log_x: bool = False
    log_y: bool = False
    from_zero: bool = False


class Spot(NamedTuple):
    """A group of runs in a chart of a setting: its value, the mean, the spread over seeds, and each run."""

    value: Any
    mean: float
    spread: float
    scores: Sequence[float]


class Series(NamedTuple):
    """Spots of one colour in a chart of a setting."""

    label: str
    spots: Sequence[Spot]
    joined: bool = True
    """A line leads from each to the next."""


LOSS = Axes("Loss by step", "optimizer step", "loss (nats a trained token)", from_zero=True)


def loss_lines(metrics: Sequence[Mapping[str, Any]]) -> list[Line]:
    """The losses of training and of each held-out set."""
    names = {key for line in metrics for key in line if key.startswith("eval_") and key.endswith("loss")}
    lines = [Line("train", curve(metrics, "loss"))]
    for place, name in enumerate(sorted(names), start=1):
        of = name.removeprefix("eval_").removesuffix("loss").strip("_")
        lines.append(Line(f"held out {of}".strip(), curve(metrics, name), place, marked=True))
    return [line for line in lines if line.points]


def draw_curves(lines: Sequence[Line], axes: Axes) -> str:
    """The lines as SVG."""
    with mpl.rc_context(_LOOKS):
        return _svg(_curves(lines, axes), axes.title)


def save_curves(lines: Sequence[Line], axes: Axes, path: Path) -> None:
    """The lines as PNG."""
    with mpl.rc_context(_LOOKS):
        figure = _curves(lines, axes, size=(7, 4))
        figure.set_dpi(120)
        canvas = FigureCanvasAgg(figure)
        # as savefig does it, less its first drawing, which is only for the layout: half of the time
        layout = figure.get_layout_engine()
        assert layout is not None
        layout.execute(figure)
        figure.set_layout_engine("none")
        # 34 kB instead of 29, in a fifth less time
        canvas.print_png(path, pil_kwargs={"compress_level": 3})


def draw_setting(series: Sequence[Series], axes: Axes) -> str:
    """One setting against a figure as SVG: a line for each choice of the others, a bar for the spread over seeds."""
    with mpl.rc_context(_LOOKS):
        figure = Figure(figsize=(5.4, 3.5), layout="constrained")
        plot = figure.subplots()
        values = list({repr(spot.value): spot.value for one in series for spot in one.spots}.values())
        numbers = all(is_number(value) for value in values)
        values = values if numbers else sorted(values, key=str)
        places = {repr(value): value if numbers else place for place, value in enumerate(values)}
        for number, one in enumerate(series):
            _spots(plot, one, number, places)
        _dress(plot, axes, several=any(one.label for one in series))
        if not numbers or are_apart(values, log=axes.log_x):
            plot.set_xticks(list(places.values()), [_short(value) for value in values])
            plot.xaxis.minorticks_off()
        elif axes.log_x and not spans_decades(values):
            plot.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        if not numbers:
            plot.set_xlim(-0.5, len(values) - 0.5)
        return _svg(figure, axes.title)


class Scale(NamedTuple):
    """One axis of a chart of parallel coordinates, with the value of each run."""

    name: str
    values: Sequence[Any]
    log: bool = False


def draw_parallel(scales: Sequence[Scale], title: str) -> str:
    """Parallel coordinates as SVG: a line for each run, the best first, through its value on each axis."""
    with mpl.rc_context(_LOOKS):
        figure = Figure(figsize=(min(2 + 1.6 * len(scales), 11), 3.8), layout="constrained")
        plot = figure.subplots()
        heights = [_heights(scale) for scale in scales]
        runs = list(zip(*heights, strict=True))
        for place, line in reversed(list(enumerate(runs))):
            colour, width, alpha = (COLOURS[0], 2.2, 1.0) if place == 0 else ("#777777", 0.9, 0.55)
            plot.plot(range(len(scales)), line, color=colour, linewidth=width, alpha=alpha)
        for x, scale in enumerate(scales):
            plot.axvline(x, color="#000000", linewidth=0.8)
            marks = {height: _short(value) for height, value in zip(heights[x], scale.values, strict=True)}
            for height in _apart(sorted(marks)):
                plot.annotate(marks[height], (x, height), (4, 0), textcoords="offset points", fontsize=7, va="center")
        plot.set_xticks(range(len(scales)), [scale.name + (", log scale" if scale.log else "") for scale in scales])
        plot.set_yticks([])
        plot.spines[["left", "bottom"]].set_visible(False)
        plot.set_xlim(-0.1, len(scales) - 0.6)
        plot.set_title(title, loc="left", fontweight="bold")
        return _svg(figure, title)


def _heights(scale: Scale) -> list[float]:
    """Where each value stands on an axis from 0 to 1; of words, in their order."""
    if all(map(is_number, scale.values)):
        places = [math.log(value) if scale.log else float(value) for value in scale.values]
    else:
        words = sorted({str(value) for value in scale.values})
        places = [float(words.index(str(value))) for value in scale.values]
    low, high = min(places), max(places)
    return [(place - low) / (high - low) if high > low else 0.5 for place in places]


def _apart(heights: Sequence[float]) -> list[float]:
    """Those that have room for a number, the ends first."""
    kept: list[float] = []
    for height in (heights[0], heights[-1], *heights[1:-1]):
        if all(abs(height - other) >= 0.06 for other in kept):
            kept.append(height)
    return kept


def spans_decades(values: Sequence[Any]) -> bool:
    """Whether an axis of these is better logarithmic."""
    return bool(values) and all(is_number(v) and v > 0 for v in values) and max(values) / min(values) >= 30


def are_apart(values: Sequence[float], *, log: bool) -> bool:
    """Whether there is room for a name under each of these on an axis."""
    places = sorted(math.log10(value) if log else value for value in values)
    gaps = [after - before for before, after in pairwise(places)]
    return not gaps or min(gaps) >= 0.12 * (places[-1] - places[0])


def thin_points(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points: neighbours are averaged, and stand at the last of their steps."""
    each = math.ceil(len(points) / max(most, 1))
    parts = [points[start : start + each] for start in range(0, len(points), max(each, 1))]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def _curves(lines: Sequence[Line], axes: Axes, size: tuple[float, float] = (5.4, 3.5)) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    plot = figure.subplots()
    most = min(MOST_OF_A_LINE, max(MOST_POINTS // max(len(lines), 1), 40))
    for line in lines:
        points = thin_points(line.points, most)
        # one step is a point, and no line
        marker = _MARKERS[line.place % len(_MARKERS)] if line.marked or len(points) == 1 else ""
        plot.plot(*zip(*points, strict=True), label=line.label, marker=marker, **_style(line.place))
    # steps are whole
    plot.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    _dress(plot, axes, several=len({line.label for line in lines if line.label}) > 1)
    return figure


def _style(place: int) -> dict[str, Any]:
    style = _LINES[(place + place // len(COLOURS)) % len(_LINES)]
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": style, "linewidth": 1.4, "markersize": 4.5}


def _spots(plot: Any, series: Series, number: int, places: dict[str, Any]) -> None:
    ordered = sorted(series.spots, key=lambda spot: places[repr(spot.value)])
    xs = [places[repr(spot.value)] for spot in ordered]
    bars = [spot.spread for spot in ordered]
    marker = _MARKERS[number % len(_MARKERS)]
    looks = _style(number) if series.joined else {**_style(number), "linestyle": "none"}
    plot.errorbar(xs, [spot.mean for spot in ordered], bars, label=series.label, marker=marker, capsize=3, **looks)
    each = [(x, score) for x, spot in zip(xs, ordered, strict=True) if len(spot.scores) > 1 for score in spot.scores]
    if each:
        plot.scatter(*zip(*each, strict=True), s=9, color=_style(number)["color"], alpha=0.5, linewidths=0)


def _dress(plot: Any, axes: Axes, *, several: bool) -> None:
    """Titles, units, grid, scales and legend."""
    plot.set_title(axes.title, loc="left", fontweight="bold")
    if axes.log_x:
        plot.set_xscale("log")
    if axes.log_y:
        plot.set_yscale("log")
    elif axes.from_zero:
        plot.set_ylim(bottom=0)
    for axis, log in ((plot.xaxis, axes.log_x), (plot.yaxis, axes.log_y)):
        if log:
            # powers of ten would be formulas, which text is not read as
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    plot.set_xlabel(axes.x + (", log scale" if axes.log_x else ""))
    plot.set_ylabel(axes.y + (", log scale" if axes.log_y else ""))
    plot.grid(alpha=0.3, linewidth=0.6)
    if several:
        # below, where it hides no line; two columns have room for 34 characters each
        columns = 2 if max(len(str(text)) for text in plot.get_legend_handles_labels()[1]) < 34 else 1
        plot.figure.legend(loc="outside lower left", ncols=columns, frameon=False, handlelength=2.6)


def _svg(figure: Figure, title: str) -> str:
    """The picture as an element of a page: as wide as its place, without header, date and what holds outside it."""
    file = io.StringIO()
    with warnings.catch_warnings():
        # text is drawn by the reader's fonts, not by the one that lacks a glyph here
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # the style holds for a whole page; the picture gets it alone
    text = re.sub(r"\s*<style type=\"text/css\">.*?</style>", "", text, flags=re.DOTALL)
    name = re.sub(r"\W+", "-", title.lower()).strip("-")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", text)
    text = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)
    head = 'role="img" style="stroke-linejoin: round; stroke-linecap: butt" aria-label="'
    return text.replace("<svg ", f'<svg {head}{html.escape(title)}" ', 1).strip() + "\n"


def _short(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 18 else text[:17] + "…"
