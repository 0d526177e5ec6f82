"""FSDP's side of a run: its settings for the trainer, and what a sharded model needs to be read and saved."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin
from peft import PeftModel, PeftType
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, FullStateDictConfig, FullyShardedDataParallel, StateDictType
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from fmstune.config.choices import Sharding
from fmstune.config.job import Job, Launcher
from fmstune.errors import Problem, did_you_mean

_Found = TypeVar("_Found")


def set_environment(launcher: Launcher) -> None:
    """Set the values that accelerate and transformers read from the environment only.

    accelerate chooses the backend by FSDP_STATE_DICT_TYPE (state.py: gloo and NCCL, to gather on the CPU), and
    transformers reads weights in one process of a machine by FSDP_CPU_RAM_EFFICIENT_LOADING (distributed/fsdp.py).
    """
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": str(launcher.fsdp_version),
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_OFFLOAD_PARAMS": str(launcher.cpu_offload).lower(),
        "FSDP_CPU_RAM_EFFICIENT_LOADING": str(launcher.cpu_ram_efficient_loading).lower(),
    }


def settings(launcher: Launcher) -> dict[str, Any]:
    """The launcher group as fields of SFTConfig (transformers/training_args.py, `_process_fsdp_args`)."""
    blocks = blocks_to_wrap(launcher)
    config: dict[str, Any] = {
        "version": launcher.fsdp_version,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "state_dict_type": "FULL_STATE_DICT",
        "cpu_offload": launcher.cpu_offload,
        "cpu_ram_efficient_loading": launcher.cpu_ram_efficient_loading,
        **({"transformer_layer_cls_to_wrap": blocks} if blocks else {}),
    }
    if launcher.fsdp_version == 2:
        config["reshard_after_forward"] = launcher.sharding_strategy is Sharding.full_shard
    else:
        config |= {
            "reshard_after_forward": launcher.sharding_strategy.value,
            "backward_prefetch": launcher.backward_prefetch.value,
            "forward_prefetch": launcher.forward_prefetch,
            "use_orig_params": launcher.use_orig_params,
            "sync_module_states": True,
        }
    return {"fsdp": True, "fsdp_config": config}


def blocks_to_wrap(launcher: Launcher) -> list[str]:
    """The class names of the blocks that FSDP wraps; with none, transformers takes the model's own."""
    blocks = launcher.transformer_layer_cls_to_wrap
    return [blocks] if isinstance(blocks, str) else blocks or []


def block_problems(job: Job, model: torch.nn.Module) -> Iterator[Problem]:
    """Yield a problem for each class of blocks that the model has no module of."""
    classes = {type(module).__name__ for module in model.modules()}
    for name in blocks_to_wrap(job.launcher):
        if name not in classes:
            own = job.launcher.transformer_layer_cls_to_wrap == job.model.layer_cls
            field = "model.layer_cls" if own else "launcher.transformer_layer_cls_to_wrap"
            text = f"={name}: the model has no module of this class{did_you_mean(name, classes)}"
            yield Problem(field, f"{text}; null wraps the model's own blocks")


def keep_exact(plugin: FullyShardedDataParallelPlugin) -> None:
    """Keep half precision to the computing, as transformers' own sharding does (distributed/fsdp.py).

    accelerate 1.15 uses one dtype for all (utils/dataclasses.py, `set_mixed_precision`): gradients would be summed in
    it, losses and log-probabilities rounded to it, and under FSDP1 the buffer of rotary frequencies, too.
    """
    if (policy := plugin.mixed_precision_policy) is not None:
        exact = {"reduce_dtype": torch.float32, "output_dtype" if plugin.fsdp_version == 2 else "buffer_dtype": None}
        plugin.mixed_precision_policy = dataclasses.replace(policy, **exact)


def holds_shard(model: torch.nn.Module) -> bool:
    """Whether this model holds a part of its weights only."""
    return isinstance(model, (FSDPModule, FullyShardedDataParallel))


def shard_again(model: torch.nn.Module) -> None:
    """Give up what an evaluation leaves whole, for a backward pass that does not come."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def held_by_rank(model: torch.nn.Module) -> list[int]:
    """Bytes of weights that each process holds between two steps; every process must ask."""
    shard_again(model)
    local = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return gathered_from_all(sum(tensor.numel() * tensor.element_size() for tensor in local))


def gathered(model: PreTrainedModel | PeftModel, *, trained_only: bool) -> dict[str, Any]:
    """The whole weights, or the trained ones, on the CPU of the main process; every process must call it."""
    if not isinstance(model, FullyShardedDataParallel):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only)
        # gathering copies tied weights, and each copy would be saved; keep one name of each weight
        once = dict([*model.named_parameters(), *model.named_buffers()])
        return {name: value for name, value in get_model_state_dict(model, options=options).items() if name in once}
    whole = FullStateDictConfig(offload_to_cpu=True, rank0_only=True)
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT, whole):
        state: dict[str, Any] = model.state_dict()
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: value for name, value in state.items() if not trained_only or name in names}


@contextmanager
def unshard_prompt(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Unshard a learned prompt, which the root holds: PEFT computes what it saves of it in one process alone."""
    if not (isinstance(model, FSDPModule) and virtual_tokens(model)):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


@contextmanager
def as_base(model: PeftModel) -> Iterator[None]:
    """The model without its adapter, whose weights stay marked as trained, which PEFT alone would not leave them.

    At its first forward pass a sharded model looks which weights are trained, to know the dtype of their gradients
    (torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py, `_init_mp_dtypes`).
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with model.disable_adapter():
        for parameter in trained:
            parameter.requires_grad_(True)
        yield


def virtual_tokens(model: PreTrainedModel | PeftModel) -> int:
    """Positions that a learned prompt puts before every row; 0 without one."""
    config = model.active_peft_config if isinstance(model, PeftModel) else None
    return config.num_virtual_tokens if config is not None and config.is_prompt_learning else 0


def asks_first_token(model: PreTrainedModel | PeftModel) -> bool:
    """Whether a learned prompt predicts the first token of a row, as its last virtual token stands before it.

    PEFT puts a prompt before the row as inputs, and a prefix as keys and values of the attention, from which nothing is
    predicted (peft/peft_model.py, `PeftModelForCausalLM.forward`).
    """
    kinds = (PeftType.PREFIX_TUNING, PeftType.CARTRIDGE)
    return virtual_tokens(model) > 0 and model.active_peft_config.peft_type not in kinds


def of_this_process(batches: Sequence[list[int]]) -> Iterator[list[int]]:
    """The batches of this process; the last is repeated, as all processes of a sharded model must run each time."""
    count, number = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    for start in range(0, len(batches), count):
        yield batches[min(start + number, len(batches) - 1)]


def gathered_from_all(found: _Found) -> list[_Found]:
    """Return the value of each process, in the order of their ranks."""
    if not dist.is_initialized():
        return [found]
    of_all: list[_Found] = [found] * dist.get_world_size()
    dist.all_gather_object(of_all, found)
    return of_all
