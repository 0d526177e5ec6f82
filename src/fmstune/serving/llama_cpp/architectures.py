"""Which architectures llama.cpp runs as transformers does, and what its files say of each.

After llama.cpp's own converter (convert_hf_to_gguf.py); each is compared with transformers by a test.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType
from transformers import PreTrainedConfig

from fmstune.errors import Problem

ROPE_FACTORS = "rope_freqs.weight"
"""By what each frequency of Llama 3's positions is divided; the only tensor that no checkpoint holds."""
_ROPES = ("default", "linear", "llama3")


class Architecture(NamedTuple):
    """How a model of transformers is written for llama.cpp."""

    arch: MODEL_ARCH
    describe: Callable[[GGUFWriter, PreTrainedConfig], None]
    """Adds the sizes of the model to the file."""
    pairs_halves: bool = True
    """Whether positions turn the two halves of a head, as transformers does; else neighbours, so rows must move."""


def _head_size(config: PreTrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _describe_llama(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    head = _head_size(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _describe_bigcode(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


ARCHITECTURES = {
    "llama": Architecture(MODEL_ARCH.LLAMA, _describe_llama, pairs_halves=False),
    "mistral": Architecture(MODEL_ARCH.LLAMA, _describe_llama, pairs_halves=False),
    "qwen2": Architecture(MODEL_ARCH.QWEN2, _describe_llama),
    "qwen3": Architecture(MODEL_ARCH.QWEN3, _describe_llama),
    "gpt_bigcode": Architecture(MODEL_ARCH.STARCODER, _describe_bigcode),
}
"""By `model_type` of transformers."""


def gguf_problems(config: PreTrainedConfig) -> Iterator[Problem]:
    """Yield why llama.cpp would not compute what transformers computes."""
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        yield Problem("--export", f"gguf: a {config.model_type} model is not among those that it can write ({known})")
        return
    rope = getattr(config, "rope_parameters", None) or {"rope_type": "default"}
    if rope["rope_type"] not in _ROPES:
        text = f"gguf: positions of rope_type {rope['rope_type']} are not written; it knows {', '.join(_ROPES)}"
        yield Problem("--export", text)
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        yield Problem("--export", f"gguf: the model attends to a window of {config.sliding_window:,} tokens only")
    if getattr(config, "multi_query", True) is False:
        yield Problem("--export", "gguf: a gpt_bigcode model without multi_query is not run by llama.cpp")


def moved_rows(name: str, tensor: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """The rows of a query's or key's weights in llama.cpp's order, where it turns neighbours and not halves."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    part = name.rsplit(".", 2)[-2]
    if ARCHITECTURES[config.model_type].pairs_halves or part not in heads:
        return tensor
    count, rest = getattr(config, heads[part]), tensor.shape[1:]
    return tensor.reshape(count, 2, tensor.shape[0] // count // 2, *rest).transpose(1, 2).reshape(tensor.shape)


def rope_factors(config: PreTrainedConfig) -> torch.Tensor | None:
    """The factors of Llama 3's frequencies, which transformers computes as `_compute_llama3_parameters`; else None."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "llama3":
        return None
    given: dict[str, Any] = dict(rope)
    head = _head_size(config)
    lengths = 2 * math.pi * given["rope_theta"] ** (torch.arange(0, head, 2, dtype=torch.float64) / head)
    low, high, factor = given["low_freq_factor"], given["high_freq_factor"], given["factor"]
    positions = given["original_max_position_embeddings"]
    smooth = (positions / lengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    found = torch.where(lengths < positions / high, 1.0, torch.where(lengths > positions / low, factor, between))
    return found.float()
