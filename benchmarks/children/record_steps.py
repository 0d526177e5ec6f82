# SPDX-License-Identifier: Apache-2.0
"""ROUNDS WORDS…: trains the job of these words with nothing recorded, with the losses of rows, with fingerprints.

Each round trains all three once, from the same weights; who goes first changes. It prints a JSON line a round: seconds
of the training by the clock, and CPU seconds, by what is recorded.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from fmstune.config import compose, freeze
from fmstune.config.job import Job
from fmstune.config.overrides import parse_overrides
from fmstune.data.dataset import prepare_data
from fmstune.models import load
from fmstune.training import preflight
from fmstune.training.debugging.fingerprints import Fingerprints
from fmstune.training.objectives.base import load_objective
from fmstune.training.run import build_trainer

SIDES = {"nothing": (False, False), "rows": (True, False), "fingerprints": (False, True)}
"""Whether losses of rows are kept, and fingerprints are."""


class Begin(TrainerCallback):
    """The moment at which training begins; it comes before what is measured."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.clock, self.cpu = time.perf_counter(), time.process_time()


class Trained:
    """The job, trained again and again."""

    def __init__(self, job: Job) -> None:
        self._job, self._checked, self._tokenizer = job, preflight.check_job(job), load.load_tokenizer(job.model)
        self._checked = preflight.with_tokenizer(job, self._checked, self._tokenizer)
        self._rows = prepare_data(job.data, self._tokenizer.tokenizer, job.seed)

    def train(self, rows: bool, prints: bool) -> tuple[float, float]:
        """Seconds and CPU seconds of a training."""
        job = dataclasses.replace(self._job, data=dataclasses.replace(self._job.data, row_losses=rows))
        begin, folder = Begin(), Path(str(job.output_dir))
        callbacks = [begin, *([Fingerprints(folder)] if prints else [])]
        trainer, _ = build_trainer(load_objective(job), self._checked, self._tokenizer, self._rows, callbacks)
        trainer.train()
        taken = time.perf_counter() - begin.clock, time.process_time() - begin.cpu
        trainer.accelerator.free_memory()
        return taken


def main(rounds: str, *words: str) -> None:
    job = freeze.freeze(compose.compose_job(parse_overrides(words)).tree()).job
    Path(str(job.output_dir)).mkdir(parents=True, exist_ok=True)
    trained = Trained(job)
    trained.train(True, True)
    names = list(SIDES)
    for number in range(int(rounds)):
        first = number % len(names)
        print(json.dumps({name: trained.train(*SIDES[name]) for name in names[first:] + names[:first]}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
