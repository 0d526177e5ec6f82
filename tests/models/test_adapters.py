"""The peft group becomes a PEFT configuration and an adapted model."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from fmstune.config.job import Model
from fmstune.errors import UserError, raise_if_any
from fmstune.models import adapter_targets, adapters, shapes
from fmstune.models.architecture import build_empty
from fmstune.models.load import Tokenizer, add_tokens
from fmstune.models.save import save
from fmstune.models.trl_internals import add_fused_lm_head
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


def test_an_adapter_that_is_tuned_further_names_the_base_of_this_job(tmp_path: Path) -> None:
    adapters.wrap(small.model(), adapters.peft_configuration(LORA, MODEL), None).save_pretrained(tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "/elsewhere/base"}))
    again = dataclasses.replace(
        MODEL, path=str(small.save(tmp_path / "m")), revision="v2", adapter=str(tmp_path / "lora")
    )
    adapters.wrap(small.model(), adapters.peft_configuration(LORA, again), again.adapter).save_pretrained(
        tmp_path / "b"
    )
    saved = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert (saved["base_model_name_or_path"], saved["revision"]) == (str(tmp_path / "m"), "v2")


def test_an_adapter_that_is_not_there_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model.adapter: .* cannot be read as an adapter"):
        adapters.peft_configuration(LORA, dataclasses.replace(MODEL, adapter=str(tmp_path / "nowhere")))


EMBEDDINGS = [
    ({"target_modules": ["q_proj"]}, True, True),
    ({"target_modules": ["q_proj", "embed_tokens"]}, False, True),
    ({"target_modules": ["embed_tokens"]}, False, True),
    ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, False, True),
    ({"target_modules": ["q_proj", "lm_head"]}, False, False),
    ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, True, True),
    ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True, True),
    ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, True, True),
    ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "ensure_weight_tying": True}, True, True),
    ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}, True, True),
    ({"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["embed_tokens"]}, True, True),
    ({"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}, True, True),
    ({"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]}, True, True),
    ({"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["embed_tokens", "lm_head"]}, True, True),
    ({"target_modules": ["embed_tokens"], "modules_to_save": ["embed_tokens"]}, False, False),
    ({"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["embed_tokens"]}, False, False),
    ({"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]}, False, False),
    ({"target_modules": ["q_proj"], "trainable_token_indices": [5, 7]}, True, True),
    ({"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 7]}}, True, True),
    ({"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [5, 7]}}, False, True),
    ({"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5], "lm_head": [5]}}, True, True),
    ({"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5], "lm_head": [6]}}, False, True),
    ({"target_modules": ["q_proj", "embed_tokens"], "trainable_token_indices": [5]}, False, False),
    ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "trainable_token_indices": [5]}, False, False),
    ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "trainable_token_indices": [5]}, False, True),
]
"""Adapters on the embedding and the output layer; whether they work where these are tied, and where they are not."""


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture = {**small.LLAMA, "tie_word_embeddings": request.param}
    return small.save(tmp_path_factory.mktemp("base"), architecture=architecture)


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 60)[None], use_cache=False).logits


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("fields", "tied_works", "untied_works"), EMBEDDINGS, ids=lambda value: str(value)[:120])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_on_the_embeddings_is_trained_saved_and_merged_or_refused(
    base: Path, tmp_path: Path, fields: dict[str, Any], tied_works: bool, untied_works: bool
) -> None:
    config, model = LoraConfig(task_type="CAUSAL_LM", r=4, **copy.deepcopy(fields)), loaded(base)
    try:
        raise_if_any(adapter_targets.target_problems(model, config))
        shapes.attach(build_empty(model.config), config)
        works = True
    except UserError:
        works = False
    assert works is (tied_works if model.config.tie_word_embeddings else untied_works)
    if not works:
        return
    add_fused_lm_head(model)
    adapted = adapters.wrap(model, config, None)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    ids = torch.arange(3, 43).reshape(2, 20)
    for _ in range(2):
        adapted(input_ids=ids, labels=ids, fused_lm_head=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        fused = adapted(input_ids=ids, labels=ids, fused_lm_head=True).loss
        assert torch.allclose(fused, adapted(input_ids=ids, labels=ids).loss, atol=1e-5)
    expected = logits(adapted.eval())
    save(adapted, Tokenizer(AutoTokenizer.from_pretrained(base)), tmp_path / "adapter")
    again = PeftModel.from_pretrained(loaded(base), tmp_path / "adapter").eval()
    assert torch.equal(logits(again), expected)
    again.merge_and_unload(safe_merge=True).save_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(loaded(tmp_path / "merged")), expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_grown_embedding_of_a_tied_model_is_saved_once(base: Path, tmp_path: Path) -> None:
    model, tokenizer = loaded(base), AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<a>"] + [f"<{i}>" for i in range(40)]})
    added = tuple(range(len(tokenizer) - 41, len(tokenizer)))
    add_tokens(model, tokenizer, added)
    adapted = adapters.wrap(model, LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False), None)
    save(adapted, Tokenizer(tokenizer, added), tmp_path / "adapter")
    tables = [
        key for key, tensor in load_file(tmp_path / "adapter/adapter_model.safetensors").items() if len(tensor) > 300
    ]
    assert len(tables) == (1 if model.config.tie_word_embeddings else 2)
    grown = loaded(base)
    grown.resize_token_embeddings(len(tokenizer))
    again = PeftModel.from_pretrained(grown, tmp_path / "adapter").eval()
    assert torch.equal(logits(again), logits(adapted.eval()))


@pytest.mark.parametrize(
    "method", [{"_target_": "peft.LoraConfig"}, {"_target_": "peft.AdaLoraConfig", "total_step": 9}]
)
def test_a_configuration_within_one_is_built_from_its_fields(method: dict[str, Any]) -> None:
    given = {"runtime_config": {"ephemeral_gpu_offload": True}}
    config: Any = adapters.peft_configuration(method | given, Model(path="package:tiny_llama"))
    assert config.runtime_config.ephemeral_gpu_offload is True
    with pytest.raises(UserError, match=r"peft.runtime_config must be a mapping of fields of LoraRuntimeConfig: "):
        adapters.peft_configuration(method | {"runtime_config": {"no_such": 1}}, Model(path="package:tiny_llama"))
