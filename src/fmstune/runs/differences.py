"""Compare a run with its repetition: `lock.json`, job and results."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fmstune import tables
from fmstune.config.metrics import Place, names_at
from fmstune.errors import UserError
from fmstune.flatten import flat_differences
from fmstune.runs import run_folder
from fmstune.runs.report.run_data import read_run

_NOTES = re.compile(r"platform|cpu|model_config_hash|packages\.huggingface-hub|environment\..*")
"""Facts that are only shown, as they do not change a result (the model's files show a change of its configuration)."""
_DECIDES = re.compile(
    r"environment\.(ATEN_CPU_CAPABILITY|CUBLAS_WORKSPACE_CONFIG|MKL_CBWR|NCCL_(ALGO|PROTO)|NVIDIA_TF32_OVERRIDE"
    r"|TORCH_ALLOW_TF32_CUBLAS_OVERRIDE)"
)
"""Variables that change how sums are rounded."""
_NOT_COMPARED = frozenset({"command", "data_rows", "data_files", "learning_rate"})
"""Recorded for a reader; other facts hold the same."""
_NEEDED = ("fmstune", "packages", "seed", "data_hashes")
"""Every `lock.json` has these."""
_NOTHING = "-"


class Difference(NamedTuple):
    """A fact with another value than the recorded one."""

    fact: str
    recorded: str
    now: str
    counts: bool
    """Whether it can change the result."""


def read_lock(folder: Path) -> dict[str, Any]:
    """The content of a run's `lock.json`; raises UserError where it is missing or broken."""
    path = folder / run_folder.PROVENANCE
    again = f"fmstune train --from {folder} repeats the run without it"
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(str(path), f": no such file; it is written when a run begins to train. {again}") from None
    except (OSError, ValueError) as err:
        raise UserError(str(path), f": cannot be read ({err}); {again}") from err
    missing = [key for key in _NEEDED if not isinstance(lock, dict) or key not in lock]
    if missing:
        raise UserError(str(path), f": has no {', '.join(missing)}, so it is not the record of a run; {again}")
    return dict(lock)


def lock_differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Return the facts that differ, those that can change the result first; facts never recorded do not count."""
    found = []
    for key, value in now.items():
        if key in _NOT_COMPARED:
            continue
        if key not in recorded or (recorded[key] is None and isinstance(value, Mapping)):
            found.append(Difference(key, "not recorded", _NOTHING, False))
            continue
        for fact, one, other in flat_differences({key: recorded[key]}, {key: value}, _as_text, _NOTHING):
            counts = _DECIDES.fullmatch(fact) is not None or _NOTES.fullmatch(fact) is None
            if fact == "device_names":
                counts = recorded.get("device") != "cpu"
            found.append(Difference(fact, one, other, counts))
    return sorted(found, key=lambda difference: not difference.counts)


def job_differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Return the fields of two jobs that differ, without output_dir; name and trackers cannot change the result."""
    return [
        Difference(name, one, other, not name.startswith(("name", "tracking")))
        for name, one, other in flat_differences(recorded, now, _as_text, _NOTHING)
        if name != "output_dir"
    ]


def _as_text(value: Any) -> str:
    return _NOTHING if value is None else value if isinstance(value, str) else json.dumps(value)


def render_differences(found: Iterable[Difference]) -> Iterator[str]:
    """Yield the lines of a table: the differences that count, then the notes."""
    rows = [(one.fact, _short(one.recorded), f"{_short(one.now)}{'' if one.counts else '  (note)'}") for one in found]
    yield from tables.lines(("fact", "recorded", "now"), rows, left=(0, 1, 2))


def _short(value: str) -> str:
    digest = re.fullmatch(r"(?:listing:)?([0-9a-f]{12})[0-9a-f]{28,52}(\+changes)?", value)
    if digest is not None:
        return f"{digest[1]}…{digest[2] or ''}"
    return value if len(value) <= 44 else value[:43] + "…"


class Results(NamedTuple):
    """Results of two runs of one job."""

    rows: tuple[tuple[str, float | None, float | None], ...]
    """Name, and the value of each run."""
    weights: bool | None
    """Whether their weights are the same bytes; None where one has none."""

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return self.weights is True and all(one == other for _, one, other in self.rows)


def compare_results(recorded: Path, again: Path) -> Results:
    """Compare two run folders of one job by their figures, and by the hashes of their weights."""
    one, other = runs = [read_run(folder) for folder in (recorded, again)]
    scores = [f"{part}.{name}" for part in ("base", "tuned") for name in names_at(other.table, Place.held_out)]
    rows = [(name, one.figure(name), other.figure(name)) for name in (*names_at(other.table, Place.result), *scores)]
    losses = [points[-1][1] if (points := run.curve("loss")) else None for run in runs]
    hashes = [run.summary.get("weights_sha256") for run in runs]
    known = tuple(row for row in (*rows, ("last loss", losses[0], losses[1])) if row[1:] != (None, None))
    return Results(known, hashes[0] == hashes[1] if all(hashes) else None)


def render_results(found: Results) -> Iterator[str]:
    """Yield the lines of a table with the results of both runs."""
    rows = []
    for name, one, other in found.rows:
        change = "" if one is None or other is None else "none" if one == other else f"{other - one:+.2e}"
        rows.append((name, _figure(one), _figure(other), change))
    yield from tables.lines(("result", "recorded", "now", "difference"), rows, least=(20, 14, 14, 12))


def _figure(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.8g}"
