"""Saved weights are compared with the architecture by name, shape and dtype, before one is read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from fmstune.config.job import Model
from fmstune.errors import UserError
from fmstune.models.architecture import build_empty, model_configuration
from fmstune.models.saved_weights import check_weights
from tests.models.test_shapes import TIED_LLAMA, TINY_LLAMA

MIXTURE = {**TINY_LLAMA, "model_type": "mixtral", "num_local_experts": 4}


def problems_of(folder: Path) -> list[str]:
    model = Model(path=str(folder))
    try:
        check_weights(model, build_empty(model_configuration(model)))
    except UserError as error:
        return [str(problem).replace(str(folder), "m") for problem in error.problems]
    return []


def saved(folder: Path, architecture: dict[str, Any], **how: Any) -> Path:
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture)).save_pretrained(folder, **how)
    return folder


@pytest.mark.sampled(3)
@pytest.mark.parametrize("architecture", [TINY_LLAMA, TIED_LLAMA, MIXTURE], ids=["llama", "tied", "mixtral"])
@pytest.mark.parametrize("size", ["5GB", "20KB"], ids=["one file", "many files"])
def test_what_transformers_saved_fits(tmp_path: Path, architecture: dict[str, Any], size: str) -> None:
    assert problems_of(saved(tmp_path, architecture, max_shard_size=size)) == []


def test_weights_of_the_backbone_alone_lack_the_output_layer(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY_LLAMA))
    model.model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (problem,) = problems_of(tmp_path)
    assert problem.startswith("model.path: m has no weights for lm_head.weight, which would be random; give a folder")


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("architecture", [TINY_LLAMA, MIXTURE], ids=["llama", "mixtral"])
def test_weights_of_another_size_are_named(tmp_path: Path, architecture: dict[str, Any]) -> None:
    change(saved(tmp_path, architecture), vocab_size=99)
    (problem,) = problems_of(tmp_path)
    assert problem == (
        "model.path: m has weights of another shape for lm_head.weight, model.embed_tokens.weight, "
        "which would be random; give a folder with all weights of its config.json"
    )


def test_a_model_with_more_blocks_than_weights_is_refused(tmp_path: Path) -> None:
    change(saved(tmp_path, TINY_LLAMA), num_hidden_layers=3)
    (problem,) = problems_of(tmp_path)
    assert "has no weights for model.layers.2.input_layernorm.weight" in problem
    assert "and 4 more, which would be random" in problem


def test_whole_numbers_without_scales_are_refused(tmp_path: Path) -> None:
    file = saved(tmp_path, TINY_LLAMA) / "model.safetensors"
    packed = {name: tensor.to(torch.int8) for name, tensor in load_file(file).items()}
    save_file(packed, file)
    (problem,) = problems_of(tmp_path)
    assert "are I8, and its config.json has no quantization_config that says what they mean; take" in problem


def test_a_model_of_the_hub_is_not_looked_for() -> None:
    check_weights(Model(path="owner/name"), build_empty(AutoConfig.for_model(**TINY_LLAMA)))
