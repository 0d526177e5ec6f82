"""Attention within segments of one line: the numbers of the same rows alone, whatever the architecture."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from fmstune.models import architecture, compiled, varlen
from fmstune.models.varlen import varlen_attention, varlen_problems

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "attn_pdrop": 0.0}
STILL = {"resid_pdrop": 0.0, "embd_pdrop": 0.0}
WINDOWED = {**SIZES, "head_dim": 8, "sliding_window": 5}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "gpt_bigcode": {**GPT, **STILL},
    "gpt2": {**GPT, **STILL},
    "qwen2": SIZES,
    "qwen3": {**SIZES, "head_dim": 8},
    "mistral": {**SIZES, "sliding_window": 5},
    "gemma3_text": {**WINDOWED, "layer_types": ["sliding_attention", "full_attention"]},
    "granite": SIZES,
}
LENGTHS = (9, 9, 4, 1, 12)
"""Of rows: two alike that are next to each other, one of a token, and some beyond the windows."""


def model(model_type: str, *, attention: str = "varlen") -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **ARCHITECTURES[model_type])
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()


def rows(lengths: Sequence[int] = LENGTHS) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(1)
    return [torch.randint(2, 64, (length,), generator=made) for length in lengths]


def ends(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def line(parts: Sequence[torch.Tensor]) -> dict[str, Any]:
    """One line of these rows, as the collator makes it."""
    lengths = [len(part) for part in parts]
    cu = ends(lengths)
    return {
        "input_ids": torch.cat(list(parts))[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": cu,
        "cu_seq_lens_k": cu,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def summed(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits[:-1], ids[1:], reduction="sum")


def gradients(found: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in found.named_parameters() if p.grad is not None}


def difference(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of a tensor from the other's by its size."""
    assert one.keys() == other.keys()
    sizes = {name: tensor.norm().item() for name, tensor in other.items()}
    return max(float((one[name] - other[name]).norm()) / size for name, size in sizes.items() if size)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_line_of_rows_has_the_loss_and_gradients_of_the_rows_one_by_one(model_type: str, checkpointed: bool) -> None:
    parts, alone = rows(), model(model_type, attention="eager").double()
    losses = [summed(alone(input_ids=part[None], use_cache=False).logits[0], part) for part in parts]
    torch.autograd.backward(losses)
    packed = model(model_type).double()
    if checkpointed:
        packed.activation_checkpointing_enable({"use_reentrant": False})
    logits = packed(**line(parts), use_cache=False).logits[0].split([len(part) for part in parts])
    loss = torch.stack([summed(row, part) for row, part in zip(logits, parts, strict=True)]).sum()
    torch.autograd.backward(loss)
    assert math.isclose(loss.item(), sum(one.item() for one in losses), rel_tol=1e-6)
    # transformers' eager attention has its softmax in float32
    assert difference(gradients(packed), gradients(alone)) < 1e-6


