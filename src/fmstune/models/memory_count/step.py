"""One training step of a job without numbers: what it would hold, counted tensor by tensor.

The model is that of the configuration with its adapter; forward pass, loss, backward pass and optimizer are the
libraries' own, on torch's fake tensors. Models of equal blocks are tried with a few of them, and the bytes of the
others follow: a phase of a step takes as much more for each.
"""

import copy
import logging
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from transformers import PreTrainedConfig, masking_utils

from fmstune.models import architecture, shapes
from fmstune.models.adapter_targets import ALL_LINEAR
from fmstune.models.memory_count.heap import replay_steps
from fmstune.models.torch_internals import (
    AsOnCuda,
    ByteCount,
    FakeTensorMode,
    Held,
    UnsupportedFakeTensorException,
    give_fake_storage,
)
from fmstune.models.trl_internals import (
    add_fused_lm_head,
    score_supervised_positions_on_cpu,
    touched_logits,
    without_triton_kernels,
)
from fmstune.models.varlen import VARLEN, tell_segments

APART_ON_CPU = 8
"""Blocks between the two trials of a model on a CPU, where holes do not grow evenly from block to block."""
KINDS = ("weights", "gradients", "optimizer", "activations", "logits", "fragmentation")
"""What a step holds, and `phases` it goes through."""
FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError),
    *(TypeError, ValueError, UnsupportedFakeTensorException),
)
"""What models and libraries raise that need numbers."""


@dataclass(frozen=True)
class StepShape:
    """The batch of a step: its rows, their lengths, and what is trained of them."""

    rows: int
    positions: int
    """Of each row, virtual tokens not included."""
    supervised: int
    """Positions of the batch that are trained."""
    padded: bool
    """Rows differ in length, so that a mask hides padding."""
    packed: bool
    """Documents are kept apart by their positions."""
    accumulated: bool
    """Gradients of the batch before are there already."""
    segments: tuple[tuple[int, int], ...] = ()
    """Queries and keys of each segment of a line on which rows share their beginnings; of other batches empty."""


@dataclass(frozen=True)
class StepSettings:
    """How a step computes."""

    weights: torch.dtype
    autocast: torch.dtype | None
    attention: str
    cuda: bool
    optimizer: tuple[type[torch.optim.Optimizer], Mapping[str, Any]]
    checkpointing: Mapping[str, Any] | None
    """Arguments of activation checkpointing; None without it."""


def count_phases(
    config: PreTrainedConfig, peft: PeftConfig | None, shape: StepShape, settings: StepSettings
) -> dict[str, Held]:
    """Bytes by kind when each phase of the step holds most; raises one of `FAILURES` where the model needs numbers."""
    with warnings.catch_warnings(), ExitStack() as within:
        warnings.simplefilter("ignore")
        score_supervised_positions_on_cpu()
        model: Any = architecture.build_empty(copy.deepcopy(config))
        apart = 2 if settings.cuda else APART_ON_CPU
        cut = _cut(model, apart) if _is_alike_in_all_blocks(peft) else None
        model = _adapted(model, peft, _attention(shape, settings), settings.weights)
        cut = cut or _cut(model, apart)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        within.enter_context(without_triton_kernels() if settings.cuda else touched_logits(vocabulary))
        _make_ready(model, settings)
        # torch logs, with a traceback, what it raises as well
        within.enter_context(patch.object(logging.getLogger(FakeTensorMode.__module__), "disabled", True))
        within.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        give_fake_storage(model)
        if settings.cuda:
            within.enter_context(AsOnCuda())
        if not shape.packed:
            # transformers 5.23 takes positions without numbers for those of packed rows
            within.enter_context(patch.object(masking_utils, "find_packed_sequence_indices", lambda *_, **__: None))
        more = _phases(model, shape, settings)
        if not cut.shortened:
            return more
        _keep_blocks(model, cut.blocks, cut.few)
        return extrapolate(_phases(model, shape, settings), more, (cut.whole - cut.few) / (cut.more - cut.few))


