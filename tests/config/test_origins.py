# SPDX-License-Identifier: Apache-2.0
"""The named source of a field is the file or the override that set it last."""

import dataclasses
import itertools
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import fmstune.conf
import pytest
import yaml
from omegaconf import OmegaConf

from fmstune.config import defaults, freeze, groups, origins
from fmstune.config.job import FULL, EarlyStopping, Job, Launcher, Slurm
from fmstune.flatten import leaves
from tests.composing import composed
from tests.conftest import Result

pytestmark = pytest.mark.sampled(16)

CONF = Path(next(iter(fmstune.conf.__path__)))
GROUPS = ("model", "peft", "data", "training", "launcher", "evaluation")
BESIDE = ("objective", "tracking", "callbacks")
"""Groups whose choices are not combined with the others': nothing depends on them."""
CHOICES = {group: groups.choices(group) for group in GROUPS}
WITH_EVERY_METHOD = ("tiny_llama", "llama2_7b")
"""A model file that has rates of its own, and one that has none."""
COMBINATIONS = [
    # every model with one method after the other; two models, each with every method; then the groups beside them
    *zip(CHOICES["model"], itertools.cycle(CHOICES["peft"]), itertools.cycle(CHOICES["data"])),
    *itertools.product(WITH_EVERY_METHOD, CHOICES["peft"], ["complaints"]),
    *zip(
        *zip(*[("tiny_llama", "lora", "complaints")] * 8, strict=True),
        itertools.cycle(CHOICES["training"]),
        itertools.cycle(CHOICES["launcher"]),
        itertools.cycle(CHOICES["evaluation"]),
    ),
]
EXPERIMENTS = groups.choices("experiment")


@cache
def read_yaml(name: str) -> dict[str, Any]:
    """A file of the shipped groups as plain YAML."""
    return yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8")) or {}


def parts(group: str, name: str) -> list[tuple[str, dict[str, Any]]]:
    """A choice's file and before it those that its own defaults list names."""
    tree = {**read_yaml(f"{group}/{name}")}
    before = [part for entry in tree.pop("defaults", []) if isinstance(entry, str) for part in included(group, entry)]
    is_global = (CONF / group / f"{name}.yaml").read_text(encoding="utf-8").startswith("# @package _global_")
    return [*before, (f"{group}/{name}.yaml", tree if is_global else {group: tree})]


def included(group: str, entry: str) -> list[tuple[str, dict[str, Any]]]:
    """The parts of an entry in the defaults list of a choice's file."""
    if entry == "_self_":
        return []
    if not entry.startswith("/fields/"):
        return parts(group, entry.partition("@")[0])
    name, _, package = entry.removeprefix("/fields/").partition("@")
    cls = {"slurm": Slurm, "early_stopping": EarlyStopping}[name]
    return [(origins.DEFAULT, {group: {package: defaults.defaults_of(cls)}})]


def expected(words: list[str]) -> dict[origins.Key, origins.Origin]:
    """Without Hydra: the files in the order of conf/job.yaml, and for each value the last that holds it."""
    job = {**read_yaml("job")}
    entries = [entry for entry in job.pop("defaults") if isinstance(entry, dict)]
    chosen = {name: choice for entry in entries for name, choice in entry.items() if name in (*GROUPS, *BESIDE)}
    given = dict(word.split("=") for word in words)
    experiment = given.pop("experiment", None)
    if experiment:
        entries = read_yaml(f"experiment/{experiment}")["defaults"]
        chosen |= {next(iter(e)).removeprefix("override /"): e[next(iter(e))] for e in entries}
    chosen |= given
    del job["hydra"]
    files = [(origins.DEFAULT, defaults.defaults_of(Job)), ("job.yaml", job)]
    for group in chosen:
        files += parts(group, chosen[group])
    files += parts("experiment", experiment) if experiment else []
    found = {key: origins.Origin(name, value) for name, tree in files for key, value in leaves(tree)}
    # a group without a key is no value of the job where another file fills it
    return {key: o for key, o in found.items() if not any(k[: len(key)] == key and k != key for k in found)}


def check(words: list[str]) -> None:
    job = composed(*words)
    found = origins.composition_origins(job)
    assert found == expected(words)
    assert set(found) == {key for key, _ in leaves(OmegaConf.to_container(job.job))}


@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
def test_every_field_of_every_combination_names_the_last_file_that_holds_it(combination: tuple[str, ...]) -> None:
    check([f"{group}={choice}" for group, choice in zip(GROUPS, combination, strict=False)])


def test_every_choice_is_in_a_combination() -> None:
    for place, group in enumerate(GROUPS):
        assert {combination[place] for combination in COMBINATIONS if len(combination) > place} == {*CHOICES[group]}


