"""Liger's Triton kernels in a model's blocks: norms, rotary positions and gated layers, for architectures it names."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from fmstune.errors import Problem, UserError

_OFF = ("cross_entropy", "fused_linear_cross_entropy")
"""Kernels of the loss: TRL fuses output layer and loss itself, and Liger's would replace the forward pass it does it in
(trl/trainer/sft_trainer.py, `use_liger_kernel`)."""


def kernel_problems(configuration: PreTrainedConfig) -> Iterator[Problem]:
    """Yield a problem where Liger names no kernels for this architecture; needs the package."""
    known, asked = _functions(), configuration.get_text_config().model_type
    if asked not in known:
        text = f"=liger: Liger has no kernels for {asked}; set it to none (it has them for {', '.join(sorted(known))})"
        yield Problem("model.kernels", text)


def use_liger(model: PreTrainedModel) -> None:
    """Put Liger's kernels into the model; weights and names stay as they are.

    Raises UserError for an architecture without kernels. The rotary function is replaced for all models of this
    architecture in this process, as Liger does it.
    """
    for problem in kernel_problems(model.config):
        raise UserError.of([problem])
    apply = _functions()[model.config.get_text_config().model_type]
    off = {name: False for name in _OFF if name in inspect.signature(apply).parameters}
    apply(model=model, **off)


def _functions() -> Mapping[str, Callable[..., Any]]:
    # an extra, and it imports Triton
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    found: Mapping[str, Callable[..., Any]] = MODEL_TYPE_TO_APPLY_LIGER_FN
    return found
