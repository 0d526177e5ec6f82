"""Attention within segments of one line of tokens: `attn_implementation="varlen"` of transformers' models.

transformers hands the keyword arguments of a model's forward pass to its attention. Those of FlashAttention say where
segments begin and end (transformers 5.23, modeling_flash_attention_utils.py, `FlashAttentionKwargs`):

- `cu_seq_lens_q`, `cu_seq_lens_k`: int32, one more than there are segments. Segment i is the queries from
  `cu_seq_lens_q[i]` to `cu_seq_lens_q[i + 1]`, and attends to the keys from `cu_seq_lens_k[i]` to the next.
- `max_length_q`, `max_length_k`: the longest of them.
- `key_index`: int64, the positions of the line whose keys and values the segments attend to, laid end to end; absent
  where these are the line itself.

A segment is causal at the lower right: its last query sees its last key. The batch dimension is 1. On CUDA this is one
call of `torch.nn.attention.varlen.varlen_attn`, elsewhere one of SDPA for each run of segments of one shape; neither
builds a mask of all pairs of positions. A batch that is not told of segments is computed as under `sdpa`, without a
mask where its rows end in padding, which no token sees.
"""

import inspect
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby, pairwise
from typing import Any, NamedTuple, cast

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fmstune.config.choices import Attention
from fmstune.errors import Problem

VARLEN = Attention.varlen.value
"""The name under which transformers finds the attention, and its mask."""
MOST_HEAD_SIZE = 256
"""Of torch's FlashAttention (aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp)."""
_ENABLES_GQA = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Torch 2.11 computes fewer heads of keys than of queries without being told, and has no such argument."""
_HEAD_SIZE_STEP = 8
"""Head sizes are multiples of this in torch's FlashAttention; zeros fill them up."""


class Run(NamedTuple):
    """Segments of one shape that lie next to each other."""

    segments: int
    queries: int
    """Of each segment."""
    keys: int
    """Of each segment, never fewer than its queries."""