@pytest.mark.soak
@pytest.mark.parametrize("model", CHOICES["model"])
def test_so_does_every_model_with_every_method(model: str) -> None:
    for method in CHOICES["peft"]:
        check([f"model={model}", f"peft={method}"])


@pytest.mark.slow
def test_so_do_the_groups_beside_them() -> None:
    choices = {group: groups.choices(group) for group in BESIDE}
    for number in range(max(map(len, choices.values()))):
        check([f"{group}={names[number % len(names)]}" for group, names in choices.items()])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("words", [[], ["model=llama2_13b"], ["peft=prompt_tuning", "data=text"]])
def test_so_does_every_experiment_and_a_choice_wins_over_it(experiment: str, words: list[str]) -> None:
    check([f"experiment={experiment}", *words])


def table(fmstune: Callable[..., Result], *words: str) -> dict[str, list[str]]:
    """Value and source of each field, as printed."""
    done = fmstune("--cfg", "job", "--sources", *words)
    assert done.code == 0, done.err
    return read(done.out)


def read(text: str) -> dict[str, list[str]]:
    return {name: rest for name, *rest in (re.split(r" {2,}", line) for line in text.splitlines())}


@pytest.mark.parametrize(
    ("words", "field", "value", "source"),
    [
        ("peft=lora", "training.learning_rate", "0.005", "model/tiny_llama.yaml → ${by_method:…}"),
        (
            "peft=lora model=llama2_7b",
            "training.learning_rate",
            "0.0001",
            "training/default.yaml → ${usual_rate:…} (peft/lora.yaml)",
        ),
        (
            "peft._target_=peft.LoHaConfig model=llama2_7b",
            "training.learning_rate",
            "0.0001",
            "training/default.yaml → ${usual_rate:…} (command line, default)",
        ),
        ("peft=lora", "training.optim", "adamw_torch_fused", "training/default.yaml"),
        ("peft=lora training.learning_rate=1", "training.learning_rate", "1.0", "command line"),
        ("training.max_steps=5", "training.max_steps", "5", "command line"),
        ("+training.max_steps=5", "training.max_steps", "5", "command line"),
        ("seed=42", "seed", "42", "command line"),
        ("", "seed", "42", "default"),
        ("", "output_dir", "null", "default; train fills it"),
        ("output_dir=run", "output_dir", "run", "command line"),
        (
            "peft=lora",
            "peft.target_modules",
            "[q_proj, v_proj]",
            "peft/lora.yaml → ${model.lora_targets} (model/tiny_llama.yaml)",
        ),
        (
            "peft=lora model.lora_targets=[k_proj]",
            "peft.target_modules",
            "[k_proj]",
            "peft/lora.yaml → ${model.lora_targets} (command line)",
        ),
        (
            "name=${peft._target_}-${seed}",
            "name",
            "fmstune.models.adapters.full-42",
            "command line → ${peft._target_}-${seed} (peft/full.yaml, default)",
        ),
        ("peft=lora peft.lora_alpha=${.r}", "peft.lora_alpha", "8", "command line → ${.r} (peft/lora.yaml)"),
        (
            'data.response_template="${first:${data.eval},x}"',
            "data.format.response_template",
            "package:complaints/held_out.jsonl",
            "command line → ${first:${data.eval},x} (data/complaints.yaml) as data.response_template",
        ),
        ("experiment=complaints_lora", "peft.target_modules", "all-linear", "experiment/complaints_lora.yaml"),
        ("experiment=complaints_lora", "name", "complaints-lora", "experiment/complaints_lora.yaml"),
        (
            "training.lr_scheduler_kwargs={min_lr_rate:0.1}",
            "training.lr_scheduler_kwargs.min_lr_rate",
            "0.1",
            "command line",
        ),
        (
            "training.evaluation_strategy=epoch",
            "training.eval_strategy",
            "epoch",
            "command line as training.evaluation_strategy",
        ),
        ("~launcher.device", "launcher.device", "auto", "default"),
        ("~evaluation.base", "evaluation.base", "true", "default"),
        (
            r'data.response_template="\n### Label:"',
            "data.format.response_template",
            r"'\n### Label:'",
            "command line as data.response_template",
        ),
        ("", "data.format.response_template", r'"\n### Label:"', "data/complaints.yaml"),
        ("data=text", "data.train", "???", "data/text.yaml"),
        ("model=llama2_7b", "model.architecture.hidden_size", "4096", "model/llama2_7b.yaml"),
    ],
)
def test_a_field_and_where_it_comes_from(
    words: str, field: str, value: str, source: str, fmstune: Callable[..., Result]
) -> None:
    assert table(fmstune, *words.split(maxsplit=0 if '"' in words else -1))[field] == [value, source]


