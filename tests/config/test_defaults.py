"""A field that no file and no word sets has the default of its dataclass; the rate is that of model and method."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module

from fmstune.config import compose as composition
from fmstune.config import defaults, freeze, groups
from fmstune.config.job import FULL, Job
from fmstune.config.renamed_fields import USUAL_RATE
from tests.conftest import Result


@pytest.fixture
def composing() -> Iterator[None]:
    defaults.register()
    with initialize_config_module("fmstune.conf", version_base="1.3"):
        yield


def training(*words: str) -> dict[str, Any]:
    """The training group of a composed job."""
    group: dict[str, Any] = composition.plain_tree(compose("job", overrides=list(words)))["training"]
    return group


@pytest.mark.sampled(6)
@pytest.mark.parametrize("peft", [name for name in groups.choices("peft") if name != "full"])
@pytest.mark.usefixtures("composing")
def test_every_method_has_its_usual_rate_in_its_own_file(peft: str) -> None:
    text = (Path(composition.__file__).parents[3] / "conf" / "peft" / f"{peft}.yaml").read_text(encoding="utf-8")
    assert training("model=llama2_7b", f"peft={peft}")["learning_rate"] == yaml.safe_load(text)[USUAL_RATE]


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("preset", "rate"),
    [
        ("_target_: peft.LoraConfig\nr: 64\n", 1e-4),
        ("_target_: peft.IA3Config\n", 3e-3),
        ("_target_: peft.PrefixTuningConfig\nnum_virtual_tokens: 4\n", 1e-2),
        ("_target_: peft.LoHaConfig\nr: 4\n", 1e-4),
        ("_target_: peft.LoHaConfig\nr: 4\nusual_learning_rate: 2.0e-3\n", 2e-3),
        (f"_target_: {FULL}\n", 1e-5),
    ],
)
def test_a_preset_of_the_users_own_has_the_rate_of_its_method(
    preset: str, rate: float, tmp_path: Path, fmstune: Callable[..., Result]
) -> None:
    (tmp_path / "my/peft").mkdir(parents=True)
    (tmp_path / "my/peft/big.yaml").write_text(preset)
    done = fmstune("--cfg", "job", "--config-dir", "my", "model=llama2_7b", "peft=big")
    assert yaml.safe_load(done.out)["training"]["learning_rate"] == rate


def test_a_class_given_on_the_command_line_has_the_rate_of_its_method(fmstune: Callable[..., Result]) -> None:
    done = fmstune("--cfg", "job", "model=llama2_7b", "peft._target_=peft.IA3Config")
    assert yaml.safe_load(done.out)["training"]["learning_rate"] == 3e-3


@pytest.mark.sampled(2)
@pytest.mark.parametrize("model", ["tiny_llama", "llama2_7b"])
def test_an_explicit_rate_always_wins(model: str, fmstune: Callable[..., Result]) -> None:
    done = fmstune("--cfg", "job", f"model={model}", "peft=lora", "training.learning_rate=0.5")
    assert yaml.safe_load(done.out)["training"]["learning_rate"] == 0.5


def test_a_job_holds_the_rate_in_training_alone() -> None:
    with pytest.raises(Exception, match="usual_learning_rate"):
        freeze.freeze({"peft": {"_target_": "peft.LoraConfig", USUAL_RATE: 1e-4}})


def test_cfg_job_prints_every_field_of_the_job_in_their_order(fmstune: Callable[..., Result]) -> None:
    printed = yaml.safe_load(fmstune("--cfg", "job").out)
    fields = defaults.defaults_of(Job)
    assert list(printed) == list(fields)
    for group in ("model", "data", "launcher", "evaluation", "tracking", "callbacks"):
        assert list(printed[group]) == list(fields[group])


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("words", "part"), [("launcher=slurm", "launcher.slurm"), ("callbacks=early_stopping", "callbacks.early_stopping")]
)
def test_cfg_job_prints_the_fields_of_an_optional_part_that_is_chosen(
    words: str, part: str, fmstune: Callable[..., Result]
) -> None:
    printed = yaml.safe_load(fmstune("--cfg", "job", words, "-p", part).out)
    assert len(printed) >= 4


def test_a_name_may_refer_to_a_default(fmstune: Callable[..., Result]) -> None:
    done = fmstune("--cfg", "job", "--resolve", "name=run-${seed}-${data.eval_fraction}")
    assert yaml.safe_load(done.out)["name"] == "run-42-0.0"
