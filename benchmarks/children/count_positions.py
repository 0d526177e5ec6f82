# SPDX-License-Identifier: Apache-2.0
"""ROWS MODEL FOLDER: batches of one epoch as fmstune's trainer makes them; prints tokens over positions."""

import json
import sys
from enum import Enum
from pathlib import Path

from prepare_rows import chosen

from fmstune.config import freeze
from fmstune.config.job import FULL, Job
from fmstune.data.dataset import prepare_data
from fmstune.models import load
from fmstune.training import preflight
from fmstune.training.arguments import training_arguments
from fmstune.training.objectives.base import load_objective


def main(rows: str, model: str, folder: str) -> None:
    print(json.dumps({"packed": share(rows, model, folder, True), "padded": share(rows, model, folder, False)}))


def share(rows: str, model: str, folder: str, packing: bool) -> float:
    """Tokens of the rows over positions of the batches."""
    job = _job(rows, model, packing)
    checked = preflight.check_job(job)
    tokenizer = load.load_tokenizer(job.model)
    prepared = prepare_data(job.data, tokenizer.tokenizer, job.seed)
    loaded = load.load_model(job.model, tokenizer, dtype=checked.precision.weights, attention=checked.attention)
    objective = load_objective(job)
    trainer = objective.trainer_class(
        model=loaded,
        args=training_arguments(job, objective, checked, Path(folder)),
        train_dataset=prepared.train,
        processing_class=tokenizer.tokenizer,
    )
    positions = sum(batch["input_ids"].numel() for batch in trainer.get_train_dataloader())
    return prepared.ledger.tokens_total / positions


def _job(rows: str, model: str, packing: bool) -> Job:
    fields = vars(chosen("alpaca", rows)).items()
    shipped = {key: value.value if isinstance(value, Enum) else value for key, value in fields}
    return freeze.freeze(
        {
            "name": "positions",
            "model": {"path": model},
            "peft": {"_target_": FULL},
            "data": {**shipped, "max_length": 2048, "over_length": "drop", "untrainable": "error"},
            "training": {"packing": packing, "per_device_train_batch_size": 4},
            "launcher": {"device": "cpu"},
        }
    ).job


if __name__ == "__main__":
    main(*sys.argv[1:])
