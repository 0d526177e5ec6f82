# SPDX-License-Identifier: Apache-2.0
"""`training.learning_rate=auto` becomes a number that the run folder keeps, by runs that leave nothing else."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fmstune.config.compose import compose_job
from fmstune.config.freeze import freeze, write
from fmstune.config.job import Job
from fmstune.config.overrides import parse_overrides
from fmstune.training.rate_probes.probes import probe_job
from tests.conftest import Result

JOB = (
    *("training.learning_rate=auto", "peft=lora", "training.max_steps=40", "training.save_strategy=no"),
    *("training.per_device_train_batch_size=2", "data.max_rows=40", "launcher.device=cpu", "output_dir=run"),
)


def job(*words: str) -> Job:
    return freeze(compose_job(parse_overrides([*JOB, *words])).tree()).job


def test_a_probe_is_the_job_with_its_schedule_squeezed_and_saves_nothing() -> None:
    words = (
        "training.warmup_steps=10",
        "training.lr_scheduler_type=warmup_stable_decay",
        "training.eval_strategy=epoch",
    )
    settings = "training.lr_scheduler_kwargs={num_decay_steps: 20, min_lr_ratio: 0.1}"
    small = probe_job(job(*words, settings), 3e-3, steps=10, total=40).training
    assert {**small, **EXPECTED} == small
    assert "usual_learning_rate" not in small
    assert probe_job(job(), 3e-3, steps=10, total=40).training["warmup_steps"] == 0.03


EXPECTED: dict[str, Any] = {
    "learning_rate": 3e-3,
    "max_steps": 10,
    "warmup_steps": 2,
    "lr_scheduler_kwargs": {"num_decay_steps": 5, "min_lr_ratio": 0.1},
    "eval_strategy": "no",
    "save_strategy": "no",
}


@pytest.mark.slow
def test_a_rate_is_chosen_recorded_and_kept(fmstune: Callable[..., Result]) -> None:
    # without held-out rows, some of the others are kept from the probes
    done = fmstune(*JOB, "evaluation=none", "data.eval=null", "training.max_grad_norm=1")
    assert done.code == 0, done.err
    folder = Path("run")
    choice = json.loads((folder / "learning_rate.json").read_text())
    rate, probes = choice["rate"], choice["probes"]
    assert choice["usual"] == 5e-3
    assert choice["low"] <= rate <= choice["high"]
    assert len(probes) >= 8 and {one["steps"] for one in probes} == {3, 8}
    assert sum(one["steps"] for one in probes) <= 50
    # the number is what runs, and the lock keeps how it was chosen
    training = yaml.safe_load((folder / "job.yaml").read_text())["training"]
    assert training["learning_rate"] == rate and "usual_learning_rate" not in training
    assert json.loads((folder / "lock.json").read_text())["learning_rate"] == choice
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "loss" in line] == list(range(1, 41))
    assert max(line.get("learning_rate", 0) for line in logged) == pytest.approx(rate, rel=0.01)
    # one line a probe, and the interval
    assert [line.startswith("probe ") for line in done.err.splitlines()].count(True) == len(probes)
    assert f"learning_rate {rate:.2g} (" in done.err and "chosen by" in done.err
    assert not list(folder.glob("checkpoint-*"))

    again = fmstune(*JOB, "evaluation=none", "data.eval=null", "training.max_grad_norm=1")
    assert again.code == 0 and "is finished already" in again.err and "probe 1" not in again.err
    other = fmstune(*JOB, "evaluation=none", "data.eval=null", "training.max_grad_norm=1", "training.learning_rate=0.5")
    assert other.code == 2 and "training.learning_rate" in other.err


@pytest.mark.slow
def test_check_says_what_probes_take_and_debug_takes_the_usual_rate(fmstune: Callable[..., Result]) -> None:
    done = fmstune("check", *JOB)
    assert done.code == 0, done.err
    assert (
        "learning_rate=auto: at least 5 probes of 3 steps and 3 of 8; at most 50 steps, 1.25 of the run's" in done.out
    )
    short = fmstune("check", *JOB, "training.max_steps=20")
    assert short.code == 2 and "a run of 20 steps is too short for probes" in short.err
    # where a recorded job is repeated, probes look around its rate
    write(job("training.learning_rate=3e-3"), Path("recorded.yaml"))
    repeated = fmstune("check", "--from=recorded.yaml", "--sources", "training.learning_rate=auto")
    assert re.search(r"training\.usual_learning_rate +0\.003 ", repeated.out), repeated.err
    tried = fmstune("check", *JOB, "debug=overfit")
    assert "tries the job at its usual rate, 0.005" in tried.err and "probes" not in tried.out
