"""`fmstune merge --export vllm_lora`: an adapter folder by the rules that vLLM reads one with."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fmstune.models import vllm
from fmstune.models.vllm import Embeddings
from tests import small
from tests.conftest import Result

Fmstune = Callable[..., Result]
QUICK = (
    "training.max_steps=2",
    "training.learning_rate=1e-2",
    "data.max_rows=32",
    "evaluation=none",
    "training.save_strategy=no",
)
MODULES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"}
"""Of a Llama, what vLLM adapts (vllm/model_executor/models/llama.py)."""


def read_as_vllm(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors by module, by vLLM's rules (vllm/lora/lora_model.py, utils.py and peft_helper.py, 0.5 to 0.13)."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert {"r", "lora_alpha", "target_modules"} <= config.keys()
    assert not config["modules_to_save"] and not config["use_dora"] and config["bias"] == "none"
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.(?:lora_([AB])\.weight|lora_embedding_([AB]))", name)
        assert match, f"{name} is unsupported LoRA weight"
        assert match[1].rpartition(".")[2] in MODULES, name
        found.setdefault(match[1], {})[match[2] or match[3]] = tensor
    for module, pair in found.items():
        assert pair.keys() == {"A", "B"} and pair["A"].shape[0] == pair["B"].shape[1] == config["r"], module
    return found


def tuned(fmstune: Fmstune, base: Path, *words: str) -> None:
    assert fmstune("peft=lora", "model=causal_lm", f"model.path={base}", *words, *QUICK, "output_dir=run").code == 0


@pytest.mark.slow
def test_an_adapter_that_added_a_pad_token_alone_is_lora_and_nothing_else(fmstune: Fmstune, tmp_path: Path) -> None:
    base = small.save(tmp_path / "base", architecture={**small.LLAMA, "vocab_size": 300})
    tuned(fmstune, base)
    assert any("lm_head" in name for name in load_file("run/model/adapter_model.safetensors"))
    done = fmstune("merge", "--model", "run", "--export", "vllm_lora", "--out", "served")
    assert done.code == 0, done.err
    serve = f"vllm serve {base} --tokenizer served --enable-lora --max-lora-rank 8 --lora-modules tuned=served"
    said = done.out.splitlines()
    assert said[1] == serve and said[2].startswith("parity: plain transformers serves") and len(said) == 3
    modules = read_as_vllm(tmp_path / "served")
    assert {name.rpartition(".")[2] for name in modules} == {"q_proj", "v_proj"} and len(modules) == 4
    assert not (tmp_path / "served" / "new_embeddings.safetensors").exists()
    assert json.loads(Path("served/base.json").read_text())["id"] == str(base)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_have_rows_of_their_own(
    tied: bool, fmstune: Fmstune, tmp_path: Path, rows_file: Callable[..., Path]
) -> None:
    architecture = {**small.LLAMA, "vocab_size": 300, "tie_word_embeddings": tied}
    base = small.save(tmp_path / "base", architecture=architecture)
    rows = ("data=text", f"data.train={rows_file(small.TAGGED)}")
    tuned(fmstune, base, "model.special_tokens={extra_special_tokens: ['<a>', '<b>']}", *rows)
    done = fmstune("merge", "--model", "run", "--export", "vllm_lora", "--out", "served")
    assert done.code == 0, done.err
    said = "note: the embeddings of 2 added tokens are in new_embeddings.safetensors, which vLLM reads until 0.11"
    assert said in done.out

    modules = read_as_vllm(tmp_path / "served")
    assert modules["model.embed_tokens"]["A"].shape == (8, 303) and modules["lm_head"]["B"].shape == (303, 8)
    assert not any(tensor.any() for name in ("model.embed_tokens", "lm_head") for tensor in modules[name].values())
    new = load_file("served/new_embeddings.safetensors")
    assert {name: rows.shape for name, rows in new.items()} == {
        "input_embeddings": (3, 32),
        "output_embeddings": (3, 32),
    }
    grown = AutoModelForCausalLM.from_pretrained(base)
    grown.resize_token_embeddings(303)
    whole = PeftModel.from_pretrained(grown, "run/model").merge_and_unload()
    assert torch.equal(new["input_embeddings"], whole.get_input_embeddings().weight[300:])
    assert torch.equal(new["output_embeddings"], whole.get_output_embeddings().weight[300:])
    # a run does not train the rows of a tied embedding
    assert torch.allclose(new["input_embeddings"][0], new["input_embeddings"][1], atol=1e-3) is tied
    assert AutoTokenizer.from_pretrained("served").convert_tokens_to_ids(["<a>", "<b>"]) == [300, 301]


@pytest.mark.slow
def test_added_tokens_of_an_embedding_that_vllm_does_not_look_at_are_refused(fmstune: Fmstune, tmp_path: Path) -> None:
    base = small.save(tmp_path / "base", architecture={**small.BIGCODE, "vocab_size": 300})
    tuned(fmstune, base, "model.special_tokens={extra_special_tokens: ['<a>']}")
    done = fmstune("merge", "--model", "run", "--export", "vllm_lora", "--out", "served")
    assert done.code == 2
    assert "run/model added 1 token, and vLLM reads added tokens only of an embedding called embed_tokens" in done.err
    assert not Path("served").exists()


def test_tensors_are_told_apart_by_their_names() -> None:
    one = torch.zeros(1)
    names = {
        "lora": ["model.layers.0.q_proj.lora_A.weight", "model.embed_tokens.lora_embedding_B"],
        "tables": {
            "lm_head.weight": "lm_head",
            "model.embed_tokens.token_adapter.base_layer.weight": "model.embed_tokens",
        },
        "trained": {"model.embed_tokens.token_adapter.trainable_tokens_delta": "model.embed_tokens"},
        "others": ["model.norm.bias"],
    }
    found = vllm.sort({f"base_model.model.{name}": one for some in names.values() for name in some})
    assert list(found.lora) == [f"base_model.model.{name}" for name in names["lora"]]
    assert set(found.tables) == {"lm_head", "model.embed_tokens"}
    assert set(found.trained) == {"model.embed_tokens"}
    assert found.others == ["model.norm.bias"]


def test_embeddings_without_a_place_in_vllm_are_refused() -> None:
    saved = vllm.sort({"base_model.model.model.norm.weight": torch.zeros(1)})
    embeddings = Embeddings(300, 32, "model.embed_tokens", "lm_head", tied=False)
    found = list(map(str, vllm.token_problems("run", saved, embeddings, [7], [300])))
    assert [problem.partition("; ")[0] for problem in found] == [
        "--export vllm_lora: vLLM has no place for model.norm of run",
        "--export vllm_lora: run trained the embeddings of tokens that the base has rows for (first 7), and vLLM reads "
        "the embeddings of the base",
        "--export vllm_lora: run added tokens, and holds no lm_head and no model.embed_tokens",
    ]