class _Cut(NamedTuple):
    """The blocks of a model, and how many of them are tried."""

    blocks: torch.nn.ModuleList
    whole: int
    period: int
    apart: int
    """Blocks, at least, that the larger trial has more than the smaller one."""

    @property
    def few(self) -> int:
        return max(self.period, 2)

    @property
    def more(self) -> int:
        return self.few + max(2, -(-self.apart // self.period)) * self.period

    @property
    def shortened(self) -> bool:
        return self.whole > self.more + 2 * self.period


def _cut(model: Any, apart: int) -> _Cut:
    """Leave the model a few of its blocks and some more, where that is enough to tell what all would hold."""
    blocks = _blocks(model)
    cut = _Cut(blocks, len(blocks), _period(blocks), apart)
    if cut.shortened:
        _keep_blocks(model, blocks, cut.more)
    return cut


def _is_alike_in_all_blocks(peft: PeftConfig | None) -> bool:
    """Whether blocks that are equal stay so with the adapter, which then need not be put into all of them."""
    if peft is None or type(peft) is not LoraConfig:
        return peft is None
    chosen = (peft.layers_to_transform, peft.layer_replication, peft.rank_pattern, peft.alpha_pattern)
    if any(value is not None and value != {} for value in chosen):
        return False
    named = (peft.target_modules, peft.exclude_modules, peft.modules_to_save, peft.target_parameters)
    return all(names is None or names == ALL_LINEAR or _names_no_block(names) for names in named)


def _names_no_block(names: str | Collection[str]) -> bool:
    """Whether these are ends of names without a block's number; a pattern may stand for any."""
    return not isinstance(names, str) and not any(part.isdecimal() for name in names for part in name.split("."))


def _keep_blocks(model: Any, blocks: torch.nn.ModuleList, count: int) -> None:
    del blocks[count:]
    model.config.get_text_config().num_hidden_layers = count


def largest_phase(phases: Mapping[str, Held]) -> dict[str, int]:
    """Bytes by kind of the phase whose tensors hold most, with the fragmentation up to the most of any phase."""
    tensors = {phase: sum(held.values()) - held["fragmentation"] for phase, held in phases.items()}
    largest = max(tensors, key=tensors.__getitem__)
    together = max(sum(held.values()) for held in phases.values())
    most = {**phases[largest], "fragmentation": together - tensors[largest]}
    return {kind: max(most.get(kind, 0), 0) for kind in KINDS}


def expected_bytes(phases: Mapping[str, Held], counted: StepShape, other: StepShape) -> float:
    """What another batch would hold: activations go with its positions, the loss with what is trained of it.

    The fragmentation goes with both.
    """
    share = {
        "activations": other.rows * other.positions / (counted.rows * counted.positions),
        "logits": other.supervised / counted.supervised,
    }

    def expected(held: Held) -> float:
        parts = {kind: size * share.get(kind, 1.0) for kind, size in held.items()}
        before, after = (sum(of.get(kind, 0) for kind in share) for of in (held, parts))
        return sum(parts.values()) + held.get("fragmentation", 0) * (after / before - 1 if before else 0)

    return max(map(expected, phases.values()))


def extrapolate(fewer: Mapping[str, Held], more: Mapping[str, Held], times: float) -> dict[str, Held]:
    """The phases of a model with so many times the blocks more that `more` has; no part is below 0."""

    def of_all(kind: str, held: Held, with_more: Held) -> int:
        return max(round(held.get(kind, 0) + times * (with_more.get(kind, 0) - held.get(kind, 0))), 0)

    return {phase: {kind: of_all(kind, held, more[phase]) for kind in KINDS} for phase, held in fewer.items()}


def _attention(shape: StepShape, settings: StepSettings) -> str:
    """The attention of the step; kernels that need a GPU, or to be told of segments, hold what `sdpa` holds."""
    if shape.segments:
        return VARLEN
    return "sdpa" if settings.attention.startswith(("flash", VARLEN)) else settings.attention


def _adapted(empty: Any, peft: PeftConfig | None, attention: str, weights: torch.dtype) -> Any:
    """The model on the meta device with its adapter; the base in its dtype, as it is loaded."""
    for parameter in empty.parameters():
        parameter.data = parameter.data.to(weights)
    empty.set_attn_implementation(attention)
    return empty if peft is None else shapes.attach(empty, peft)


def _blocks(model: Any) -> torch.nn.ModuleList:
    """The model's blocks; an empty list where they cannot be told."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count]
    return lists[0] if len(lists) == 1 else torch.nn.ModuleList()


def _period(blocks: torch.nn.ModuleList) -> int:
    """After how many blocks their shapes, and what is trained of them, come again; all of them where they never do."""
    signs = [
        (
            *((name, tuple(p.shape), p.requires_grad) for name, p in block.named_parameters()),
            *(type(module).__name__ for module in block.modules()),
            *(str(getattr(module, "sliding_window", None)) for module in block.modules()),
        )
        for block in blocks
    ]
    for period in range(1, len(signs)):
        if all(sign == signs[number % period] for number, sign in enumerate(signs)):
            return period
    return max(len(signs), 1)


def _make_ready(model: Any, settings: StepSettings) -> None:
    """What TRL's trainer does to a model before it trains."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
    model.train()
    if settings.checkpointing is not None:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(settings.checkpointing))
        if isinstance(model, PeftModel):
            model.enable_input_require_grads()


def _phases(model: Any, shape: StepShape, settings: StepSettings) -> dict[str, Held]:
    """What each phase of a step holds at most, from the second step on."""
    model.zero_grad(set_to_none=True)
    # the labels of a line are shifted already
    scored = shape.positions if shape.segments else shape.positions + _virtual_tokens(model) - 1
    mask_shape = (shape.rows, scored)
    counter = ByteCount(mask_shape, shape.supervised)
    with counter:
        counter.count_as("weights", [*model.parameters(), *model.buffers()])
        _step(model, shape, settings, counter)
    model.zero_grad(set_to_none=True)
    # CUDA's allocator is another one
    process = replay_steps({} if settings.cuda else counter.events, accumulated=shape.accumulated)
    tensors = {phase: sum(held.values()) - held["weights"] for phase, held in counter.most.items()}
    holes = {phase: max(process.get(phase, 0) - size, 0) for phase, size in tensors.items()}
    return {phase: {**held, "fragmentation": holes[phase]} for phase, held in counter.most.items()}


def _step(model: Any, shape: StepShape, settings: StepSettings, counter: ByteCount) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(lambda p: counter.count_as("gradients", [p.grad])) for p in trained]
    kind, values = settings.optimizer
    optimizer = kind(trained, **values)
    # the first step makes the optimizer's state
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
        counter.count_as("gradients", [parameter.grad])
    counter.enter_phase("first")
    optimizer.step()
    for state in optimizer.state.values():
        counter.count_as("optimizer", (one for one in state.values() if isinstance(one, torch.Tensor)))
    if not shape.accumulated:
        optimizer.zero_grad(set_to_none=True)
    counter.start_over()
    counter.enter_phase("forward")
    if settings.checkpointing is None:
        counter.watch_use(trained)
    hooks.append(_watch_head(model, counter))
    with torch.autocast("cpu", dtype=settings.autocast, enabled=settings.autocast is not None):
        output = model(**_batch(shape), use_cache=False, fused_lm_head=True)
        loss = -output.log_probs.sum() / shape.supervised
        if output.aux_loss is not None:
            loss = loss + output.aux_loss
        del output
    loss.backward()
    del loss
    counter.enter_phase("optimizer")
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    for hook in hooks:
        hook.remove()


