"""What llama.cpp would not compute as transformers does is refused by name; test_gguf_file compares the others."""

from typing import Any

import pytest
import torch

from fmstune.serving.llama_cpp.architectures import gguf_problems, moved_rows, rope_factors
from tests.serving.llama_cpp.test_gguf_file import LLAMA3
from tests.small import BIGCODE, LLAMA, model


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model_type": "gpt2"}, "gguf: a gpt2 model is not among those that it can write"),
        ({"model_type": "mistral", "sliding_window": 64}, "gguf: the model attends to a window of 64 tokens only"),
        ({**BIGCODE, "multi_query": False}, "gguf: a gpt_bigcode model without multi_query is not run by llama.cpp"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "gguf: positions of rope_type dynamic are not written",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused_by_name(change: dict[str, Any], text: str) -> None:
    shape = change if "n_embd" in change else {**LLAMA, **change}
    found = [str(problem) for problem in gguf_problems(model(shape).config)]
    assert len(found) == 1 and text in found[0]


def test_rows_of_a_head_move_from_halves_to_neighbours() -> None:
    config = model({**LLAMA, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}).config
    weights = torch.arange(16.0)[:, None]
    moved = moved_rows("model.layers.0.self_attn.q_proj.weight", weights, config)
    assert moved[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    assert moved_rows("model.layers.0.self_attn.v_proj.weight", weights, config) is weights


def test_slow_positions_of_llama_3_are_divided_by_the_whole_factor_and_fast_ones_by_none() -> None:
    factors = rope_factors(model({**LLAMA, "hidden_size": 64, "rope_parameters": LLAMA3}).config)
    assert factors is not None and factors[0] == 1.0 and factors[-1] == 8.0
    assert factors.tolist() == sorted(factors.tolist())
