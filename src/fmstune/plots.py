"""`loss.png`: the curve of a run, from its metrics file."""

import json
from pathlib import Path


def plot_loss(metrics: Path, picture: Path) -> None:
    """Train and evaluation loss by step; written aside and renamed, so that a viewer never sees half of it."""
    from matplotlib.figure import Figure  # a second to import, and a run has no use for it before its end

    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("loss", "train", "-"), ("eval_loss", "held out", "o-")):
        points = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), (int, float))]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.set(xlabel="optimizer step", ylabel="loss (nats per trained token)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    aside = picture.with_name(f".{picture.name}")
    figure.savefig(aside, format="png", dpi=120)
    aside.replace(picture)