def _watch_head(model: Any, counter: ByteCount) -> Any:
    """Tell the loss from the rest: it begins after the last block, and ends where the gradient comes back to it."""

    def begin(_: Any, __: Any, output: Any) -> None:
        counter.enter_phase("head", "logits")
        hidden = output.last_hidden_state
        if hidden.requires_grad:
            hidden.register_hook(lambda _: counter.enter_phase("backward"))

    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return getattr(base, base.base_model_prefix).register_forward_hook(begin)


def _batch(shape: StepShape) -> dict[str, Any]:
    size = (shape.rows, shape.positions)
    batch = {"input_ids": torch.empty(size, dtype=torch.int64), "labels": torch.empty(size, dtype=torch.int64)}
    if shape.segments:
        return {**batch, **_line(shape.segments)}
    if shape.padded:
        batch["attention_mask"] = torch.empty(size, dtype=torch.int64)
    if shape.packed:
        batch["position_ids"] = torch.empty(size, dtype=torch.int64)
    return batch


def _line(segments: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The arguments of a line of segments, by the names of `fmstune.data.prefix_sharing.layout`."""
    ends_of_queries, ends_of_keys = (torch.empty(len(segments) + 1, dtype=torch.int32) for _ in range(2))
    tell_segments(ends_of_queries, ends_of_keys, segments)
    queries, keys = zip(*segments, strict=True)
    return {
        "cu_seq_lens_q": ends_of_queries,
        "cu_seq_lens_k": ends_of_keys,
        "max_length_q": max(queries),
        "max_length_k": max(keys),
        "position_ids": torch.empty(1, sum(queries), dtype=torch.int64),
        "shift_labels": torch.empty(1, sum(queries), dtype=torch.int64),
        "key_index": torch.empty(sum(keys), dtype=torch.int64),
    }


def _virtual_tokens(model: Any) -> int:
    """Positions that the labels are lengthened by (PEFT's prompts; not prefix tuning, which has no positions)."""
    if not isinstance(model, PeftModel) or not model.active_peft_config.is_prompt_learning:
        return 0
    prefix = model.active_peft_config.peft_type == "PREFIX_TUNING"
    return 0 if prefix else int(model.active_peft_config.num_virtual_tokens)
