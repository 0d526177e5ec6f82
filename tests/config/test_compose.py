"""Every combination of the shipped groups composes and freezes; a new YAML is picked up without touching this file."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fmstune.conf
import pytest
import yaml
from hydra import compose, initialize_config_module

from fmstune.checks.job import job_notes, job_problems
from fmstune.config import compose as composition
from fmstune.config import defaults, freeze, groups, job
from fmstune.config.job import FULL
from fmstune.data.format_loading import load_format

pytestmark = pytest.mark.sampled(8)

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
USUAL = {
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
OF_TINY_MODELS = {
    "full": 5e-3,
    "lora": 5e-3,
    "dora": 5e-3,
    "rslora": 5e-3,
    "lora_plus": 1e-3,
    "ia3": 3e-2,
    "p_tuning": 1e-3,
    "prefix_tuning": 1e-1,
    "prompt_tuning": 3e-2,
}
RATES = {
    **dict.fromkeys(("llama2_7b", "llama2_13b", "gpt_bigcode", "santacoder", "causal_lm"), USUAL),
    "tiny_gpt_bigcode": OF_TINY_MODELS,
    "tiny_llama": {**OF_TINY_MODELS, "full": 1e-3},
}
"""The rates of the methods and models that had two-noun files once; a new one needs no entry."""
CONF = Path(next(iter(fmstune.conf.__path__)))


@pytest.fixture(autouse=True)
def composing() -> Iterator[None]:
    defaults.register()
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
    if peft in RATES.get(model, {}):
        assert job.training["learning_rate"] == RATES[model][peft]
        assert job.training["num_train_epochs"] == (15 if (model, peft) == ("tiny_llama", "prompt_tuning") else 5)
    batches = (job.training["per_device_train_batch_size"], job.training["gradient_accumulation_steps"])
    assert batches == ((16, 1) if model.startswith("tiny_") else (4, 4))


@pytest.mark.parametrize("evaluation", GROUPS["evaluation"])
def test_every_way_of_evaluation_composes(evaluation: str) -> None:
    job = freeze.freeze(composed(f"evaluation={evaluation}")).job
    assert job.evaluation.enabled is (evaluation != "none")


@pytest.mark.parametrize("names", [*itertools.combinations(groups.choices("tracking"), 2), groups.choices("tracking")])
def test_any_trackers_compose_together(names: tuple[str, ...]) -> None:
    tracking = freeze.freeze(composed(f"tracking=[{','.join(names)}]")).job.tracking
    assert set(tracking) == {*names} - {"file"}


EXPERIMENTS = groups.choices("experiment")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_without_a_problem(experiment: str) -> None:
    words = [f"experiment={experiment}"]
    if composed(*words)["data"]["train"] == "???":
        words.append("++data.train=package:complaints/train.jsonl")
    job = freeze.freeze(composed(*words)).job
    assert list(job_problems(job)) == []


def test_there_are_worked_presets() -> None:
    assert len(EXPERIMENTS) >= 2


def test_the_default_job_has_no_problem_and_nothing_to_note() -> None:
    job = freeze.freeze(composed()).job
    assert list(job_problems(job)) == []
    assert list(job_notes(job)) == []


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


def test_the_groups_of_the_help_are_the_folders_of_conf() -> None:
    folders = {path.name for path in CONF.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert folders == {*groups.GROUPS}


GROUP_CLASSES = {
    "model": job.Model,
    "data": job.Data,
    "launcher": job.Launcher,
    "evaluation": job.Evaluation,
    "callbacks": job.Callbacks,
}


@pytest.mark.parametrize("group", GROUP_CLASSES)
def test_a_file_sets_only_values_that_differ_from_the_default_of_the_dataclass(group: str) -> None:
    fields = defaults.defaults_of(GROUP_CLASSES[group])
    for path in (CONF / group).glob("*.yaml"):
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        given = given.get(group, given) if path.read_text(encoding="utf-8").startswith("# @package _global_") else given
        given.pop("defaults", None)
        assert given.keys() <= fields.keys(), path
        # `???` says which value the user must give
        assert [name for name, value in given.items() if value == fields[name] != "???"] == [], path
