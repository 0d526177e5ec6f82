"""`fmstune rows`: the first suspects with their texts, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import RECORDED, Result

Run = Callable[..., Result]


def test_the_first_suspects_are_shown_written_and_left_out_of_the_next_run(recorded_run: Path, fmstune: Run) -> None:
    words = ("--rows", "2", "--html", "rows.html", "--json", "rows.json", "--quarantine", "left_out.jsonl")
    done = fmstune("rows", str(recorded_run), *words)
    assert done.code == 0, done.err
    assert "6 rows, " in done.out and "wrote left_out.jsonl" in done.out
    assert "note: each row was seen once" in done.out or "loss by epoch" in done.out
    shown = json.loads(Path("rows.json").read_text())
    lines = Path("rows.jsonl").read_text().splitlines()
    assert len(shown) == 2
    assert shown[0]["score"] >= shown[1]["score"]
    for one in shown:
        assert json.loads(lines[one["row"] - 1])["output"].startswith(f"### Text: parcel {one['row'] - 1}\n")
        assert one["text"].startswith(f"### Text: parcel {one['row'] - 1}↵")
        assert "### Response:⟦" in one["text"] and "late" in one["text"]
        assert (one["file"], one["number_in_file"]) == ("rows.jsonl", one["row"])
    page = Path("rows.html").read_text()
    assert "Rows that hurt" in page and "⟦" in page and "<script src" not in page
    left_out = [json.loads(line) for line in Path("left_out.jsonl").read_text().splitlines()]
    assert [(row["source"], row["row"]) for row in left_out] == [("", one["row"]) for one in shown]
    again = fmstune("check", *RECORDED[:-1], "data.quarantine=left_out.jsonl")
    assert again.code == 0, again.err
    assert "rows    6 = 4 trained + 2 dropped" in again.out and "2 quarantined" in again.out


def test_rows_of_a_source_that_has_changed_are_not_shown(recorded_run: Path, fmstune: Run) -> None:
    with Path("rows.jsonl").open("a") as file:
        file.write(json.dumps({"output": "### Text: new\n### Response: soon"}) + "\n")
    done = fmstune("rows", str(recorded_run))
    assert done.code == 2
    assert "data.train has changed since the run (sha256 " in done.err
    assert "give the run's files back, or train again" in done.err


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  row_losses: true", "  row_losses: false", "was trained with data.row_losses=false; train again without it"),
        ("  streaming: false", "  streaming: true", "were streamed, and streamed rows have no losses"),
    ],
)
def test_a_run_that_kept_no_losses_says_so(recorded_run: Path, fmstune: Run, old: str, new: str, said: str) -> None:
    job = recorded_run / "job.yaml"
    text = job.read_text()
    assert text.count(old) == 1
    job.write_text(text.replace(old, new))
    done = fmstune("rows", str(recorded_run))
    assert done.code == 2
    assert said in done.err


def test_a_run_without_its_file_says_when_it_is_written(recorded_run: Path, fmstune: Run) -> None:
    (recorded_run / "rows.parquet").unlink()
    done = fmstune("rows", str(recorded_run))
    assert done.code == 2
    assert "has no rows.parquet (finished): it is written with each checkpoint and at the end" in done.err


def test_what_is_wrong_with_the_flags_is_said_at_once(fmstune: Run) -> None:
    done = fmstune("rows", "nowhere", "--rows", "0", "--html", "no/rows.html")
    assert done.code == 2
    assert "--rows must be at least 1, got 0" in done.err
    assert "nowhere is not the folder of a run" in done.err
    assert "--html: no folder no; make it, or choose another" in done.err
