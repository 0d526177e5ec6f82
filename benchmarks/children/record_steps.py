# SPDX-License-Identifier: Apache-2.0
"""ROUNDS WORDS…: trains the job of these words with nothing recorded, with the losses of rows, with fingerprints.

Each round trains all three once, from the same weights; who goes first changes. It prints a JSON line a round: seconds
of the training, and those of them in the code that records, by what is recorded.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from functools import wraps
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
from fmstune.training.objectives.loss_recorder import LossRecorder
from fmstune.training.objectives.sft import row_losses
from fmstune.training.run import build_trainer

SIDES = {"nothing": (False, False), "rows": (True, False), "fingerprints": (False, True)}
"""Whether losses of rows are kept, and fingerprints are."""


class Begin(TrainerCallback):
    """The moment at which training begins; it comes before what is measured."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.clock, Recording.seconds = time.perf_counter(), 0.0


class Recording:
    """The seconds in functions that record, each counted once where one calls another."""

    seconds = 0.0
    _inside = False

    @classmethod
    def timed(cls, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose seconds are added up."""

        @wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            if cls._inside:
                return function(*args, **kwargs)
            cls._inside, began = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                cls.seconds += time.perf_counter() - began
                cls._inside = False

        return measured

    @classmethod
    def watch(cls) -> None:
        """Time what records, hooks included."""
        steps = ("on_train_begin", "on_step_begin", "on_pre_optimizer_step", "on_step_end", "on_train_end", "_enter")
        for owner, names in {
            LossRecorder: ("_add", "settle", "losses_since_log", "collect"),
            row_losses: ("write_row_losses",),
            Fingerprints: steps,
        }.items():
            for name in names:
                setattr(owner, name, cls.timed(getattr(owner, name)))
        hook_of = Fingerprints._hook_of
        Fingerprints._hook_of = lambda self, name: cls.timed(hook_of(self, name))


class Trained:
    """The job, trained again and again."""

    def __init__(self, job: Job) -> None:
        self._job, self._checked, self._tokenizer = job, preflight.check_job(job), load.load_tokenizer(job.model)
        self._checked = preflight.with_tokenizer(job, self._checked, self._tokenizer)
        self._rows = prepare_data(job.data, self._tokenizer.tokenizer, job.seed)

    def train(self, rows: bool, prints: bool) -> tuple[float, float]:
        """Seconds of a training, and of recording in it."""
        job = dataclasses.replace(self._job, data=dataclasses.replace(self._job.data, row_losses=rows))
        begin, folder = Begin(), Path(str(job.output_dir))
        callbacks = [begin, *([Fingerprints(folder)] if prints else [])]
        trainer, _ = build_trainer(load_objective(job), self._checked, self._tokenizer, self._rows, callbacks)
        trainer.train()
        taken = time.perf_counter() - begin.clock, Recording.seconds
        trainer.accelerator.free_memory()
        return taken


def main(rounds: str, *words: str) -> None:
    job = freeze.freeze(compose.compose_job(parse_overrides(words)).tree()).job
    Path(str(job.output_dir)).mkdir(parents=True, exist_ok=True)
    trained = Trained(job)
    Recording.watch()
    trained.train(True, True)
    names = list(SIDES)
    for number in range(int(rounds)):
        first = number % len(names)
        print(json.dumps({name: trained.train(*SIDES[name]) for name in names[first:] + names[:first]}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
