"""The peft group becomes a PEFT configuration and an adapted model."""

import dataclasses
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig

from fmstune.config.job import Model
from fmstune.errors import UserError
from fmstune.models import adapters
from tests import small

MODEL = Model(path="package:tiny_llama")
LORA = {"_target_": "peft.LoraConfig", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


def test_full_tuning_has_no_configuration_and_leaves_the_model_as_it_is() -> None:
    assert adapters.peft_configuration({"_target_": "fmstune.models.adapters.full"}, MODEL) is None
    model = small.model()
    assert adapters.wrap(model, None, None) is model


def test_the_groups_fields_are_the_configurations_fields() -> None:
    config = adapters.peft_configuration(LORA, MODEL)
    assert isinstance(config, LoraConfig)
    assert (config.r, config.lora_alpha, config.target_modules) == (4, 8, {"q_proj", "v_proj"})
    assert config.task_type == "CAUSAL_LM"


def test_all_linear_works_in_a_list_too() -> None:
    config = adapters.peft_configuration({**LORA, "target_modules": ["all-linear"]}, MODEL)
    assert config is not None
    assert config.target_modules == "all-linear"


def test_text_initialisation_takes_the_models_own_tokenizer() -> None:
    settings = {
        "_target_": "peft.PromptTuningConfig",
        "num_virtual_tokens": 4,
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "Is this a complaint?",
    }
    config = adapters.peft_configuration(settings, MODEL)
    assert isinstance(config, PromptTuningConfig)
    assert Path(config.tokenizer_name_or_path).name == "tiny_llama"


def test_what_peft_refuses_is_the_users_error() -> None:
    broken = {**LORA, "layers_pattern": "layers"}
    with pytest.raises(UserError, match=r"peft: peft.LoraConfig refuses these fields: .*layers_to_transform"):
        adapters.peft_configuration(broken, MODEL)


def test_only_the_adapter_is_trained() -> None:
    model = adapters.wrap(small.model(), adapters.peft_configuration(LORA, MODEL), None)
    assert isinstance(model, PeftModel)
    assert {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


def test_embeddings_of_added_tokens_are_trained_and_no_others() -> None:
    base = small.model()
    config = adapters.with_added_tokens(adapters.peft_configuration(LORA, MODEL), (310, 311))
    model = adapters.wrap(base, config, None)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    deltas = [p for name, p in trained.items() if "trainable_tokens" in name]
    assert [tuple(p.shape) for p in deltas] == [(2, small.LLAMA["hidden_size"])]


@pytest.mark.parametrize("place", ["there", "moved"])
def test_training_goes_on_with_an_existing_adapter(tmp_path: Path, place: str) -> None:
    first = adapters.wrap(small.model(), adapters.peft_configuration(LORA, MODEL), None)
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    first.save_pretrained(tmp_path / place)
    again = adapters.wrap(small.model(), adapters.peft_configuration(LORA, MODEL), str(tmp_path / place))
    weights = {name: p for name, p in again.named_parameters() if "lora_B" in name}
    assert weights
    assert all(p.requires_grad and bool((p == 0.5).all()) for p in weights.values())


def test_an_adapter_of_another_method_is_refused(tmp_path: Path) -> None:
    adapters.wrap(small.model(), adapters.peft_configuration(LORA, MODEL), None).save_pretrained(tmp_path / "lora")
    settings = {"_target_": "peft.PromptTuningConfig", "num_virtual_tokens": 4}
    with pytest.raises(UserError, match="is LORA, and the peft group chose PROMPT_TUNING"):
        adapters.peft_configuration(settings, dataclasses.replace(MODEL, adapter=str(tmp_path / "lora")))


def test_the_configuration_of_an_existing_adapter_holds(tmp_path: Path) -> None:
    adapters.wrap(small.model(), adapters.peft_configuration(LORA, MODEL), None).save_pretrained(tmp_path / "lora")
    going_on = dataclasses.replace(MODEL, adapter=str(tmp_path / "lora"))
    config = adapters.peft_configuration({**LORA, "r": 16}, going_on)
    assert (config.r, config.inference_mode) == (4, False)


def test_an_adapter_that_is_not_there_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model.adapter: .* cannot be read as an adapter"):
        adapters.peft_configuration(LORA, dataclasses.replace(MODEL, adapter=str(tmp_path / "nowhere")))
