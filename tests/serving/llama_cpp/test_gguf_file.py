"""A GGUF file holds the weights that it was made from, and llama.cpp answers with it as transformers does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from transformers import PreTrainedModel

from fmstune.config.requests import GgufType
from fmstune.errors import UserError
from fmstune.serving.llama_cpp.architectures import ROPE_FACTORS
from fmstune.serving.llama_cpp.gguf_file import write_gguf
from fmstune.serving.llama_cpp.vocabulary import read_vocabulary
from tests.small import BIGCODE, LLAMA, byte_level_tokenizer, model

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
HEADS = {"num_key_value_heads": 2, "hidden_size": 64}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama, grouped heads and biases": {**LLAMA, **HEADS, "attention_bias": True},
    "llama, tied": {**LLAMA, "tie_word_embeddings": True},
    "llama, positions of Llama 3": {**LLAMA, **HEADS, "rope_parameters": LLAMA3},
    "llama, longer positions": {
        **LLAMA,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    },
    "mistral": {**LLAMA, **HEADS, "model_type": "mistral", "sliding_window": None},
    "qwen2": {**LLAMA, **HEADS, "model_type": "qwen2"},
    "qwen3": {**LLAMA, **HEADS, "model_type": "qwen3", "head_dim": 16},
    "gpt_bigcode": BIGCODE,
}


def spread(shape: dict[str, Any]) -> PreTrainedModel:
    """Random weights that are large enough for answers which differ."""
    made = model(shape, attention="eager")
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in made.parameters():
            weights.add_(torch.randn_like(weights) * 0.2)
    return made.eval()


def written(made: PreTrainedModel, path: Path, kind: GgufType = GgufType.f16) -> GGUFReader:
    tokenizer = byte_level_tokenizer()
    rows = made.get_input_embeddings().weight.shape[0]
    write_gguf(made, tokenizer, read_vocabulary(tokenizer, rows), path, kind)
    return GGUFReader(path)


@pytest.mark.parametrize("name", SHAPES)
def test_llama_cpp_answers_as_transformers_does(name: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="make llama-cpp builds it")
    made, path = spread(SHAPES[name]), tmp_path / "model.gguf"
    found = written(made, path)
    assert found.get_field("general.architecture") is not None
    # what the file rounds is rounded here too
    made = made.half().float()
    theirs = llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, verbose=False, logits_all=True)
    for number in range(10):
        torch.manual_seed(number)
        prompt = torch.randint(1, 299, (1, 40))
        with torch.inference_mode():
            ours = made(input_ids=prompt).logits[0]
        theirs.reset()
        theirs.eval(prompt[0].tolist())
        scores = torch.from_numpy(theirs.scores[:40].copy())
        # where two tokens are all but alike, rounding may choose the other
        best = ours.topk(2).values
        sure = best[:, 0] - best[:, 1] > 0.05
        assert sure.sum() > 20
        assert torch.equal(ours.argmax(-1)[sure], scores[:, : ours.shape[-1]].argmax(-1)[sure])


@pytest.mark.parametrize(("kind", "stored"), [(GgufType.f16, "F16"), (GgufType.q8_0, "Q8_0")])
def test_matrices_have_the_type_and_norms_stay_whole(kind: GgufType, stored: str, tmp_path: Path) -> None:
    tensors = {tensor.name: tensor for tensor in written(model(LLAMA), tmp_path / "model.gguf", kind).tensors}
    assert tensors["blk.0.attn_q.weight"].tensor_type.name == stored
    assert tensors["blk.1.ffn_norm.weight"].tensor_type.name == "F32"
    assert len(tensors) == 3 + 2 * 9


def test_only_positions_of_llama_3_have_factors(tmp_path: Path) -> None:
    names = {
        one: {tensor.name for tensor in written(model(SHAPES[one]), tmp_path / one.replace(" ", "")).tensors}
        for one in ("llama", "llama, positions of Llama 3")
    }
    assert ROPE_FACTORS not in names["llama"]
    assert ROPE_FACTORS in names["llama, positions of Llama 3"]


def test_numbers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    made = model(LLAMA)
    with torch.no_grad():
        made.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    with (
        pytest.raises(UserError, match=r"^--export gguf: blk\.0\.ffn_up\.weight in F16 differs by (inf|nan)"),
        pytest.warns(RuntimeWarning),
    ):
        written(made, tmp_path / "model.gguf")
