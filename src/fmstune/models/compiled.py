"""torch.compile block by block and in place: names and saved files are those of the model, and a resume finds them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

FIELDS = ("torch_compile", "torch_compile_backend", "torch_compile_mode")
"""Fields of `training` that say whether and how; each of the others implies the first, as in transformers."""


def asks_compiled(training: Mapping[str, Any]) -> bool:
    """Whether the blocks are to be compiled."""
    return any(training.get(name) for name in FIELDS)


def compile_blocks(model: torch.nn.Module, training: Mapping[str, Any]) -> int:
    """Compile the forward pass of each transformer block; return how many there are.

    Blocks are alike, so that one compilation serves all of them, and recomputing activations stays outside of it. A
    wrapper around the model, as `torch.compile(model)` makes it, would put `_orig_mod` into every name.
    """
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    backend = training.get("torch_compile_backend") or "inductor"
    for block in blocks:
        block.compile(backend=backend, mode=training.get("torch_compile_mode"))
    return len(blocks)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Compute without compiled blocks: an answer that is generated has a new length at each token."""
    with torch.compiler.set_stance("force_eager"):
        yield
