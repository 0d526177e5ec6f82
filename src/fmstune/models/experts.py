"""The experts of a mixture: how many of their parameters compute a token, and whether an adapter reaches them."""

import re
from dataclasses import dataclass

import torch
from peft import PeftConfig
from peft.tuners.lora.layer import ParamWrapper
from transformers import PreTrainedConfig, PreTrainedModel

EXPERT = re.compile(r"\.experts\.")
"""In the name of every parameter of transformers' experts, fused into one or not; shared experts are named apart."""


@dataclass(frozen=True)
class Experts:
    """The experts of a model in numbers."""

    count: int
    """Of one block."""
    per_token: int
    """Those of them that compute one token."""
    parameters: int
    """Of all experts in all blocks."""
    fused: tuple[str, ...]
    """Endings of the names of parameters that hold a matrix of each expert, as `peft.target_parameters` takes them."""

    @property
    def idle(self) -> int:
        """Parameters that compute no part of one token."""
        return self.parameters - self.parameters * self.per_token // self.count


def find_experts(model: PreTrainedModel) -> Experts | None:
    """The model's experts; None where it has none."""
    text: PreTrainedConfig = model.config.get_text_config()
    count, per_token = count_experts(text), _first(text, _PER_TOKEN)
    parameters = {name: p for name, p in model.named_parameters() if EXPERT.search(name)}
    if not (count and per_token and parameters):
        return None
    fused = [_ending(name) for name, p in parameters.items() if p.dim() == 3 and p.shape[0] == count]
    total = sum(p.numel() for p in parameters.values())
    return Experts(count, min(per_token, count), total, tuple(dict.fromkeys(fused)))


def count_experts(config: PreTrainedConfig) -> int | None:
    """How many experts a block has; None, or 0, for a dense model."""
    return _first(config.get_text_config(), _COUNTS)


_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk")


def _first(config: PreTrainedConfig, names: tuple[str, ...]) -> int | None:
    return next((value for name in names if (value := getattr(config, name, None))), None)


def _ending(name: str) -> str:
    """The name below the block, such as `mlp.experts.down_proj`."""
    return re.sub(r"^.*\.\d+\.", "", name)


def missed_experts(
    experts: Experts | None, adapted: torch.nn.Module, peft_config: PeftConfig | None
) -> tuple[str, ...]:
    """Parameters of experts that an adapter of layers leaves as they are: a fused matrix is not a layer."""
    if experts is None or not hasattr(peft_config, "target_modules"):
        return ()
    reached = {module.parameter_name for module in adapted.modules() if isinstance(module, ParamWrapper)}
    return tuple(name for name in experts.fused if name.rpartition(".")[2] not in reached)
