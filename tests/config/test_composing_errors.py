"""Errors of Hydra and OmegaConf are said in words of a user, with the word or the file that is to be changed."""

from pathlib import Path

import pytest

from fmstune.config.compose import compose_job, wrong_choices
from fmstune.config.composing_errors import ERRORS, explain
from fmstune.config.groups import GROUPS
from fmstune.config.overrides import parse_overrides
from fmstune.config.requests import NO_HYDRA_FLAGS, HydraFlags


def said(*words: str, flags: HydraFlags = NO_HYDRA_FLAGS) -> str:
    """The message about the first word that is wrong."""
    overrides = parse_overrides(words, GROUPS)
    for _, problem in wrong_choices(overrides, flags):
        return str(problem)
    with pytest.raises(ERRORS) as raised:
        compose_job(overrides, flags)
    return str(explain(raised.value))


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("peft=lorra", "peft=lorra: no such choice; did you mean 'lora'? (dora, full, "),
        ("peft=none", "peft=none: no such choice; did you mean peft=full? ("),
        ("peft=qlora", "peft=qlora: no such choice; did you mean peft=lora model.quantization.load_in_4bit=true? ("),
        ("model=owner/name", "model=owner/name: no such choice; a folder, a file or a hub id is given as model=caus"),
        ("model=./mine", "model=./mine: no such choice; a folder, a file or a hub id is given as model=causal_l"),
        ("data=rows.jsonl", "data=rows.jsonl: no such choice; a folder, a file or a hub id is given as data=text d"),
        ("peft=mine/wide", "peft=mine/wide: no such choice ("),
        ("peft='lora '", "peft=lora : no such choice; did you mean 'lora'? ("),
        ("tracking=[[1]]", "tracking=[[1]]: a choice is a name, such as tracking=aim"),
        ("training=bool(2)", "training=bool(2): a choice is a name, such as training=default"),
        ("peft=range(1,3)", "peft=range(1,3): a choice is a name, such as peft=dora"),
        ("evaluation=${first:}", "evaluation=${first:} refers to no group, so it names no choice; name one"),
        ("evaluation=${nosuch}", "${nosuch} refers to no group, so it names no choice; name one"),
        ("hydra/job_logging=colorlog", "hydra/job_logging=colorlog is brought by a plugin: pip install hydra-colorlog"),
        ("hydra/sweeper=nevergrad", "hydra/sweeper=nevergrad is brought by a plugin: pip install hydra-nevergrad-sw"),
        ("hydra/launcher=ray", "hydra/launcher=ray is brought by a plugin: pip install hydra-ray-launcher"),
        ("hydra/job_logging=zzz", "hydra/job_logging=zzz: no such choice (default, disabled, none, stdout)"),
        ("name='${.}'", "name: holds a reference that cannot be read; write it as ${seed} or ${model.path}, and "),
        ("hydra.verbose=${.}", "hydra.verbose=${.}: holds a reference that cannot be read; write it as ${seed} or "),
        ("hydra.job.name=${..}", "hydra.job.name=${..}: holds a reference that cannot be read; write it as ${see"),
        ("hydra.run.dir=${...}", "hydra.run.dir=${...}: holds a reference that cannot be read; write it as ${see"),
        ("model=${.}", "model=${.} refers to no group, so it names no choice; name one"),
        ("experiment=${..}", "experiment=${..} refers to no group, so it names no choice; name one"),
        ("tracking=[${.}]", "a list of choices takes names, not references"),
        ("hydra.zzz=1", "hydra.zzz: Hydra has no such setting (fmstune --cfg hydra lists them)"),
        ("peft@x=lora", "peft@x is not in the job; did you mean peft?"),
        ("nosuch@x=lora", "nosuch@x=lora: no group nosuch"),
        ("~zzz", "~zzz: the job has no such field"),
        ("~seed=3", "~seed is 42; write ~seed"),
        ("+seed=3", "+seed is set already; leave the + out"),
        ("hydra.searchpath=3", "hydra.searchpath must be a list of strings. Got: 3"),
        ("hydra.searchpath=[file://nowhere]", "hydra.searchpath: no folder nowhere"),
        ("hydra.searchpath=[nowhere://x]", "cannot be composed: No config source registered for schema nowhere"),
        ("model.lora_targets={q_proj: 4}", "model.lora_targets={q_proj: 4}: Cannot merge a mapping with a list"),
    ],
)
def test_a_word_that_cannot_be_composed_is_named_with_what_to_do(word: str, message: str) -> None:
    text = said(word)
    assert text.startswith(message)
    assert not {"full_key", "object_type", "search path", "To append"} & {*text.replace("\n", " ").split("  ")}
    assert "\n" not in text


def test_a_choice_is_looked_for_wherever_hydra_searches(tmp_path: Path) -> None:
    (tmp_path / "mine" / "peft").mkdir(parents=True)
    (tmp_path / "mine" / "peft" / "wide.yaml").write_text("_target_: peft.LoraConfig\nr: 64\n")
    found = "hydra.searchpath=[file://mine]"
    overrides = parse_overrides([found, "peft=wide"], GROUPS)
    assert list(wrong_choices(overrides, NO_HYDRA_FLAGS)) == []
    assert compose_job(overrides).tree()["peft"]["r"] == 64
    assert said(found, "peft=wid").startswith("peft=wid: no such choice; did you mean 'wide'? (dora, full, ")


def test_a_config_path_takes_the_place_of_the_shipped_files(tmp_path: Path) -> None:
    flags = HydraFlags(config_path=str(tmp_path))
    assert said("peft=lora", flags=flags).startswith(
        "no file job.yaml where --config-path and --config-name look for the job; "
    )
    (tmp_path / "job.yaml").write_text("defaults:\n  - fields/job@_global_\n  - _self_\n  - peft: lora\n")
    assert said("peft=lora", flags=flags) == "peft=lora: no such choice"


def test_a_file_that_names_another_one_is_said_with_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("defaults:\n  - other\n")
    text = said("data=mine", flags=HydraFlags(config_dir=str(tmp_path)))
    assert text == "data=other: no such choice (in data/mine.yaml)"
