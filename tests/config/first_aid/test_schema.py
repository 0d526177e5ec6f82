"""The JSON schema takes every shipped file and every job, and refuses what a job refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fmstune.conf
import jsonschema
import pytest
import yaml

from fmstune.config import choices, freeze, groups
from fmstune.config.first_aid.schema import group_schema, job_schema
from fmstune.errors import UserError
from tests.composing import composed_tree
from tests.conftest import Result

CONF = Path(next(iter(fmstune.conf.__path__)))
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
Validator = jsonschema.Draft7Validator


def schema_of(file: Path) -> dict[str, Any]:
    """That of its group, or where the file sets fields of several groups, that of the job."""
    of_job = len(file.parts) == 1 or "# @package _global_" in (CONF / file).read_text()
    return job_schema() if of_job else group_schema(file.parts[0])


def faults(schema: dict[str, Any], tree: Any) -> list[str]:
    found = Validator(schema).iter_errors(json.loads(json.dumps(tree)))
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in found]


def test_there_are_all_files_of_all_groups() -> None:
    assert {file.parts[0] for file in FILES} == {*groups.GROUPS, "job.yaml"}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_shipped_file_fits_its_schema(file: Path) -> None:
    assert faults(schema_of(file), yaml.safe_load((CONF / file).read_text())) == []


@pytest.mark.parametrize("group", groups.GROUPS)
def test_the_schemas_are_schemas_themselves(group: str) -> None:
    Validator.check_schema(group_schema(group))


@pytest.mark.parametrize("words", [[], ["peft=lora"], ["launcher=slurm"], ["callbacks=early_stopping"]])
def test_a_frozen_job_fits(words: list[str]) -> None:
    assert faults(job_schema(), freeze.as_tree(freeze.freeze(composed_tree(*words)).job)) == []


@pytest.mark.parametrize(
    ("group", "text"),
    [
        ("training", "learning_rat: 1e-4"),
        ("training", "learning_rate: [1]"),
        ("training", "eval_strategy: sometimes"),
        ("training", "max_length: 3"),
        ("peft", "_target_: peft.LoraConfig\nnum_virtual_tokens: 3"),
        ("peft", "rr: 3"),
        ("data", "trian: x"),
        ("data", "over_length: cut"),
        ("model", "dtype: float8"),
        ("model", "quantization: {load_in_4bits: true}"),
        ("launcher", "slurm: {partition: 3, nodes: 4}"),
        ("callbacks", "mine: {steps: 3}"),
        ("callbacks", "early_stopping: {patience: often}"),
        ("tracking", "aim: {rep: x}"),
        ("experiment", "trainin: {seed: 1}"),
        ("experiment", "training: {learning_rat: 1}"),
        ("search", "peft: {r: [4, 16]}"),
    ],
)
def test_what_a_job_refuses_is_marked(group: str, text: str) -> None:
    assert faults(group_schema(group), yaml.safe_load(text)) != []


@pytest.mark.parametrize(
    ("group", "text"),
    [
        ("search", "peft: lora\npeft.r: [4, 16]\ntraining.learning_rate: tag(log,interval(1e-5,1e-2))"),
        ("training", "learning_rate: 1e-4\nwarmup_ratio: 0.1\nresume: auto"),
        ("training", "learning_rate: ${model.rate}"),
        ("training", "learning_rate: auto"),
        ("peft", "_target_: peft.LoraConfig\nr: 4\nusual_learning_rate: 1.0e-4\nloraplus_lr_ratio: 16"),
        ("data", "response_template: x\ntrain: {a: {path: a.jsonl, weight: 2}}"),
        ("callbacks", "mine: {_target_: my.Class, steps: 3}\nstop_when: [loss < 1]"),
        ("tracking", "mine: {_target_: my.Tracker}\naim: null"),
        ("experiment", "defaults: [{override /model: tiny_llama}]\nname: x\nlauncher: {slurm: {time: '1:00'}}"),
    ],
)
def test_what_a_job_takes_is_not_marked(group: str, text: str) -> None:
    assert faults(group_schema(group), yaml.safe_load(text)) == []


def test_fields_are_described_and_words_are_listed() -> None:
    found = group_schema("data")["properties"]
    assert found["max_length"]["description"] == "Tokens in a row at most, end-of-sequence included."
    assert found["over_length"]["anyOf"][0] == {"enum": [one.value for one in choices.OverLength]}


def test_an_unknown_group_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="^schema: the group 'trainning' does not exist; did you mean 'training'?"):
        group_schema("trainning")


def test_the_command_prints_or_writes_it(fmstune: Callable[..., Result]) -> None:
    assert json.loads(fmstune("schema").out) == json.loads(json.dumps(job_schema()))
    assert fmstune("schema", "peft", "--out_file", "peft.schema.json").out == "wrote peft.schema.json\n"
    assert json.loads(Path("peft.schema.json").read_text()) == json.loads(json.dumps(group_schema("peft")))
    assert fmstune("schema", "--out_file", "nowhere/x.json").code == 2
