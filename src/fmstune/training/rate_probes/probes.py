"""Short runs of a job at several rates, one after the other, in the processes and from the weights of the run."""

import dataclasses
import gc
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset

from fmstune import ranks
from fmstune.checks.memory_plan import Plan
from fmstune.config.job import Job
from fmstune.config.renamed_fields import USUAL_RATE
from fmstune.data.dataset import Prepared
from fmstune.errors import UserError
from fmstune.models.load import Tokenizer
from fmstune.runs import learning_rate, looks
from fmstune.runs.learning_rate import Probe, RateChoice
from fmstune.training.objectives.base import BaseObjective, load_objective
from fmstune.training.preflight import Checked
from fmstune.training.rate_probes.ladder import EXPONENT, Ladder, choose, plan_ladder
from fmstune.training.run import build_trainer
from fmstune.training.trainer import BrokenLoss

_ROWS = 512
"""Held-out rows of each set that a probe is measured on, at most."""


def choose_rate(job: Job, checked: Checked, tokenizer: Tokenizer, prepared: Prepared, plan: Plan) -> None:
    """Probe rates around the usual one until the best lies between two others, and write the choice into the folder.

    Raises UserError where rows are missing to measure on, or training broke at each rate.
    """
    usual, ladder, main = float(job.training[USUAL_RATE]), plan_ladder(plan.total_steps), ranks.here().is_main
    rows, held_out = _held_out(job, prepared)
    probing = _Probing(job, ladder, checked, tokenizer, rows, held_out)
    if main:
        print(ladder.line(), file=sys.stderr, flush=True)
    while (rate := ladder.next_coarse(probing.coarse, usual)) is not None:
        probing.coarse[rate] = probing.run(rate, ladder.coarse)
    while (rate := ladder.next_fine(probing.coarse, probing.fine)) is not None:
        probing.fine[rate] = probing.run(rate, ladder.fine)
    rate, low, high = (float(f"{one:.3g}") for one in choose(ladder, probing.fine))
    choice = RateChoice(rate, low, high, usual, ladder.total, EXPONENT, tuple(probing.made))
    if main:
        learning_rate.write_choice(Path(str(job.output_dir)), choice)
        print(choice.line() + "\n", file=sys.stderr, flush=True)


@dataclass
class _Probing:
    """The probes of a job, and what they have found so far."""

    job: Job
    ladder: Ladder
    checked: Checked
    tokenizer: Tokenizer
    rows: Prepared
    held_out: Mapping[str, Dataset]
    coarse: dict[float, list[float] | None] = field(default_factory=dict)
    fine: dict[float, list[float] | None] = field(default_factory=dict)
    made: list[Probe] = field(default_factory=list)

    def run(self, rate: float, steps: int) -> list[float] | None:
        """Train for so many steps at this rate; the losses of the held-out rows, None where the training broke."""
        begun = time.perf_counter()
        losses = self._train(load_objective(probe_job(self.job, rate, steps, self.ladder.total)))
        told: list[Any] = [losses]
        broadcast_object_list(told)  # each process must choose the same next rate
        found: list[float] | None = told[0]
        loss = None if found is None else math.fsum(found) / len(found)
        made = Probe(float(f"{rate:.4g}"), steps, loss, round(time.perf_counter() - begun, 3))
        self.made.append(made)
        if ranks.here().is_main:
            end = "training broke" if loss is None else f"held-out loss {loss:.4g}"
            said = f"probe {len(self.made)}: learning rate {rate:.2g}, {steps:,} steps, {end} ({made.seconds:.1f} s)"
            print(said, file=sys.stderr, flush=True)
        return found

    def _train(self, objective: BaseObjective) -> list[float] | None:
        trainer, _ = build_trainer(objective, self.checked, self.tokenizer, self.rows, [])
        try:
            trainer.train()
            found = looks.make_look(1, 1, "", objective.row_losses(trainer, self.held_out)).losses
            return found if all(map(math.isfinite, found)) else None
        except BrokenLoss:
            return None
        finally:
            trainer.accelerator.free_memory()
            del trainer
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def probe_job(job: Job, rate: float, steps: int, total: int) -> Job:
    """Return the job at this rate, with its schedule squeezed into so many of its `total` steps; it saves nothing."""
    training = dict(learning_rate.with_rate(job, rate).training)
    share = steps / total
    if (training.get("warmup_steps") or 0) >= 1:
        training["warmup_steps"] = round(training["warmup_steps"] * share)
    if settings := training.get("lr_scheduler_kwargs"):
        training["lr_scheduler_kwargs"] = {
            name: max(round(value * share), 1) if name.endswith("_steps") and type(value) is int else value
            for name, value in settings.items()
        }
    training |= {"max_steps": steps, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    training |= {"logging_strategy": "steps", "logging_steps": 1, "eval_on_start": False, "resume": None}
    return dataclasses.replace(
        job,
        training=training,
        data=dataclasses.replace(job.data, row_losses=False),
        evaluation=dataclasses.replace(job.evaluation, max_rows=min(job.evaluation.max_rows or _ROWS, _ROWS), sample=0),
    )


def _held_out(job: Job, prepared: Prepared) -> tuple[Prepared, dict[str, Dataset]]:
    """The rows that probes train on, and those that they are measured on: the job's own, or a tenth of the others."""
    if prepared.held_out:
        return prepared, {part.name: part.rows for part in prepared.held_out}
    rows = prepared.train
    if not isinstance(rows, Dataset) or len(rows) < 2:
        hint = "set data.eval or data.eval_fraction"
        raise UserError("training.learning_rate", f"=auto measures its probes on held-out rows; {hint}")
    order = np.random.default_rng(job.seed).permutation(len(rows))
    few = min(max(len(rows) // 10, 1), _ROWS)
    left = dataclasses.replace(prepared, train=rows.select(sorted(order[few:].tolist())))
    return left, {"": rows.select(sorted(order[:few].tolist()))}
