"""Every combination of the shipped groups composes and freezes; a new YAML is picked up without touching this file."""

import copy
import itertools
import os
from pathlib import Path
from typing import Any

import fmstune.conf
import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from fmstune.checks.job import job_notes, job_problems
from fmstune.config import defaults, freeze, groups, hydra_internals, job
from fmstune.config.compose import Composed, call_with_job, compose_job, compose_points
from fmstune.config.hydra_internals import RecordingLoader
from fmstune.config.job import FULL
from fmstune.config.origins import COMMAND_LINE, Origin, composition_origins
from fmstune.config.overrides import parse_overrides
from fmstune.config.requests import NO_HYDRA_FLAGS, HydraFlags
from fmstune.data.format_loading import load_format
from fmstune.errors import UserError
from tests.composing import composed, composed_tree

pytestmark = pytest.mark.sampled(16)

GROUPS = {group: groups.choices(group) for group in ("model", "peft", "data", "launcher", "evaluation")}
WITH_EVERY_METHOD = ("tiny_llama", "tiny_gpt_bigcode", "llama2_7b", "causal_lm")
COMBINATIONS = [
    # every method on every kind of model
    *zip(
        *zip(*itertools.product(WITH_EVERY_METHOD, GROUPS["peft"]), strict=True),
        itertools.cycle(GROUPS["data"]),
        itertools.cycle(GROUPS["launcher"]),
    ),
    # every other model with one method after the other
    *zip(
        [name for name in GROUPS["model"] if name not in WITH_EVERY_METHOD],
        itertools.cycle(GROUPS["peft"]),
        itertools.cycle(GROUPS["data"]),
        itertools.cycle(GROUPS["launcher"]),
    ),
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
    job = freeze.freeze(composed_tree(*words)).job
    assert (job.peft["_target_"] == FULL) is (peft == "full")
    assert callable(load_format(job.data.format))
    if peft in RATES.get(model, {}):
        assert job.training["learning_rate"] == RATES[model][peft]
        assert job.training["num_train_epochs"] == (15 if (model, peft) == ("tiny_llama", "prompt_tuning") else 5)
    batches = (job.training["per_device_train_batch_size"], job.training["gradient_accumulation_steps"])
    assert batches == ((16, 1) if model.startswith("tiny_") else (4, 4))


@pytest.mark.parametrize("evaluation", GROUPS["evaluation"])
def test_every_way_of_evaluation_composes(evaluation: str) -> None:
    job = freeze.freeze(composed_tree(f"evaluation={evaluation}")).job
    assert job.evaluation.enabled is (evaluation != "none")


@pytest.mark.parametrize("names", [*itertools.combinations(groups.choices("tracking"), 2), groups.choices("tracking")])
def test_any_trackers_compose_together(names: tuple[str, ...]) -> None:
    tracking = freeze.freeze(composed_tree(f"tracking=[{','.join(names)}]")).job.tracking
    assert set(tracking) == {*names} - {"file"}


EXPERIMENTS = groups.choices("experiment")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_without_a_problem(experiment: str) -> None:
    words = [f"experiment={experiment}"]
    if composed_tree(*words)["data"]["train"] == "???":
        words.append("++data.train=package:complaints/train.jsonl")
    job = freeze.freeze(composed_tree(*words)).job
    assert list(job_problems(job)) == []


@pytest.mark.parametrize("choice", groups.choices("debug"))
def test_every_debug_choice_goes_with_the_other_groups_and_needs_no_trust(choice: str) -> None:
    for words in (["peft=lora"], ["experiment=complaints_lora", "callbacks=divergence"], ["training=low_memory"]):
        found = freeze.freeze(composed_tree(*words, f"debug={choice}")).job
        assert list(found.callbacks.others) == ([] if choice == "none" else ["debug"])


def test_there_are_worked_presets() -> None:
    assert len(EXPERIMENTS) >= 2


def test_the_default_job_has_no_problem_and_nothing_to_note() -> None:
    job = freeze.freeze(composed_tree()).job
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
    assert composed_tree(f"model={model}", f"peft={peft}")["training"]["learning_rate"] == rate


def test_rates_come_with_model_and_method_and_the_command_line_wins() -> None:
    rates = {
        peft: composed_tree(f"peft={peft}")["training"]["learning_rate"] for peft in ("full", "lora", "prompt_tuning")
    }
    assert rates == {"full": 1e-3, "lora": 5e-3, "prompt_tuning": 3e-2}
    assert composed_tree("peft=lora", "++training.learning_rate=0.5")["training"]["learning_rate"] == 0.5


def test_lora_adapts_what_the_architecture_says() -> None:
    assert composed_tree("peft=lora")["peft"]["target_modules"] == ["q_proj", "v_proj"]
    assert composed_tree("peft=lora", "model=causal_lm", "++model.path=a/b")["peft"]["target_modules"] is None


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


SWEEP = """\
# @package _global_
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      ++training.seed: 1,2
"""


@pytest.fixture
def hydras_work(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """How Hydra composes from here on: the modes, the files that it parses and merges, the words that it parses."""
    seen: dict[str, list[str]] = {"modes": [], "files": [], "merged": [], "words": []}
    compose, load, parse = RecordingLoader.load_configuration, OmegaConf.load, OverridesParser.parse_rule
    merge = RecordingLoader._load_single_config

    def composing(self: Any, **kwargs: Any) -> Any:
        seen["modes"].append(kwargs["run_mode"].name)
        return compose(self, **kwargs)

    def loading(file: Any) -> Any:
        seen["files"].append(str(file.name))
        return load(file)

    def merging(self: Any, default: Any, repo: Any) -> Any:
        seen["merged"].append(default.config_path)
        return merge(self, default, repo)

    def parsing(self: Any, word: str, rule: str) -> Any:
        seen["words"].append(word)
        return parse(self, word, rule)

    monkeypatch.setattr(hydra_internals, "_read", {})
    monkeypatch.setattr(hydra_internals, "_merged", {})
    monkeypatch.setattr(RecordingLoader, "load_configuration", composing)
    monkeypatch.setattr(RecordingLoader, "_load_single_config", merging)
    monkeypatch.setattr(OmegaConf, "load", loading)
    monkeypatch.setattr(OverridesParser, "parse_rule", parsing)
    return seen


def test_one_job_is_composed_once_and_nothing_is_read_or_parsed_twice(hydras_work: dict[str, list[str]]) -> None:
    words = ("peft=lora", "training.learning_rate=1e-3", "~seed")
    overrides = parse_overrides(words)
    done = call_with_job(overrides, NO_HYDRA_FLAGS, lambda composed: len(composition_origins(composed)))
    assert done is not None and done > 50
    assert hydras_work["modes"] == ["RUN"]
    assert "job.yaml" in {Path(name).name for name in hydras_work["files"]}
    assert len(hydras_work["files"]) == len({*hydras_work["files"]})
    # Hydra reads the forced form of a field, which is made without parsing
    assert hydras_work["words"] == list(words)


def test_shipped_files_are_read_and_merged_once_a_process_and_what_one_job_sets_is_in_no_other(
    hydras_work: dict[str, list[str]],
) -> None:
    first = composed("peft=lora", "peft.target_modules=[q_proj]", "model.dtype=float32")
    read, merged = len(hydras_work["files"]), len(hydras_work["merged"])
    other = composed("peft=lora")
    assert 0 < read == len(hydras_work["files"])
    assert 0 < merged == len(hydras_work["merged"])
    assert first.job.peft.target_modules == ["q_proj"]
    assert (other.job.peft.target_modules, other.job.model.dtype) == (["q_proj", "v_proj"], "auto")
    assert other.parts == composed("peft=lora").parts


def test_a_copy_of_a_configuration_shares_nothing_that_changes() -> None:
    numbers = itertools.count()
    OmegaConf.register_new_resolver("number", lambda _: next(numbers), use_cache=True)
    made = OmegaConf.create({"group": {"a": "${number:a}", "b": "${number:b}"}})
    assert made.group.a == 0
    copied = copy.deepcopy(made)
    OmegaConf.set_readonly(copied.group, True)
    assert OmegaConf.is_readonly(copied.group) and not OmegaConf.is_readonly(made.group)
    assert (copied.group.a, copied.group.b, made.group.b) == (0, 1, 2)


def test_a_file_of_a_users_folder_is_read_anew_by_each_job(tmp_path: Path) -> None:
    file = tmp_path / "peft" / "wide.yaml"
    file.parent.mkdir()
    found = []
    for rank in (64, 65):
        file.write_text(f"_target_: peft.LoraConfig\nr: {rank}\n")
        flags = HydraFlags(config_dir=str(tmp_path))
        found.append(compose_job(parse_overrides(["peft=wide"], {"peft"}), flags).job.peft.r)
    assert found == [64, 65]


def test_a_file_may_choose_by_what_another_group_has_chosen(tmp_path: Path) -> None:
    for folder in ("data", "amount"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("defaults:\n  - /amount@_here_: ${launcher}_rows\n  - _self_\n")
    (tmp_path / "amount" / "local_rows.yaml").write_text("max_rows: 7\n")
    flags = HydraFlags(config_dir=str(tmp_path))
    assert compose_job(parse_overrides(["data=mine"]), flags).job.data.max_rows == 7


def test_a_job_is_composed_as_hydra_alone_composes_it() -> None:
    words = ["peft=lora", "++training.learning_rate=1e-3", "+training.max_steps=3", "~data.eval"]
    # the second by what was kept of the first
    found, again = composed(*words), composed(*words)
    with initialize_config_module("fmstune.conf", version_base="1.3"):
        alone = compose("job", words)
    assert found.job == again.job == alone
    assert not found.is_point
    assert found.words == ["peft=lora", "training.learning_rate=1e-3", "+training.max_steps=3", "~data.eval"]


def test_an_error_of_the_task_rises_as_it_is() -> None:
    def task(_: Composed) -> int:
        raise UserError("seed", "is wrong")

    with pytest.raises(UserError, match="^seed is wrong$"):
        call_with_job([], NO_HYDRA_FLAGS, task)


def test_a_variable_of_hydra_is_set_while_the_task_runs() -> None:
    overrides = parse_overrides(["+hydra.job.env_set.MINE=3"])
    assert call_with_job(overrides, NO_HYDRA_FLAGS, lambda _: int(os.environ["MINE"])) == 3
    assert "MINE" not in os.environ


def test_several_values_of_one_job_are_all_refused() -> None:
    with pytest.raises(UserError) as refused:
        composed("seed=1,2", "peft=lora,full", "name=x")
    assert [str(problem).partition(":")[0] for problem in refused.value.problems] == ["seed=1,2", "peft=lora,full"]


def points(flags: HydraFlags, *words: str) -> list[Composed]:
    found: list[Composed] = []
    compose_points(parse_overrides(words, {"peft"}), flags, found.append)
    return found


def test_each_point_of_a_sweep_is_composed_with_its_own_values_and_origins(tmp_path: Path) -> None:
    found = points(HydraFlags(multirun=True), "peft=lora", "training.seed=1,2", f"hydra.sweep.dir={tmp_path}")
    assert [one.tree()["training"]["seed"] for one in found] == [1, 2]
    assert [one.words for one in found] == [["peft=lora", "training.seed=1"], ["peft=lora", "training.seed=2"]]
    assert all(one.is_point for one in found)
    assert [composition_origins(one)["training", "seed"] for one in found] == [
        Origin(COMMAND_LINE, 1),
        Origin(COMMAND_LINE, 2),
    ]


@pytest.mark.slow
def test_a_sweep_of_one_point_is_still_a_sweep(tmp_path: Path) -> None:
    (point,) = points(HydraFlags(multirun=True), "peft=lora", f"hydra.sweep.dir={tmp_path}")
    assert point.is_point


@pytest.mark.slow
def test_a_file_may_say_that_the_job_is_a_sweep(tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "seeds.yaml").write_text(SWEEP)
    flags = HydraFlags(config_dir=str(tmp_path / "conf"))
    words = ("experiment=seeds", f"hydra.sweep.dir={tmp_path}")
    assert call_with_job(parse_overrides(words), flags, lambda _: 0) is None
    assert [one.tree()["training"]["seed"] for one in points(flags, *words)] == [1, 2]


def test_a_users_file_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "conf" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    flags = HydraFlags(config_dir=str(tmp_path / "conf"))
    for seed in (1, 2):
        file.write_text(f"# @package _global_\nseed: {seed}\n")
        assert compose_job(parse_overrides(["experiment=mine"]), flags).tree()["seed"] == seed
