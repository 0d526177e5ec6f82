"""Every combination of the shipped groups composes and freezes; a new YAML is picked up without touching this file."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fmstune.conf
import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from fmstune.checks import job as rules
from fmstune.config import compose as composition
from fmstune.config import freeze, groups
from fmstune.config.job import FULL
from fmstune.data.format_loading import load_format

GROUPS = {group: groups.choices(group) for group in ("model", "peft", "data", "launcher", "evaluation")}
COMBINATIONS = [
    # every method on every model and every launcher with every kind of data; the groups meet nowhere else
    *zip(
        *zip(*itertools.product(GROUPS["model"], GROUPS["peft"]), strict=True),
        itertools.cycle(GROUPS["data"]),
        itertools.cycle(GROUPS["launcher"]),
    ),
    *itertools.product(["tiny_llama"], ["lora"], GROUPS["data"], GROUPS["launcher"]),
]
CONF = Path(next(iter(fmstune.conf.__path__)))


@pytest.fixture(autouse=True)
def composing() -> Iterator[None]:
    OmegaConf.register_new_resolver(
        "first", lambda *values: next((v for v in values if v is not None), None), replace=True
    )
    with initialize_config_module("fmstune.conf", version_base="1.3"):
        yield


def composed(*overrides: str) -> dict[str, Any]:
    return composition.tree(compose("job", overrides=list(overrides)))


def test_the_matrix_is_what_is_shipped() -> None:
    assert len(COMBINATIONS) >= 48
    assert len(GROUPS["evaluation"]) >= 2
    assert {"tiny_llama", "llama2_7b", "llama2_13b", "causal_lm"} <= set(GROUPS["model"])
    assert {"tiny_gpt_bigcode", "gpt_bigcode", "santacoder"} <= set(GROUPS["model"])
    assert {"full", "lora", "prompt_tuning"} <= set(GROUPS["peft"])
    assert {"dora", "rslora", "lora_plus", "ia3", "p_tuning", "prefix_tuning"} <= set(GROUPS["peft"])
    assert {"complaints", "alpaca", "twitter_complaints", "text", "chat"} <= set(GROUPS["data"])


@pytest.mark.parametrize(("model", "peft", "data", "launcher"), COMBINATIONS)
def test_every_combination_composes_and_freezes(model: str, peft: str, data: str, launcher: str) -> None:
    words = [f"model={model}", f"peft={peft}", f"data={data}", f"launcher={launcher}"]
    words += ["++model.path=owner/name"] if model == "causal_lm" else []
    words += ["++data.train=rows.jsonl"] if data != "complaints" else []
    words += ["++data.format.template_file=row.jinja"] if data == "template" else []
    job = freeze.freeze(composed(*words)).job
    assert (job.peft["_target_"] == FULL) is (peft == "full")
    assert callable(load_format(job.data.format))


@pytest.mark.parametrize("evaluation", GROUPS["evaluation"])
def test_every_way_of_evaluation_composes(evaluation: str) -> None:
    job = freeze.freeze(composed(f"evaluation={evaluation}")).job
    assert job.evaluation.enabled is (evaluation != "none")


@pytest.mark.parametrize("names", [*itertools.combinations(groups.choices("tracking"), 2), groups.choices("tracking")])
def test_any_trackers_compose_together(names: tuple[str, ...]) -> None:
    tracking = freeze.freeze(composed(f"tracking=[{','.join(names)}]")).job.tracking
    chosen = {name for name, value in dataclasses.asdict(tracking).items() if value is not None}
    assert chosen == {*names} - {"file"}


EXPERIMENTS = groups.choices("experiment")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_without_a_problem(experiment: str) -> None:
    words = [f"experiment={experiment}"]
    if composed(*words)["data"]["train"] == "???":
        words.append("++data.train=package:complaints/train.jsonl")
    job = freeze.freeze(composed(*words)).job
    assert list(rules.problems(job)) == []


def test_there_are_worked_presets() -> None:
    assert len(EXPERIMENTS) >= 2


def test_the_default_job_has_no_problem_and_nothing_to_note() -> None:
    job = freeze.freeze(composed()).job
    assert list(rules.problems(job)) == []
    assert list(rules.notes(job)) == []


@pytest.mark.parametrize(
    ("model", "peft", "rate"),
    [
        ("llama2_7b", "full", 1e-5),
        ("llama2_7b", "lora", 1e-4),
        ("llama2_13b", "full", 1e-5),
        ("llama2_13b", "lora", 1e-4),
    ],
)
def test_llama_2_keeps_the_early_readmes_rates(model: str, peft: str, rate: float) -> None:
    assert composed(f"model={model}", f"peft={peft}")["training"]["learning_rate"] == rate


def test_rates_come_with_model_and_method_and_the_command_line_wins() -> None:
    rates = {peft: composed(f"peft={peft}")["training"]["learning_rate"] for peft in ("full", "lora", "prompt_tuning")}
    assert rates == {"full": 1e-3, "lora": 5e-3, "prompt_tuning": 3e-2}
    assert composed("peft=lora", "++training.learning_rate=0.5")["training"]["learning_rate"] == 0.5


def test_lora_adapts_what_the_architecture_says() -> None:
    assert composed("peft=lora")["peft"]["target_modules"] == ["q_proj", "v_proj"]
    assert composed("peft=lora", "model=causal_lm", "++model.path=a/b")["peft"]["target_modules"] is None


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_yaml_says_in_its_first_line_when_to_choose_it(path: Path) -> None:
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    comment = second if first.startswith("# @package") else first
    assert comment.startswith("# ")
    assert len(comment) > 20


USUAL_RATES = {
    "full": 1e-5,
    "lora": 1e-4,
    "dora": 1e-4,
    "rslora": 1e-4,
    "lora_plus": 5e-5,
    "ia3": 3e-3,
    "p_tuning": 1e-3,
    "prefix_tuning": 1e-2,
    "prompt_tuning": 3e-2,
}


@pytest.mark.parametrize("peft", GROUPS["peft"])
@pytest.mark.parametrize("model", [name for name in GROUPS["model"] if not name.startswith("tiny_")])
def test_a_method_brings_its_usual_rate_to_every_model(model: str, peft: str) -> None:
    words = ["++model.path=a/b"] if model == "causal_lm" else []
    training = composed(f"model={model}", f"peft={peft}", *words)["training"]
    assert training["learning_rate"] == USUAL_RATES[peft]
    assert training["per_device_train_batch_size"] == 4


def test_every_training_for_file_belongs_to_a_model_or_a_method_or_both() -> None:
    pairs = {f"{model}_{peft}" for model in GROUPS["model"] for peft in GROUPS["peft"]}
    expected = {"training_for": pairs, "model": set(GROUPS["model"]), "peft": set(GROUPS["peft"])}
    files = list((CONF / "training_for").rglob("*.yaml"))
    assert len(files) > len(GROUPS["peft"])
    for path in files:
        assert path.stem in expected[path.parent.name], path
    assert {path.stem for path in files if path.parent.name == "peft"} == set(GROUPS["peft"])


def test_the_groups_of_the_help_are_the_folders_of_conf() -> None:
    folders = {path.name for path in CONF.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert folders == {*groups.GROUPS, "training_for"}


def test_defaults_live_in_one_place_the_yaml_of_the_group_says_them_all() -> None:
    """A field that a group's YAML leaves out would have a second home for its default."""
    from fmstune.config import job

    for group, cls in (("model", job.Model), ("data", job.Data)):
        names = {field.name for field in dataclasses.fields(cls)}
        for path in (CONF / group).glob("*.yaml"):
            assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) == names, path


def test_a_launchers_file_lists_the_fields_that_it_uses_and_sets_only_what_it_is() -> None:
    from fmstune.config.job import Launcher

    own = {"strategy", "fsdp_version", "transformer_layer_cls_to_wrap", "slurm"}
    defaults = freeze.freeze(composed()).job.launcher
    for path in (CONF / "launcher").glob("*.yaml"):
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert given.keys() <= {field.name for field in dataclasses.fields(Launcher)}, path
        launcher = freeze.freeze(composed(f"launcher={path.stem}")).job.launcher
        assert {name for name in given if getattr(launcher, name) != getattr(defaults, name)} <= own, path


@pytest.mark.parametrize("group", ["tracking", "callbacks"])
def test_a_file_of_an_optional_part_lists_all_of_its_fields_and_sets_none_of_them_otherwise(group: str) -> None:
    for name in groups.choices(group):
        given = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
        parts = freeze.as_tree(freeze.freeze(composed(f"{group}={name}")).job)[group]
        assert given == {part: fields for part, fields in parts.items() if fields is not None}