class _Plan:
    """What a CPU computes of the segments once a batch, for all layers: their runs, and a small mask for some."""

    def __init__(self, queries: Sequence[int], keys: Sequence[int]) -> None:
        same = groupby(zip(queries, keys, strict=True))
        self.runs = [Run(len(list(alike)), *shape) for shape, alike in same]
        self._masks: dict[Any, torch.Tensor] = {}

    def mask(self, run: Run, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
        """What to add to the scores of one segment; None where SDPA's own causal mask or no mask does it."""
        near = window is None or run.keys <= window
        if near and (run.queries == run.keys or run.queries == 1):
            return None
        kept = (run.queries, run.keys, None if near else window, like.dtype, like.device)
        if kept not in self._masks:
            query = torch.arange(run.keys - run.queries, run.keys, device=like.device)[:, None]
            seen = (key := torch.arange(run.keys, device=like.device)) <= query
            if window is not None:
                seen &= key > query - window
            # of numbers: SDPA would make them anew from a bool for each layer, and keep each for the backward pass
            self._masks[kept] = torch.zeros_like(seen, dtype=like.dtype).masked_fill_(~seen, -torch.inf)
        return self._masks[kept]


_plans: Any = WeakIdKeyDictionary()
"""(a reference to `cu_seq_lens_k`, plan) by the very tensor of `cu_seq_lens_q`, for as long as the batch lives."""


def _plan(cu_seq_lens_q: torch.Tensor, cu_seq_lens_k: torch.Tensor) -> _Plan:
    known = _plans.get(cu_seq_lens_q)
    if known is None or known[0]() is not cu_seq_lens_k:
        queries, keys = ([b - a for a, b in pairwise(cu.tolist())] for cu in (cu_seq_lens_q, cu_seq_lens_k))
        known = _plans[cu_seq_lens_q] = (weakref.ref(cu_seq_lens_k), _Plan(queries, keys))
    plan: _Plan = known[1]
    return plan


def tell_segments(
    cu_seq_lens_q: torch.Tensor, cu_seq_lens_k: torch.Tensor, segments: Sequence[tuple[int, int]]
) -> None:
    """Say how many queries and keys each segment has, where these tensors have no numbers to read it from."""
    queries, keys = zip(*segments, strict=True)
    _plans[cu_seq_lens_q] = weakref.ref(cu_seq_lens_k), _Plan(queries, keys)


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    key_index: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within segments; shapes are those of transformers' attention: (batch, heads, positions, head size).

    Raises ValueError for what the kernel leaves out, which the checks refuse before.
    """
    if asked := sorted(left_out(dropout=dropout, query=query, **others)):
        raise ValueError(f"varlen does not compute {' and '.join(asked)}")
    if cu_seq_lens_q is None:
        rows = query.shape[2] == key.shape[2] and attention_mask is None
        if not (rows and sliding_window is not None and sliding_window < key.shape[2]):
            return _attend_to_rows(module, query, key, value, attention_mask, scaling=scaling, **others)
        # each row is a segment
        ends = range(0, query.shape[0] * query.shape[2] + 1, query.shape[2])
        cu_seq_lens_q = cu_seq_lens_k = torch.tensor(ends, dtype=torch.int32, device=query.device)
        max_length_q = max_length_k = query.shape[2]
    elif attention_mask is not None and attention_mask.numel():
        raise ValueError("varlen attention takes segments or a mask, and this model passes both")
    elif query.shape[0] != 1:
        raise ValueError(f"segments lie on one line, and the batch has {query.shape[0]} rows")
    batch, _, positions, _ = query.shape
    size = value.shape[-1]
    q, k, v = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    if key_index is not None:
        # not k[key_index], whose backward pass is slower than that of a selection
        k, v = k.index_select(0, key_index), v.index_select(0, key_index)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    # a window as wide as a segment is none
    window = None if sliding_window is None or sliding_window >= (max_length_k or 0) else sliding_window
    if size < k.shape[-1]:
        # the kernels want one size of heads
        v = pad(v, [0, k.shape[-1] - size])
    if query.device.type == "cuda":
        lengths = (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
        out = _attend_on_cuda(q, k, v, lengths, scaling, window)
    else:
        out = _attend_run_by_run(q, k, v, (cu_seq_lens_q, cu_seq_lens_k), scaling, window)
    return out[..., :size].reshape(batch, positions, -1, size), None


def left_out(
    *,
    dropout: float = 0.0,
    query: torch.Tensor,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> set[str]:
    """Name what a layer asks of its attention and `varlen` does not do."""
    asked = {
        "attention dropout": dropout > 0,
        "a soft cap of scores": softcap is not None,
        "attention sinks": s_aux is not None or sinks is not None,
        "a position bias": position_bias is not None,
        "a view of later tokens": is_causal is False,
        f"heads above {MOST_HEAD_SIZE} in size": query.shape[-1] > MOST_HEAD_SIZE,
    }
    return {name for name, given in asked.items() if given}


def _attend_to_rows(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    if attention_mask is not None and not attention_mask.numel():
        raise ValueError("rows hold several documents by their positions, and no cu_seq_lens_q says where they begin")
    attended: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **others)
    return attended


def _attend_on_cuda(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: Any, scaling: float, window: int | None
) -> torch.Tensor:
    """FlashAttention, which is causal at the lower right (torch/nn/attention/bias.py, `CausalVariant.LOWER_RIGHT`)."""
    if q.dtype == torch.float32 and torch.is_autocast_enabled("cuda"):
        # PEFT keeps norms in float32, from which Qwen3 has its queries
        q, k, v = (tensor.to(torch.get_autocast_dtype("cuda")) for tensor in (q, k, v))
    if missing := -q.shape[-1] % _HEAD_SIZE_STEP:
        q, k, v = (pad(tensor, [0, missing]) for tensor in (q, k, v))
    seen = (-1 if window is None else window - 1, 0)
    grouped: Any = {"enable_gqa": True} if q.shape[1] != k.shape[1] and _ENABLES_GQA else {}
    out: Any = varlen_attn(q, k, v, *lengths, scale=scaling, window_size=seen, **grouped)
    return cast("torch.Tensor", out)


# not compiled: its calls differ from batch to batch, and so would the graph
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend_run_by_run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ends: tuple[torch.Tensor, torch.Tensor],
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """One call of SDPA for each run; whole tensors are split, as the gradient of a slice is as large as the whole."""
    plan = _plan(*ends)
    queries = [run.segments * run.queries for run in plan.runs]
    keys = [run.segments * run.keys for run in plan.runs]
    grouped, out = q.shape[1] != k.shape[1], []
    pieces = (torch.split(q, queries), torch.split(k, keys), torch.split(v, keys))
    for run, *parts in zip(plan.runs, *pieces, strict=True):
        query, key, value = (part.view(run.segments, -1, *part.shape[1:]).transpose(1, 2) for part in parts)
        mask = plan.mask(run, window, q)
        causal = mask is None and run.queries > 1
        attended = scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=grouped
        )
        out.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(out)


def varlen_mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    attention_mask: torch.Tensor | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **others: Any,
) -> torch.Tensor | None:
    """No mask where causality and the layer's window say all; one without an element where positions begin anew.

    Else, as for rows that begin with padding and for the steps of generation, the mask of `sdpa`.
    """
    whole_rows = q_length == kv_length and q_offset == 0 and kv_offset == 0
    # masks of encoders alone have this argument
    causal = "allow_is_bidirectional_skip" not in others
    if causal and not use_vmap and whole_rows and (attention_mask is None or _ends_in_padding(attention_mask)):
        told = allow_is_causal_skip or attention_mask is not None
        return None if told else torch.empty(1, 1, 1, 0, dtype=torch.bool, device=device)
    mask: torch.Tensor | None = sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        attention_mask=attention_mask,
        allow_is_causal_skip=allow_is_causal_skip,
        use_vmap=use_vmap,
        device=device,
        **others,
    )
    return mask


def _ends_in_padding(attention_mask: torch.Tensor) -> bool:
    """Whether each row is tokens first, then padding."""
    return bool((attention_mask[:, :-1] >= attention_mask[:, 1:]).all() and attention_mask[:, 0].all())


def varlen_problems(model: PreTrainedModel) -> Iterator[Problem]:
    """Yield a problem where `varlen` would not be the attention of this model, which is on the meta device."""
    for why in varlen_refusals(model):
        yield Problem("model.attention", f"=varlen: {why}; choose auto")


def varlen_refusals(model: PreTrainedModel) -> Iterator[str]:
    """Say why `varlen` would not be the attention of this model, which is on the meta device.

    Found from what its layers ask of their attention in a pass of two tokens without numbers.
    """
    calls, text = _attention_calls(model), model.config.get_text_config()
    model_class = type(model).__name__
    if not calls:
        own = "computes attention by code of its own, and transformers' AttentionInterface does not reach it"
        yield f"{model_class} {own}"
        return
    if not all("cu_seq_lens_q" in call for call in calls):
        yield f"{model_class} does not tell its attention where segments begin and end"
    asked = set().union(*(left_out(**call) for call in calls))
    asked |= {f"attention by {name}" for call in calls for name in call.keys() & _CHOSEN_KEYS}
    if "chunked_attention" in (getattr(text, "layer_types", None) or ()):
        asked.add("attention in chunks")
    if getattr(text, "sliding_window", None) and not any("sliding_window" in call for call in calls):
        asked.add("sliding windows that its layers do not pass on")
    if asked:
        yield f"{model_class} has {' and '.join(sorted(asked))}, which varlen does not compute"


_CHOSEN_KEYS = {"indices", "block_indices"}
"""With these an attention looks at some keys alone, as DeepSeek 3.2's does."""
_TRIAL = "varlen_trial"
"""The name under which transformers finds an attention that only listens."""


class _HeardAll(Exception):
    """Ends a forward pass."""


def _attention_calls(model: PreTrainedModel) -> list[dict[str, Any]]:
    """What each layer asks of its attention, up to the first layer of the last type."""
    types = list(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    last = max(types.index(one) for one in set(types))
    calls: list[dict[str, Any]] = []

    def listen(
        module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **asked: Any
    ) -> tuple[torch.Tensor, None]:
        asked.setdefault("is_causal", getattr(module, "is_causal", None))
        calls.append({**asked, "query": query})
        if (getattr(module, "layer_idx", None) or 0) >= last:
            raise _HeardAll
        return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None

    AttentionInterface.register(_TRIAL, listen)
    before = model.config._attn_implementation
    model.config._attn_implementation = _TRIAL
    ends = torch.tensor([0, 2], dtype=torch.int32)
    told = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 2, "max_length_k": 2}
    try:
        # a mask for each pair of positions is taken as it is; another error than the end says nothing about attention
        with torch.no_grad(), suppress(Exception):
            ids = torch.ones(1, 2, dtype=torch.long, device="meta")
            model(input_ids=ids, attention_mask=torch.ones(1, 1, 2, 2, device="meta"), use_cache=False, **told)
    finally:
        model.config._attn_implementation = before
    return calls


AttentionInterface.register(VARLEN, varlen_attention)
AttentionMaskInterface.register(VARLEN, varlen_mask)
