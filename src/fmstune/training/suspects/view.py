"""`fmstune rows`: the suspect rows of a run with their texts, as a table, a page, JSON, or a file to leave them out."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmstune.config import freeze
from fmstune.config.job import SFT, Job, sources, text_columns
from fmstune.config.requests import SuspectRows
from fmstune.data.dataset import data_identity, load_recipes, prepare_data
from fmstune.data.show import mask_runs, visible
from fmstune.data.tokenized import Part
from fmstune.errors import Problem, UserError, raise_if_any
from fmstune.files import explain_write_errors, user_path, write_aside
from fmstune.models import load
from fmstune.models.load import Tokenizer
from fmstune.runs import row_losses, run_folder
from fmstune.runs.report.document import Block, Document, Example, Text, make_table
from fmstune.runs.report.render import render_html, render_text
from fmstune.training.suspects.ranking import Ranking, RowName, Suspect, find_twins, rank_rows

REASONS = ("never learnt", "learnt late", "forgotten", "twin")
CLIPPED = 60
"""Characters of a row that the table shows: its end."""


@dataclass(frozen=True)
class Shown:
    """A suspect with what its source holds."""

    suspect: Suspect
    source: str
    file: str
    number: int
    """The row's number in its file; in JSON lines, the line."""
    text: str
    """The row as the model read it, its trained parts between ⟦ and ⟧."""
    twins: tuple[str, ...]
    """Its twins, as their source and number."""

    @property
    def why(self) -> str:
        """The reasons in a few words."""
        reasons = [one for one in self.suspect.reasons if one != "twin"]
        if self.suspect.forgotten > 1:
            reasons = [f"{one} {self.suspect.forgotten} times" if one == "forgotten" else one for one in reasons]
        twins = [f"other answer than row {', '.join(self.twins[:3])}{' …' * (len(self.twins) > 3)}"] * bool(self.twins)
        return "; ".join([*reasons, *twins]) or "low probability"


def show_suspects(asked: SuspectRows) -> int:
    """Print the first suspects, and write what was asked for; raises UserError where the run cannot be read."""
    folder = user_path(asked.run)
    job = _read_job(folder, tuple(asked.trusted))
    names = tuple(sources(job.data, "train"))
    entries = row_losses.read_row_losses(folder, names)
    tokenizer = load.load_tokenizer(job.model)
    _refuse_changed(job, folder, tokenizer)
    prepared = prepare_data(job.data, tokenizer.tokenizer, job.seed, text_columns(job.objective))
    columns = [part.rows.select_columns(["input_ids", "labels", "number"]) for part in prepared.sources]
    ranking = rank_rows(entries, find_twins(columns))
    chosen = ranking.rows[: asked.rows]
    shown = list(_with_texts(chosen, job, prepared.sources, tokenizer))
    document = _document(folder, ranking, shown)
    print(render_text(document))
    written: dict[str, tuple[str | None, Callable[[], str]]] = {
        "--html": (asked.html, lambda: render_html(document)),
        "--json": (
            asked.json,
            lambda: json.dumps([_as_json(one) for one in shown], indent=2, ensure_ascii=False) + "\n",
        ),
        "--quarantine": (asked.quarantine, lambda: "".join(_quarantine_line(one) for one in shown)),
    }
    for flag, (place, text) in written.items():
        if place is not None:
            with explain_write_errors(flag, Path(place)), write_aside(Path(place)) as aside:
                aside.write_text(text(), encoding="utf-8", errors="backslashreplace")
            print(f"\nwrote {place}")
    return 0


def _read_job(folder: Path, trusted: tuple[str, ...]) -> Job:
    """The job of the run; raises UserError where the run keeps no losses of rows."""
    job = freeze.read(folder / run_folder.JOB, trusted=trusted).job
    if job.objective._target_ != SFT:
        raise UserError("rows", f": the objective of {folder} keeps no losses of rows; objective=sft does")
    if job.data.streaming:
        raise UserError("rows", f": the rows of {folder} were streamed, and streamed rows have no losses")
    if not job.data.row_losses:
        raise UserError("rows", f": {folder} was trained with data.row_losses=false; train again without it")
    if not (folder / row_losses.FILE).is_file():
        status = run_folder.read_summary(folder).get("status", "not begun")
        when = "it is written with each checkpoint and at the end"
        raise UserError("rows", f": {folder} has no {row_losses.FILE} ({status}): {when}")
    return job


