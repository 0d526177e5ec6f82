"""Looks at the points of a sweep: the loss of each held-out row at an evaluation, in `looks.jsonl` of a run folder."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

FILE = "looks.jsonl"
"""One JSON object for each evaluation of a run that may be stopped as a loser of its sweep."""


class RowLosses(NamedTuple):
    """The loss of each held-out row, and the tokens that it is a sum over."""

    losses: Sequence[float]
    """In nats, summed over the trained tokens of the row."""
    tokens: Sequence[int]


@dataclass(frozen=True)
class Look:
    """A model at one step of its training, on the held-out rows; its fields are those of a line of the file."""

    step: int
    max_steps: int
    rows: str
    """What must be equal for two looks to be at the same rows: a hash of them, and the seed."""
    losses: list[float]
    """In nats a token, weighted so that their mean is `eval_loss`."""

    @property
    def share(self) -> float:
        """The share of the steps that were taken, by which points with schedules of different lengths are compared."""
        return round(self.step / self.max_steps, 6)

    @property
    def loss(self) -> float:
        """The mean, which is `eval_loss`."""
        return sum(self.losses) / len(self.losses)


Curve = Mapping[float, Look]
"""The looks at one point, by their shares."""


def identify_rows(rows: Sequence[Mapping[str, Any]], seed: int) -> str:
    """Return what tells these held-out rows and this seed from others."""
    made = hashlib.sha256(str(seed).encode())
    for row in rows:
        made.update(json.dumps([list(row["input_ids"]), list(row["labels"])]).encode())
    return made.hexdigest()[:16]


def make_look(step: int, max_steps: int, rows: str, found: RowLosses) -> Look:
    """Return the look at a model with these losses."""
    mean_tokens = sum(found.tokens) / len(found.tokens)
    return Look(step, max_steps, rows, [float(f"{one / mean_tokens:.7g}") for one in found.losses])


def write_look(folder: Path, look: Look) -> None:
    """Append a look to the file of a run folder, which other processes read at the same time."""
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(look)) + "\n")


def read_curve(folder: Path) -> Curve:
    """Read the looks of a run folder, the last one of each step; a line that is not whole is left out.

    A resumed run looks again at steps after its checkpoint.
    """
    try:
        text = (folder / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    found = [_read(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    curve = {look.share: look for look in found if look is not None}
    return {share: curve[share] for share in sorted(curve)}


def _read(line: str) -> Look | None:
    try:
        look = Look(**json.loads(line))
        return look if look.losses and look.max_steps > 0 else None
    except (ValueError, TypeError):
        return None


def read_curves(sweep: Path) -> dict[str, Curve]:
    """Read the looks of all points of a sweep, by the names of their folders; points without any are left out."""
    curves = {file.parent.name: read_curve(file.parent) for file in sorted(sweep.glob(f"*/{FILE}"))}
    return {name: curve for name, curve in curves.items() if curve}
