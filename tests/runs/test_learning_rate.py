# SPDX-License-Identifier: Apache-2.0
"""An open learning rate becomes the usual one, a given one, or the one that the run folder keeps."""

import json
from pathlib import Path

import pytest

from fmstune.config.compose import compose_job
from fmstune.config.freeze import freeze
from fmstune.config.job import Job
from fmstune.config.overrides import parse_overrides
from fmstune.errors import UserError
from fmstune.runs import learning_rate
from fmstune.runs.learning_rate import Probe, RateChoice

CHOICE = RateChoice(
    3.2e-4, 2.1e-4, 5e-4, 1e-4, 100, 0.32, (*[Probe(1e-4, 5, 0.5, 1.0)] * 5, *[Probe(2e-4, 20, None, 2.0)] * 3)
)


def job(*words: str) -> Job:
    return freeze(compose_job(parse_overrides(words)).tree()).job


@pytest.mark.parametrize(
    ("words", "usual"),
    [
        ("peft=lora", 5e-3),
        ("peft=lora model=llama2_7b", 1e-4),
        ("peft=full model=llama2_7b", 1e-5),
        ("experiment=complaints_lora", 5e-3),
        ("training.usual_learning_rate=0.3", 0.3),
    ],
)
def test_probes_look_around_the_rate_that_the_job_has_without_auto(words: str, usual: float) -> None:
    opened = job(*words.split(), "training.learning_rate=auto")
    assert learning_rate.is_rate_open(opened)
    given = learning_rate.with_usual_rate(opened)
    assert given.training["learning_rate"] == usual and "usual_learning_rate" not in given.training
    assert not learning_rate.is_rate_open(given)


def test_a_job_in_a_folder_with_a_choice_has_the_rate_of_it(tmp_path: Path) -> None:
    opened, given = job("training.learning_rate=auto"), job("training.learning_rate=0.1")
    assert learning_rate.with_chosen_rate(opened, tmp_path) == opened
    learning_rate.write_choice(tmp_path, CHOICE)
    assert learning_rate.with_chosen_rate(opened, tmp_path).training["learning_rate"] == 3.2e-4
    assert learning_rate.with_chosen_rate(given, tmp_path) == given
    (tmp_path / "learning_rate.json").write_text(json.dumps({"rate": "high"}))
    with pytest.raises(UserError, match="rate must be a number"):
        learning_rate.with_chosen_rate(opened, tmp_path)


def test_the_choice_is_said_in_one_line() -> None:
    said = "learning_rate 0.00032 (0.00021 to 0.0005), chosen by 5 probes of 5 steps and 3 probes of 20 steps"
    assert CHOICE.line() == said