def _refuse_changed(job: Job, folder: Path, tokenizer: Tokenizer) -> None:
    """Raise UserError where a source is not as it was when the run read it: its rows would have other numbers."""
    recorded = run_folder.read_own(folder / run_folder.PROVENANCE).get("data_hashes") or {}
    found = data_identity(job.data, tokenizer.tokenizer, job.seed, text_columns(job.objective))["data_hashes"]
    change = "give the run's files back, or train again"
    raise_if_any(
        Problem(field, f"has changed since the run (sha256 {digest[:12]}…, lock.json has {was[:12]}…); {change}")
        for field, digest in found.items()
        if field.startswith(("data.train", "data.quarantine")) and (was := str(recorded.get(field, digest))) != digest
    )


def _with_texts(suspects: Sequence[Suspect], job: Job, parts: Sequence[Part], tokenizer: Tokenizer) -> Iterator[Shown]:
    """The suspects with their texts and places; a source is read up to the last of them."""
    names = tuple(sources(job.data, "train"))
    places = _places(suspects, job, tokenizer)
    numbers = [np.asarray(part.rows.data.column("number")) for part in parts]
    for suspect in suspects:
        source, number = suspect.name
        rows = [parts[source].rows[int(at)] for at in np.flatnonzero(numbers[source] == number)]
        texts = ["".join(_marked(run.text, run.trained) for run in mask_runs(row, tokenizer.tokenizer)) for row in rows]
        twins = tuple(f"{names[one.source]} {one.number}".strip() for one in suspect.twins)
        file, place = places[suspect.name]
        yield Shown(suspect, names[source], file, place, "\n".join(texts), twins)


def _places(suspects: Sequence[Suspect], job: Job, tokenizer: Tokenizer) -> Mapping[RowName, tuple[str, int]]:
    wanted = {suspect.name for suspect in suspects}
    found: dict[RowName, tuple[str, int]] = {}
    recipes = [one for one in load_recipes(job.data, tokenizer.tokenizer, text_columns(job.objective)) if one.trains]
    for source, recipe in enumerate(recipes):
        last = max((name.number for name in wanted if name.source == source), default=0)
        for number, row in recipe.rows() if last else ():
            if (name := RowName(source, number)) in wanted:
                found[name] = (row.file, row.number)
            if number == last:
                break
    return found


def _marked(text: str, trained: bool) -> str:
    return f"⟦{visible(text)}⟧" if trained else visible(text)


def _document(folder: Path, ranking: Ranking, shown: Sequence[Shown]) -> Document:
    counts = ", ".join(f"{ranking.count(reason):,} {reason}" for reason in REASONS)
    head = ["", "row", "why", "below", "loss by epoch", "text"]
    table = make_table(
        head,
        [
            [place, _title(one), one.why, f"{one.suspect.score:.2f}", _losses(one.suspect), _end(one.text)]
            for place, one in enumerate(shown, start=1)
        ],
    )
    notes: list[Block] = [Text(f"note: {note}") for note in ranking.notes()]
    said = f"{len(ranking.rows):,} rows, {ranking.learnt:,} learnt in some epoch: {counts}"
    meaning = (
        "below: how far the mean probability of the row's trained tokens lies below that of the rows trained about the "
        "same time, as the mean over the epochs; loss: in nats a token; ⟦ ⟧: trained text"
    )
    examples = [
        Example(f"{place}. {_title(one)}", [("why", one.why), ("loss", _losses(one.suspect)), ("text", one.text)])
        for place, one in enumerate(shown, start=1)
    ]
    return Document.of(
        "Rows that hurt",
        f"{len(shown):,} suspects",
        str(folder),
        {"Suspects": [Text(said), *notes, table, Text(meaning)], "Texts": examples},
    )


def _title(one: Shown) -> str:
    number = f"row {one.suspect.name.number:,}"
    return f"{one.source} {number} ({one.file}:{one.number})".strip()


def _losses(suspect: Suspect) -> str:
    return " ".join(f"{loss:.2f}" for loss in suspect.losses)


def _end(text: str) -> str:
    """The end of the text on one line: that is where the answer stands."""
    line = " ".join(text.split())
    return line if len(line) <= CLIPPED else f"…{line[-CLIPPED:]}"


def _as_json(one: Shown) -> dict[str, Any]:
    suspect = one.suspect
    return {
        "source": one.source,
        "row": suspect.name.number,
        "file": one.file,
        "number_in_file": one.number,
        "reasons": list(suspect.reasons),
        "score": suspect.score,
        "losses": list(suspect.losses),
        "learnt_in": suspect.learnt_in,
        "forgotten": suspect.forgotten,
        "twins": list(one.twins),
        "text": one.text,
    }


def _quarantine_line(one: Shown) -> str:
    values = {"source": one.source, "row": one.suspect.name.number, "why": one.why}
    return json.dumps(values, ensure_ascii=False) + "\n"
