"""Spaces as files: a file's lines stand for words of the command line, which wins over them."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fmstune.config import groups
from fmstune.config.overrides import parse_overrides, text_of
from fmstune.config.requests import HydraFlags
from fmstune.errors import UserError
from fmstune.sweeps.search_files import with_search_files
from tests.conftest import Result

SWEEP = HydraFlags(multirun=True, config_dir="mine")


def words_of(*words: str, text: str = "") -> list[str]:
    """The words in place of these; a text is that of the file `search=own`."""
    file = Path("mine/search/own.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return [text_of(one) for one in with_search_files(parse_overrides(words, groups.GROUPS), SWEEP)]


def test_the_shipped_spaces_are_these() -> None:
    assert words_of("search=lora_rates") == ["peft=lora", "training.learning_rate=tag(log,interval(1e-5,1e-2))"]
    found = ["peft=lora", "peft.r=4,16,64", "peft.target_modules=${model.lora_targets},all-linear"]
    assert words_of("search=lora_capacity") == found
    assert groups.choices("search") == ["lora_capacity", "lora_rates"]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("seed: [1, 2]", "seed=1,2"),
        ("seed: 1,2", "seed=1,2"),
        ("seed: range(1,4)", "seed=range(1,4)"),
        ("training.learning_rate: [1e-4, 0.001]", "training.learning_rate=0.0001,0.001"),
        ("training.packing: [true, false]", "training.packing=true,false"),
        ("peft: [lora, full]", "peft=lora,full"),
        ("data.eval: [null, 0]", "data.eval=null,0"),
        ("peft.target_modules: [[q_proj, v_proj], all-linear]", "peft.target_modules=[q_proj,v_proj],all-linear"),
        ("hydra/sweeper: optuna\nseed: 1,2", "hydra/sweeper=optuna"),
    ],
)
def test_a_line_is_a_word(line: str, word: str) -> None:
    given = () if "peft" not in line or line.startswith("peft:") else ("peft=lora",)
    assert words_of("search=own", *given, text=line)[0] == word


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("peft.r=8",), ["peft=lora", "seed=1,2", "peft.r=8"]),
        (("++peft.r=8",), ["peft=lora", "seed=1,2", "++peft.r=8"]),
        (("peft=dora", "seed=3"), ["peft.r=4,16", "peft=dora", "seed=3"]),
        (("experiment=complaints_lora",), ["peft.r=4,16", "seed=1,2", "experiment=complaints_lora"]),
    ],
)
def test_the_command_line_wins_over_the_file_and_an_experiment_chooses_its_groups(
    words: tuple[str, ...], found: list[str]
) -> None:
    assert words_of("search=own", *words, text="peft: lora\npeft.r: [4, 16]\nseed: [1, 2]") == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("peft: lora\npeft.rr: [4, 16]", "own.yaml: peft.rr: unknown field of peft.LoraConfig; did you mean 'r'?"),
        ("trainig.seed: [1, 2]", "own.yaml: trainig: unknown field; did you mean 'training'?"),
        ("training.max_steps: [3, many]", "own.yaml: training.max_steps must be a whole number, got 'many'"),
        ("peft: lorra\nseed: 1,2", "own.yaml: peft=lorra: no such choice; did you mean 'lora'?"),
        ("peft: {r: [4, 16]}", "own.yaml: peft is a mapping; write the whole name in one line"),
        ("seed: 1", "own.yaml gives several values to no field"),
        ("", "own.yaml must hold lines such as"),
        ("seed: [1", "own.yaml holds broken YAML: while parsing"),
        ("seed: 1,2\nseed: 3,4", "own.yaml holds broken YAML: while constructing a mapping"),
        ("seed: interval(1", "own.yaml: seed=interval(1: cannot be read as FIELD=VALUE"),
    ],
)
def test_a_wrong_file_is_named(text: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        words_of("search=own", text=text)
    assert f"search/{says}" in str(refused.value)


def test_all_wrong_lines_are_told_at_once() -> None:
    with pytest.raises(UserError) as refused:
        words_of("search=own", text="peft: lora\npeft.rr: [4, 16]\ntraining.learning_rat: [1e-3]")
    assert len(refused.value.problems) == 2


def test_a_space_without_a_sweep_and_two_spaces_say_what_to_do(fmstune: Callable[..., Result]) -> None:
    assert "search=lora_rates names the fields of a sweep; add -m" in fmstune("search=lora_rates").err
    done = fmstune("check", "-m", "search=lora_rates,lora_capacity")
    assert "search=lora_rates,lora_capacity: choose one file, such as search=lora_rates" in done.err
    done = fmstune("check", "-m", "search=lora_rate")
    assert "search=lora_rate: no such choice; did you mean 'lora_rates'?" in done.err
    done = fmstune("check", "-m", "search=lora_rates")
    assert "an interval is searched with hydra/sweeper=optuna" in done.err


def test_the_help_and_recipes_know_the_group(fmstune: Callable[..., Result]) -> None:
    assert re.search("\n  search +lora_capacity, lora_rates\n", fmstune("--help").out)
    assert fmstune("recipes", "search").out.startswith("lora_capacity  How much LoRA can learn")
    assert fmstune("copy", "search=lora_rates", "mine").code == 0
    assert words_of("search=my_lora_rates") == words_of("search=lora_rates")
