"""Experiments are listed, and copied into a user's folder to be changed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fmstune.config import groups
from fmstune.config.first_aid.recipes import Recipe, copy_choice, first_comment, list_recipes
from fmstune.errors import UserError
from tests.conftest import Result

Run = Callable[..., Result]


def written(name: str, text: str) -> Path:
    file = Path("mine") / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_every_shipped_file_says_what_it_is_for() -> None:
    for group in groups.GROUPS:
        assert all(one.about and one.place is None for one in list_recipes(group)), group


def test_a_users_own_stand_after_the_shipped_ones() -> None:
    file = written(
        "experiment/quick", "# yaml-language-server: $schema=x.json\n# @package _global_\n# Mine.\nseed: 1\n"
    )
    written("experiment/silent", "seed: 2\n")
    found = list_recipes("experiment", Path("mine"))
    assert [one.name for one in found[:2]] == ["complaints_lora", "llama2_7b_alpaca_lora"]
    assert found[2:] == [Recipe("quick", "Mine.", file), Recipe("silent", "", Path("mine/experiment/silent.yaml"))]


def test_the_command_lists_one_line_each(fmstune: Run) -> None:
    written("experiment/quick", "# Mine.\n")
    lines = fmstune("recipes", "--config-dir", "mine").out.splitlines()
    assert lines[0].startswith("complaints_lora        LoRA on the shipped complaints")
    assert lines[-1] == "quick                  Mine. (mine/experiment/quick.yaml)"
    assert fmstune("recipes", "callbacks").out.splitlines()[-1] == "none            Train to the last step."


def test_a_copy_composes_as_its_original_does(fmstune: Run) -> None:
    done = fmstune("copy", "experiment=complaints_lora", "my_conf")
    assert done.out.splitlines() == [
        "wrote my_conf/experiment/my_complaints_lora.yaml",
        "change it, then: fmstune --config-dir my_conf experiment=my_complaints_lora",
    ]
    shown = ("--cfg", "job", "--config-dir", "my_conf")
    copied = fmstune(*shown, "experiment=my_complaints_lora")
    assert copied.code == 0
    assert copied.out == fmstune(*shown, "experiment=complaints_lora").out


def test_what_an_own_experiment_chooses_of_its_folder_is_copied_with_it() -> None:
    written("model/base", "path: x\n")
    written("model/better", "defaults:\n  - base\n  - _self_\n")
    written("data/rows", "train: rows.jsonl\n")
    written("data/unused", "train: other.jsonl\n")
    text = "defaults:\n  - override /model: better\n  - override /data: rows\n  - override /peft: lora\n"
    written("experiment/all", text)
    made = copy_choice("experiment=all", Path("new"), Path("mine"))
    assert [str(path) for path in made] == [
        "new/experiment/my_all.yaml",
        "new/model/better.yaml",
        "new/model/base.yaml",
        "new/data/rows.yaml",
    ]
    assert Path("new/model/better.yaml").read_text() == Path("mine/model/better.yaml").read_text()


def test_nothing_is_overwritten_and_all_that_is_there_is_named() -> None:
    written("model/own", "path: x\n")
    written("experiment/all", "defaults:\n  - override /model: own\n")
    for name in ("experiment/my_all", "model/own"):
        (Path("new") / name).parent.mkdir(parents=True)
        (Path("new") / f"{name}.yaml").write_text("kept")
    with pytest.raises(UserError) as refused:
        copy_choice("experiment=all", Path("new"), Path("mine"))
    assert [problem.field for problem in refused.value.problems] == ["new/experiment/my_all.yaml", "new/model/own.yaml"]
    assert Path("new/model/own.yaml").read_text() == "kept"


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("experiment=complaint_lora", "experiment=complaint_lora: no such choice; did you mean 'complaints_lora'?"),
        ("experimnt=x", "experimnt=x: the group 'experimnt' does not exist; did you mean 'experiment'?"),
        ("experiment", "copy takes GROUP=CHOICE and a folder, such as experiment=complaints_lora my_conf; …"),
    ],
)
def test_an_unknown_name_gets_a_suggestion(word: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        copy_choice(word, Path("new"))
    assert str(refused.value).startswith(says.removesuffix("…"))
    assert not Path("new").exists()


def test_the_first_comment_passes_over_what_programs_read() -> None:
    assert first_comment("# @package _global_\n#\n# Says it.\n# More.\na: 1\n") == "Says it."
    assert first_comment("a: 1\n") == ""
