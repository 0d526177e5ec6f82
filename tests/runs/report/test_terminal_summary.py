"""The table that a run ends with."""

import shlex
from pathlib import Path

from fmstune.config.metrics import metrics_of
from fmstune.runs.report import terminal_summary

TABLE = metrics_of({})
BASE = {"eval_loss": 0.9, "exact_match": 0.5, "rows": 120, "rows_left_out": 0, "answers_too_long": 0}
TUNED = {"eval_loss": 0.1, "exact_match": 0.975, "rows": 120, "rows_left_out": 30, "answers_too_long": 2}
SUMMARY = {
    "status": "finished",
    "error": None,
    "train_loss": 0.1234,
    "steps": 150,
    "steps_here": 150,
    "train_seconds": 12.34,
    "tokens_per_second": 4321.0,
    "tokens_trained_on": 900,
    "tokens_padded": 100,
    "positions": 1000,
    "total_parameters": 2_000_000,
    "trainable_parameters": 10_000,
    "peak_memory_bytes": 300 * 2**20,
    "memory_before_model_bytes": 200 * 2**20,
    "plan": {
        "total": 90 * 2**20,
        "total_steps": 150,
        "base_parameters": 1_990_000,
        "adapter_parameters": 10_000,
        "trainable_parameters": 10_000,
    },
    "base": BASE,
    "tuned": TUNED,
}


def test_base_and_tuned_stand_side_by_side_with_the_change() -> None:
    text = terminal_summary.render_summary(SUMMARY, Path("run"), TABLE)
    assert "held-out rows: 120          base     tuned    change" in text
    assert "loss on the answer        0.9000    0.1000   -0.8000" in text
    assert "exact match                0.500     0.975    +0.475" in text


def test_macro_f1_stands_there_where_the_rows_have_labels() -> None:
    assert "macro F1" not in terminal_summary.render_summary(SUMMARY, Path("run"), TABLE)
    labelled = {**SUMMARY, "base": {**BASE, "macro_f1": 0.333}, "tuned": {**TUNED, "macro_f1": 0.974}}
    assert "macro F1                   0.333     0.974    +0.641" in terminal_summary.render_summary(
        labelled, Path("run"), TABLE
    )


def test_what_was_not_scored_is_counted() -> None:
    text = terminal_summary.render_summary(SUMMARY, Path("run"), TABLE)
    assert "(30 more held-out rows were left out by evaluation.max_rows)" in text
    assert "(2 answers are longer than max_new_tokens and cannot match)" in text


def test_cost_is_given_with_the_plan_beside_what_was_measured() -> None:
    text = terminal_summary.render_summary(SUMMARY, Path("run"), TABLE)
    assert "trained 10,000 of 2,000,000 parameters (0.50%)" in text
    assert "150 steps in 12.3 s, 4,321 tokens/s, train loss 0.1234" in text
    assert "900 tokens in 1,000 positions (90.0%; the rest is padding)" in text
    assert text.splitlines()[-8:-2] == [
        "                              planned         actual",
        "────────────────────────────────────────────────────",
        "memory                       90.0 MiB      100.0 MiB",
        "steps                             150            150",
        "parameters                  2,000,000      2,000,000",
        "trainable                      10,000         10,000",
    ]


def test_the_speed_of_a_device_is_said_with_the_share_of_its_peak_where_that_is_known() -> None:
    speed = {"tokens_per_second_per_device": 2160.5, "tflops_per_device": 12.345}
    known, unknown = ({**SUMMARY, **speed, **more} for more in ({"mfu": 0.4115}, {}))
    line = "\na device: 2,160 tokens/s, 12.3 TFLOP/s of the model"
    assert f"{line}, MFU 41.1%\n" in terminal_summary.render_summary(known, Path("run"), TABLE)
    assert f"{line}\n" in terminal_summary.render_summary(unknown, Path("run"), TABLE)
    assert "a device:" not in terminal_summary.render_summary(SUMMARY, Path("run"), TABLE)


def test_without_a_base_the_tuned_stand_alone() -> None:
    text = terminal_summary.render_summary({**SUMMARY, "base": None}, Path("run"), TABLE)
    assert "exact match                    -     0.975" in text


def test_a_run_that_failed_says_why() -> None:
    failed = {"status": "failed", "error": {"kind": "internal", "message": "out of memory"}}
    assert terminal_summary.render_summary(failed, Path("run"), TABLE) == "\nfailed: run\n  out of memory"


def test_the_command_that_repeats_a_run_is_one_to_copy(tmp_path: Path) -> None:
    """In quotes where the folder needs them, and with what was trusted: a job cannot allow itself anything."""
    folder = tmp_path / "my run"
    (folder / "model").mkdir(parents=True)
    line = terminal_summary.render_summary(SUMMARY, folder, TABLE, ["--trust=reviews"]).splitlines()[-1]
    assert shlex.split(line) == ["again", "fmstune", "train", "--from", f"{folder}/job.yaml", "--trust=reviews"]


def test_what_sharing_beginnings_saved_is_said_in_place_of_padding(tmp_path: Path) -> None:
    summary = {**SUMMARY, "positions": 300, "prefix_sharing": {"share_saved": 0.6667}}
    text = terminal_summary.render_summary(summary, tmp_path, TABLE)
    saved = "900 tokens in 300 positions (66.7% saved, as beginnings that rows of a batch share are computed once)"
    assert saved in text
    assert "padding" not in text