def qkv(queries: int, keys: int, *, heads: int = 4, size: int = 8, value_size: int | None = None) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(2)
    shapes = [(heads, queries, size), (2, keys, size), (2, keys, value_size or size)]
    return [torch.randn(1, *shape, generator=made, dtype=torch.float64).requires_grad_() for shape in shapes]


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Attention of one segment, causal at the lower right, from its definition; (queries, heads, size)."""
    k, v = (tensor.repeat_interleave(q.shape[0] // tensor.shape[0], 0) for tensor in (k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    last = torch.arange(k.shape[1] - q.shape[1], k.shape[1])[:, None]
    hidden = (torch.arange(k.shape[1]) > last) | (torch.arange(k.shape[1]) <= last - (window or 1000))
    attended: torch.Tensor = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v
    return attended.transpose(0, 1)


@pytest.mark.parametrize("window", [None, 3])
def test_segments_attend_to_gathered_keys_with_their_last_query_at_the_last_key(window: int | None) -> None:
    # a beginning of 4 positions, and three branches of it
    q, k, v = qkv(11, 11)
    begins, lengths = (0, 4, 6, 9), (4, 2, 3, 2)
    paths = [[*range(4)], *([*range(4), *range(a, a + n)] for a, n in zip(begins[1:], lengths[1:], strict=True))]
    found, _ = varlen_attention(
        torch.nn.Identity(),
        *(q, k, v, None),
        sliding_window=window,
        cu_seq_lens_q=ends(lengths),
        cu_seq_lens_k=ends([len(path) for path in paths]),
        max_length_q=4,
        max_length_k=7,
        key_index=torch.tensor([position for path in paths for position in path]),
    )
    parts = [
        by_hand(q[0, :, a : a + n], k[0][:, path], v[0][:, path], window)
        for a, n, path in zip(begins, lengths, paths, strict=True)
    ]
    wanted = torch.cat(parts)
    torch.testing.assert_close(found[0], wanted)
    made = torch.autograd.grad(found.square().sum(), (q, k, v))
    torch.testing.assert_close(made, torch.autograd.grad(wanted.square().sum(), (q, k, v)))


def test_values_may_be_narrower_than_keys() -> None:
    q, k, v = qkv(7, 7, value_size=5)
    cu = ends([3, 4])
    found, _ = varlen_attention(
        torch.nn.Identity(), q, k, v, None, cu_seq_lens_q=cu, cu_seq_lens_k=cu, max_length_q=4, max_length_k=4
    )
    parts = [by_hand(q[0, :, one], k[0, :, one], v[0, :, one]) for one in (slice(0, 3), slice(3, 7))]
    torch.testing.assert_close(found[0], torch.cat(parts))


@pytest.mark.slow
# torch itself looks at it while it compiles
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_blocks_serve_batches_of_other_segments() -> None:
    batches = [rows(lengths) for lengths in ((9, 9, 4), (3, 7), (2, 3, 4, 5, 6, 7))]
    found = model("llama")
    wanted = [_gradients_of(found, parts) for parts in batches]
    counter = CompileCounterWithBackend("eager")
    compiled.compile_blocks(found, {"torch_compile": True, "torch_compile_backend": counter})
    frames = []
    for parts, one in zip(batches, wanted, strict=True):
        assert difference(_gradients_of(found, parts), one) < 1e-6
        frames.append(counter.frame_count)
    # of sizes that vary from the second batch on
    assert 0 < frames[0] < frames[1] == frames[-1]


def _gradients_of(found: Any, parts: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    found.zero_grad(set_to_none=True)
    batch = line(parts)
    summed(found(**batch, use_cache=False).logits[0], batch["input_ids"][0]).backward()
    return gradients(found)


def test_segments_of_one_shape_are_one_call_and_are_found_once_a_batch() -> None:
    cu = ends([5, 5, 5, 3, 5])
    plan = varlen._plan(cu, cu)
    assert [tuple(run) for run in plan.runs] == [(3, 5, 5), (1, 3, 3), (1, 5, 5)]
    assert varlen._plan(cu, cu) is plan
    assert varlen._plan(cu, cu.clone()) is not plan
    before = len(varlen._plans)
    del cu
    assert len(varlen._plans) == before - 1


@pytest.mark.parametrize("model_type", ["llama", "gpt_bigcode", "mistral"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_have_the_logits_of_sdpa(model_type: str, side: str) -> None:
    parts = rows((9, 4))
    ids, mask = torch.full((2, 9), 1), torch.zeros(2, 9, dtype=torch.int64)
    for number, part in enumerate(parts):
        place = slice(0, len(part)) if side == "right" else slice(9 - len(part), 9)
        ids[number, place], mask[number, place] = part, 1
    batch = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    found, wanted = (model(model_type, attention=a).eval()(**batch).logits[mask == 1] for a in ("varlen", "sdpa"))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model_type", ["llama", "gpt_bigcode", "mistral"])
def test_answers_are_generated_as_by_sdpa(model_type: str) -> None:
    ids, mask = torch.stack(rows((8, 8))), torch.ones(2, 8, dtype=torch.int64)
    ids[1, :3], mask[1, :3] = 1, 0
    asked = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "eos_token_id": 63}
    found, wanted = (model(model_type, attention=a).eval().generate(ids, **asked) for a in ("varlen", "sdpa"))
    assert found.tolist() == wanted.tolist()


def test_rows_that_hold_several_documents_need_to_say_where_they_begin() -> None:
    told = line(rows())
    with pytest.raises(ValueError, match="no cu_seq_lens_q says where they begin"):
        model("llama")(input_ids=told["input_ids"], position_ids=told["position_ids"], use_cache=False)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"dropout": 0.1}, "attention dropout"),
        ({"softcap": 50.0}, "a soft cap of scores"),
        ({"s_aux": torch.zeros(4)}, "attention sinks"),
        ({"is_causal": False}, "view of later tokens"),
        ({"position_bias": torch.zeros(1)}, "position bias"),
    ],
)
def test_nothing_that_a_layer_asks_for_is_left_out_in_silence(asked: dict[str, Any], name: str) -> None:
    q, k, v = qkv(3, 3)
    with pytest.raises(ValueError, match=name):
        varlen_attention(torch.nn.Identity(), q, k, v, None, **asked)


HAS, BY_ITSELF = "has {}, which varlen does not compute; choose auto", "computes attention by code of its own"
REFUSED = [
    ("gemma2", {}, HAS.format("a soft cap of scores")),
    ("gpt2", {}, HAS.format("attention dropout")),
    ("gpt_bigcode", {"resid_pdrop": 0.0}, HAS.format("attention dropout")),
    ("gpt_oss", {}, HAS.format("attention sinks")),
    ("deepseek_v32", {}, HAS.format("attention by indices")),
    ("llama", {"head_dim": 264}, HAS.format("heads above 256 in size")),
    ("gemma4_text", {}, HAS.format("heads above 256 in size")),
    ("llama4_text", {}, HAS.format("attention in chunks")),
    ("moshi", {}, HAS.format("sliding windows that its layers do not pass on")),
    ("bert", {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}, HAS.format("a view of later tokens")),
    ("stablelm", {}, "does not tell its attention where segments begin and end; choose auto"),
    *((name, {layers: 2}, BY_ITSELF) for name, layers in (("bloom", "n_layer"), ("falcon", "num_hidden_layers"))),
    *((name, {layers: 2}, BY_ITSELF) for name, layers in (("gptj", "n_layer"), ("mamba2", "num_hidden_layers"))),
    *((name, {layers: 2}, BY_ITSELF) for name, layers in (("mpt", "n_layers"), ("opt", "num_hidden_layers"))),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("model_type", "values", "text"), [pytest.param(*row, id=row[0]) for row in REFUSED])
def test_a_model_whose_attention_is_another_is_refused(model_type: str, values: dict[str, Any], text: str) -> None:
    (problem,) = varlen_problems(architecture.build_empty(AutoConfig.for_model(model_type, **values)))
    assert str(problem).startswith("model.attention=varlen: ")
    assert text in str(problem)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "model_type",
    [*ARCHITECTURES, *("cohere2", "gemma3_text", "mixtral", "olmo2", "phi3", "qwen3_moe", "smollm3", "starcoder2")],
)
def test_a_model_whose_attention_this_is_is_left_as_it_was(model_type: str) -> None:
    empty = architecture.build_empty(AutoConfig.for_model(model_type, **ARCHITECTURES.get(model_type, {})))
    before = empty.config._attn_implementation
    assert list(varlen_problems(empty)) == []
    assert empty.config._attn_implementation == before
