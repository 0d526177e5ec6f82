"""The floating-point operations that a model's matrices and attention take for a position, forward and backward.

A matrix of N numbers takes 2N for each position in the forward pass, 2N for the gradient of its input, and 2N for its
own (Kaplan et al. 2020, arXiv:2001.08361, table 1). A frozen matrix has no gradient of its own, and no input has one
below the lowest parameter that is trained. Each pair of a query and a key takes 2 for each number of a query, and 2
for each number of a value; twice that in the backward pass. These are model FLOPs (Chowdhery et al. 2022,
arXiv:2204.02311, appendix B): what activation checkpointing computes again does not count, nor does a norm, an
activation function, the optimizer, or what one implementation does in addition, such as the product of DoRA's norm.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.ia3 import IA3Layer
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from transformers import PreTrainedConfig

from fmstune.checks.plan_inputs import ModelFlops, PassFlops
from fmstune.models.experts import EXPERT, Experts

_WITHOUT_SCORES = ("conv", "linear_attention", "mamba", "moe", "recurrent")
"""Layer types of transformers that score no pairs of positions (configuration_utils.py, `ALLOWED_ATTN_LAYER_TYPES`)."""
_LOOKED_UP = "lora_embedding_A"
"""LoRA's matrix whose rows are looked up, not multiplied."""
ABSENT = 0
"""The window of a layer that scores no pairs."""


@dataclass(frozen=True)
class _Matrix:
    """A matrix that a position is multiplied with."""

    numbers: int
    """Of an expert's matrices, those that compute one position."""
    trained: bool
    adapter: bool


