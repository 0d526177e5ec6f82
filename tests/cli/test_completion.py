"""Tab completion: a verb in front does not disturb it, and fields that no YAML lists are offered."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fmstune.cli import completion
from fmstune.config import groups


@pytest.mark.parametrize(
    ("line", "for_hydra"),
    [
        ("fmstune check peft=lo", "fmstune peft=lo"),
        ("fmstune check ", "fmstune "),
        ("fmstune che", "fmstune che"),
        ("fmstune peft=lora training.adam_beta1=0.8 mod", "fmstune peft=lora ++training.adam_beta1=0.8 mod"),
    ],
)
def test_hydra_gets_the_line_without_the_verb(line: str, for_hydra: str) -> None:
    assert completion.line_for_hydra(line) == for_hydra


@pytest.mark.parametrize(
    ("line", "suggested"),
    [
        ("fmstune ch", ["check", "chat"]),
        ("fmstune gen", ["generate"]),
        ("fmstune from", ["from-fms"]),
        ("fmstune from-fms --", ["--run"]),
        ("fmstune repr", ["reproduce"]),
        ("fmstune generate --model lora --te", ["--text", "--text_file", "--temperature"]),
        ("fmstune merge --model lora --w", ["--weight"]),
        ("fmstune report runs/a --", ["--metric", "--direction"]),
        ("fmstune comp", ["compare"]),
        ("fmstune compare a b --", ["--html"]),
        ("fmstune evaluate --model run --me", ["--method"]),
        ("fmstune evaluate harness --num", ["--num_fewshot"]),
        ("fmstune check training.adam_e", ["training.adam_epsilon="]),
        ("fmstune check peft=", []),
    ],
)
def test_verbs_and_training_fields_are_suggested(line: str, suggested: list[str]) -> None:
    assert completion.suggestions(line) == suggested


def test_the_settings_of_a_tracker_are_suggested() -> None:
    assert completion.suggestions("fmstune tracking=aim tracking.aim.re") == ["tracking.aim.repo="]
    assert completion.suggestions("fmstune tracking.none.re") == []


def test_owned_fields_are_not_suggested() -> None:
    assert "training.max_length=" not in completion.suggestions("fmstune training.max")


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("fmstune check peft=", {f"peft={choice}" for choice in groups.choices("peft")}),
        ("fmstune show-data data=tw", {"data=twitter_complaints"}),
        ("fmstune check peft=lora training.adam_beta1=1 launcher.th", {"launcher.threads="}),
    ],
)
def test_the_console_script_completes_after_a_verb(typed: str, expected: set[str]) -> None:
    script = Path(sys.executable).with_name("fmstune")
    done = subprocess.run(
        [script, "-sc", "query=bash"],
        env={**os.environ, "COMP_LINE": typed, "COMP_POINT": str(len(typed))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == expected
    assert done.stderr == ""
