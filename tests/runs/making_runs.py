"""Run folders as files alone, for tests of what reads them."""

import json
from pathlib import Path
from typing import Any

import yaml

from fmstune.runs import manifest


def make_run(folder: Path, *, status: str | None = "finished", kind: str | None = None, **summary: Any) -> Path:
    """A run folder with a job, a summary of these values unless `status` is None, and two lines of metrics."""
    folder.mkdir(parents=True)
    job = {"name": "x", "data": {"eval_fraction": 0.2}, "evaluation": {"enabled": True}}
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3')
    if status is not None:
        error = {"kind": kind, "message": "why"} if kind else None
        text = json.dumps({"status": status, "error": error, "plan": {"total_steps": 4}, **summary})
        (folder / "summary.json").write_text(text)
    return folder


def make_checkpoint(run: Path, step: int, *, best: str | None = None) -> Path:
    """A complete checkpoint of 1,000 bytes and more."""
    folder = run / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    state = {"best_model_checkpoint": None if best is None else f"{run}/{best}"}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    manifest.seal_folder(folder, {"step": step, "processes": 1, "rows_per_step": 1, "sharded": False})
    return folder