@dataclass(frozen=True)
class _Layer:
    """A layer with its adapter, or parameters without a matrix, such as those of a norm or an embedding."""

    name: str
    matrices: tuple[_Matrix, ...]
    trained: bool
    scores: bool
    """It is the output layer."""
    scales_input: bool
    """IA3 trains a factor of its input, which therefore has a gradient."""

    @property
    def block(self) -> str:
        """The beginning of the name up to the first number; empty outside of the blocks."""
        parts = self.name.split(".")
        return ".".join(parts[: next((place + 1 for place, part in enumerate(parts) if part.isdecimal()), 0)])

    @property
    def parent(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def attends(self) -> bool:
        """It is a part of an attention."""
        return "att" in self.parent.rpartition(".")[2]

    @property
    def forward(self) -> int:
        return 2 * sum(matrix.numbers for matrix in self.matrices)

    def backward(self, *, below: bool) -> int:
        """What a position takes; `below` says whether the layer's input has a gradient."""
        taken = 0
        base = adapter = below or self.scales_input
        for matrix in self.matrices:
            taken += 2 * matrix.numbers * ((adapter if matrix.adapter else base) + matrix.trained)
            # the next one of a chain, such as an expert's second matrix or LoRA's B
            base, adapter = base or (self.trained and not matrix.adapter), adapter or matrix.trained
        return taken


def count_model_flops(adapted: torch.nn.Module, config: PreTrainedConfig, experts: Experts | None) -> ModelFlops:
    """Return what forward and backward pass of a model, with its adapter, take; it may be on the meta device."""
    method: Any = adapted.active_peft_config if isinstance(adapted, PeftModel) else None
    prompt = method is not None and method.is_prompt_learning
    prefix = prompt and method.peft_type == "PREFIX_TUNING"
    model: Any = adapted.get_base_model() if isinstance(adapted, PeftModel) else adapted
    walked = list(_walk(list(_layers(model, experts)), below=prompt and not prefix, prefix=prefix))
    forward, backward = defaultdict[bool, int](int), defaultdict[bool, int](int)
    for layer, below in walked:
        forward[layer.scores] += layer.forward
        backward[layer.scores] += layer.backward(below=below)
    windows = layer_windows(config.get_text_config())
    kinds = tuple(dict.fromkeys(window for window in windows if window != ABSENT))
    pairs, pairs_back = _pair_flops(walked, windows, kinds, _score_flops(config.get_text_config()))
    return ModelFlops(
        forward=PassFlops(forward[False], forward[True], pairs),
        backward=PassFlops(backward[False], backward[True], pairs_back),
        windows=kinds,
    )


def _walk(layers: Sequence[_Layer], *, below: bool, prefix: bool) -> Iterator[tuple[_Layer, bool]]:
    """Yield each layer, and whether its input has a gradient.

    The last layer of an attention or an MLP is taken to read what the others put out, which all read the same input.
    """
    for _, of_block in groupby(layers, key=lambda layer: layer.block):
        block = list(of_block)
        # norms stand last in a block, and compute first
        below = below or any(layer.trained and not layer.matrices for layer in block)
        for _, siblings in groupby(block, key=lambda layer: layer.parent):
            *readers, last = siblings
            yield from ((layer, below) for layer in readers)
            below = below or any(layer.trained for layer in readers) or (prefix and last.attends)
            yield last, below
            below = below or last.trained


def _layers(model: Any, experts: Experts | None) -> Iterator[_Layer]:
    """Yield the layers that text goes through, in the model's order; a part for pictures has none."""
    head = model.get_output_embeddings()
    of_head = set(head.modules()) if head is not None else set()
    names = {module: name for name, module in model.named_modules()}
    whole, text = f"{model.base_model_prefix}.", f"{names[model.get_decoder()]}.".lstrip(".")
    passed: set[torch.nn.Module] = set()
    for module, name in names.items():
        if module in passed or (f"{name}.".startswith(whole) and not f"{name}.".startswith(text)):
            continue
        if isinstance(module, ModulesToSaveWrapper):
            # the copy is trained and computes
            passed |= set(module.original_module.modules())
        adapted = isinstance(module, BaseTunerLayer)
        if not adapted and next(module.parameters(recurse=False), None) is None:
            continue
        if adapted:
            passed |= set(module.modules())
        yield _Layer(
            name=name,
            matrices=tuple(_matrices(name, module, experts)),
            trained=any(p.requires_grad for p in module.parameters(recurse=adapted)),
            scores=module in of_head,
            scales_input=isinstance(module, IA3Layer) and module.is_feedforward,
        )


def _matrices(name: str, module: Any, experts: Experts | None) -> Iterator[_Matrix]:
    """Yield the matrices of a layer, those of its adapter last."""
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    share = (experts.per_token, experts.count) if experts is not None and EXPERT.search(f"{name}.") else (1, 1)

    own = set(base.parameters(recurse=False))
    if not isinstance(base, torch.nn.Embedding):
        for part, parameter in base.named_parameters(recurse=False):
            # the biases of all experts are one tensor of two dimensions, and are added
            if parameter.dim() > 1 and "bias" not in part:
                yield _Matrix(parameter.numel() * share[0] // share[1], parameter.requires_grad, adapter=False)
    if base is module or isinstance(module, IA3Layer | TrainableTokensLayer):
        return
    for part, parameter in module.named_parameters():
        if parameter not in own and parameter.dim() > 1:
            numbers = 0 if _LOOKED_UP in part else parameter.numel() * share[0] // share[1]
            yield _Matrix(numbers, parameter.requires_grad, adapter=True)


def _pair_flops(
    walked: Sequence[tuple[_Layer, bool]], windows: Sequence[int | None], kinds: Sequence[int | None], scores: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what each pair of a query and a key takes, of each kind of window, forward and backward."""
    blocks = dict.fromkeys(layer.block for layer, _ in walked if layer.block and layer.matrices)
    attending = {layer.block for layer, _ in walked if layer.attends}
    reached = {layer.block for layer, below in walked if below and (layer.attends or layer.block not in attending)}
    forward, backward = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)
    for block, window in zip(blocks, windows, strict=False):
        if window != ABSENT:
            forward[window] += scores
            backward[window] += 2 * scores * (block in reached)
    return tuple(forward.values()), tuple(backward.values())


def _score_flops(text: PreTrainedConfig) -> int:
    """Return what one layer's attention takes for a pair of a query and a key, in the forward pass."""
    heads = getattr(text, "num_attention_heads", 0)
    size = getattr(text, "head_dim", None) or text.hidden_size // max(heads, 1)
    # DeepSeek's attention has queries and values of different sizes
    query, value = (getattr(text, name, None) or size for name in ("qk_head_dim", "v_head_dim"))
    return int(2 * heads * (query + value))


def layer_windows(text: PreTrainedConfig) -> list[int | None]:
    """Return of each layer how many keys a query sees at most: None for all, `ABSENT` where it scores none."""
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    chunk = getattr(text, "attention_chunk_size", None)
    sizes = {"sliding_attention": window, "hybrid_sliding": window, "chunked_attention": chunk}
    sizes |= dict.fromkeys(_WITHOUT_SCORES, ABSENT)
    types = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None)
    if types is None:
        return [window if getattr(text, "num_attention_heads", 0) else ABSENT] * int(text.num_hidden_layers)
    return [sizes.get(kind) for kind in types]