def test_files_of_a_users_folder_are_named_by_their_path(tmp_path: Path, fmstune: Callable[..., Result]) -> None:
    files = {
        "data/labels.yaml": "defaults:\n  - text\ntrain: rows.jsonl\n",
        "peft/lora.yaml": "_target_: peft.LoraConfig\nr: 3\n",
        "model/bare.yaml": "path: package:tiny_llama\n",
    }
    for name, text in files.items():
        (tmp_path / "my" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "my" / name).write_text(text)
    shown = table(fmstune, "--config-dir", "my", "data=labels", "model=bare")
    assert shown["data.train"] == ["rows.jsonl", "my/data/labels.yaml"]
    assert shown["data.max_length"] == ["4096", "default"]
    assert shown["model.path"] == ["package:tiny_llama", "my/model/bare.yaml"]
    assert shown["model.dtype"] == ["auto", "default"]
    # a shipped file wins over a user's of the same name
    lora = table(fmstune, "--config-dir", "my", "peft=lora")
    assert lora["peft.r"] == ["8", "peft/lora.yaml"]


def test_a_folder_elsewhere_is_named_in_full(
    tmp_path: Path, fmstune: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my" / "peft").mkdir(parents=True)
    (tmp_path / "my" / "peft" / "wide.yaml").write_text("_target_: peft.LoraConfig\nr: 64\n")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shown = table(fmstune, "--config-dir", "../my", "peft=wide")
    assert shown["peft.r"] == ["64", str(tmp_path / "my" / "peft" / "wide.yaml")]


def test_part_of_the_table_is_printed_with_package(fmstune: Callable[..., Result]) -> None:
    names = [f"launcher.{field.name}" for field in dataclasses.fields(Launcher)]
    assert list(table(fmstune, "-p", "launcher")) == names


@pytest.mark.slow
def test_the_check_follows_the_table(fmstune: Callable[..., Result]) -> None:
    plain = fmstune("check", "peft=lora", "data.max_rows=8")
    done = fmstune("check", "--sources", "peft=lora", "data.max_rows=8")
    assert done.code == 0
    shown, found, rest = done.out.partition("\n\n")
    assert read(shown)["data.max_rows"] == ["8", "command line"]
    assert found and rest == plain.out


def test_the_table_comes_before_what_the_rules_find(fmstune: Callable[..., Result]) -> None:
    done = fmstune("check", "--sources", "evaluation.max_new_tokens=0")
    assert done.code == 2
    assert read(done.out.strip())["evaluation.max_new_tokens"] == ["0", "command line"]
    assert "evaluation.max_new_tokens" in done.err


@pytest.mark.slow
def test_each_point_of_a_sweep_has_its_table(fmstune: Callable[..., Result]) -> None:
    done = fmstune("check", "--sources", "-m", "peft=full,lora", "data.max_rows=8")
    assert done.code == 0
    blocks = [read(block) for block in re.findall(r"^name .*?(?=\n\n)", done.out, re.DOTALL | re.MULTILINE)]
    assert [block["training.learning_rate"][0] for block in blocks] == ["0.001", "0.005"]
    assert all(block["output_dir"][1] == "a folder for each point of the sweep" for block in blocks)


@pytest.mark.slow
def test_a_frozen_job_is_its_own_source_and_changes_are_the_command_line(
    tmp_path: Path, fmstune: Callable[..., Result]
) -> None:
    frozen = freeze.freeze(
        {
            "name": "x",
            "model": {"path": "package:tiny_llama"},
            "peft": {"_target_": FULL},
            "data": {
                "format": {
                    "_target_": "fmstune.data.formats.text",
                    "text_field": "output",
                    "response_template": "${seed}",
                },
                "train": "package:complaints/train.jsonl",
                "untrainable": "drop",
            },
            "training": {"max_steps": 1},
        }
    )
    freeze.write(frozen.job, tmp_path / "job.yaml")
    done = fmstune("check", "--sources", "--from", "job.yaml", "seed=7", r'data.response_template="\n### Label:"')
    assert done.code == 0, done.err
    shown = read(done.out.partition("\n\n")[0])
    assert shown["name"] == ["x", "job.yaml"]
    assert shown["seed"] == ["7", "command line"]
    assert shown["data.format.response_template"][1] == "command line as data.response_template"
    assert shown["output_dir"] == ["null", "command line; train fills it"]


def test_what_a_run_keeps_are_the_sources_that_are_no_defaults() -> None:
    given = {("seed",): origins.Origin(origins.COMMAND_LINE, 3), ("a",): origins.Origin("a.yaml", {})}
    tree = {"seed": 3, "name": "x", "a": {"b": 1}}
    assert origins.recorded_origins(tree, given) == {"seed": "command line", "a.b": "a.yaml"}
