# SPDX-License-Identifier: Apache-2.0
"""A model with rows, and the three that train it: fmstune, plain SFTTrainer, a bare loop."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pairs
from pairs import Child


class Subject(NamedTuple):
    """What is trained: a model folder, and its rows in tokens, in the order in which all sides take them."""

    model: Path
    arrow: Path
    cache: Path
    """Where fmstune finds the same tokens."""
    batch: int


def tiny(place: Path, *, batch: int) -> Subject:
    """The shipped model on the shipped rows."""
    return _subject(place, "tiny_llama", batch)


def llama_135m(place: Path, *, batch: int) -> Subject:
    """A Llama of 135 million random weights in the shape of SmolLM2-135M, on the shipped rows."""
    return _subject(place, "llama_135m", batch)


def _subject(place: Path, shape: str, batch: int) -> Subject:
    model, cache = place / shape, place / f"{shape}_cache"
    pairs.run(pairs.python("make_model.py", shape, model))
    words = ("package:complaints/train.jsonl", "complaints", model)
    made = pairs.run(pairs.python("prepare_rows.py", *words), env={"FMSTUNE_CACHE": str(cache)})
    return Subject(model, Path(json.loads(made.out)["arrow"]), cache, batch)


def run(side: str, subject: Subject, method: str, *, steps: int, env: Mapping[str, str] | None = None) -> Child:
    """Train so many steps; a line of the watched file is a step."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        if side == "fmstune":
            argv = pairs.fmstune(*words(subject, method, steps, folder))
            there = {"FMSTUNE_CACHE": str(subject.cache), **(env or {})}
            return pairs.run(argv, env=there, watched=folder / "metrics.jsonl")
        return pairs.run(script(side, subject, method, steps, folder), watched=folder / "steps")


def script(side: str, subject: Subject, method: str, steps: int, folder: Path) -> list[str]:
    """The command line of one of the other sides."""
    return pairs.python(f"{side}.py", subject.model, subject.arrow, method, steps, subject.batch, folder)


def words(subject: Subject, method: str, steps: int, folder: Path) -> list[str]:
    """What fmstune is told, to train what the others train."""
    return [
        "model=causal_lm",
        f"model.path={subject.model}",
        "model.lora_targets=[q_proj, v_proj]",
        f"peft={method}",
        "data=complaints",
        "data.eval=null",
        "launcher.device=cpu",
        "evaluation=none",
        f"training.max_steps={steps}",
        f"training.per_device_train_batch_size={subject.batch}",
        "training.gradient_accumulation_steps=1",
        "training.learning_rate=1e-3",
        "training.warmup_steps=0",
        "training.train_sampling_strategy=sequential",
        "training.save_strategy=no",
        f"output_dir={folder}",
    ]
