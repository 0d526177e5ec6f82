"""Modules that an adapter can target, by the names that PEFT takes, and problems with the names that were asked."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import (
    IA3Config,
    PeftConfig,
    PeftType,
)
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
)
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fmstune.errors import Problem, did_you_mean

ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer but the output layer; it is a string of its own and no list entry."""


@dataclass(frozen=True)
class Target:
    """Modules that an adapter can target under one name."""

    name: str
    """Ending of the module names: the last part, or the last two where the last alone has several shapes."""
    kind: str
    """`Linear` or `Conv1D`."""
    count: int
    inputs: int
    outputs: int

    def lora_parameters(self, r: int) -> int:
        """Parameters of a LoRA of rank `r` on all of them (Hu et al. 2021, arXiv:2106.09685, section 4.1)."""
        return self.count * r * (self.inputs + self.outputs)


def targets(model: PreTrainedModel) -> list[Target]:
    """What an adapter can target, in the model's order; the output layer is left out, as in `all-linear`."""
    found: dict[str, list[torch.nn.Module]] = {}
    for name, module in linear_layers(model):
        found.setdefault(".".join(name.split(".")[-2:]), []).append(module)
    groups: dict[str, list[torch.nn.Module]] = {}
    for ending, modules in found.items():
        last = ending.rpartition(".")[2]
        same = [other for name, other in found.items() if name.rpartition(".")[2] == last]
        uniform = len({matrix_shape(module) for others in same for module in others}) == 1
        groups.setdefault(last if uniform else ending, []).extend(modules)
    return [
        Target(name, type(modules[0]).__name__, len(modules), *matrix_shape(modules[0]))
        for name, modules in groups.items()
    ]


def linear_layers(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module]]:
    head = output_layer(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head:
            yield name, module


def matrix_shape(module: torch.nn.Module) -> tuple[int, int]:
    """(inputs, outputs); Conv1D keeps its matrix the other way round than Linear."""
    rows, columns = module.get_parameter("weight").shape
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)


def target_problems(model: PreTrainedModel, peft_config: PeftConfig) -> Iterator[Problem]:
    """What the adapter asks for and the model does not have; PEFT is silent when one of two names matches."""
    asked = getattr(peft_config, "target_modules", None)
    if isinstance(asked, str):
        if asked.lower() != ALL_LINEAR:
            yield from _pattern_problems(model, asked)
    elif asked is not None:
        for name in sorted(asked):
            yield from _name_problems(model, name)
    elif hasattr(peft_config, "target_modules") and not getattr(peft_config, "target_parameters", None):
        defaults = _default_targets(peft_config)
        if defaults is not None and model.config.model_type not in defaults:
            # IA3 would scale the inputs of all of them, or the outputs
            every = "" if isinstance(peft_config, IA3Config) else f"{ALL_LINEAR} or to "
            yield Problem(
                "peft.target_modules",
                f": PEFT has no default for {model.config.model_type}; set it to {every}some of {_available(model)}",
            )
    if isinstance(peft_config, IA3Config):
        yield from _feedforward_problems(model, peft_config)
    for name in sorted(getattr(peft_config, "modules_to_save", None) or ()):
        if not any(_ends_with(module, name) for module, _ in model.named_modules()):
            yield Problem("peft.modules_to_save", f": no module is named {name!r}")
    for name in sorted(getattr(peft_config, "target_parameters", None) or ()):
        if not any(_ends_with(parameter, name) for parameter, _ in model.named_parameters()):
            yield Problem(
                "peft.target_parameters", f": no parameter is named {name!r}; the names end like q_proj.weight"
            )


def _default_targets(peft_config: PeftConfig) -> Collection[str] | None:
    """Architectures that PEFT knows targets for; None where the method has no such list."""
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[PeftType(peft_config.peft_type)]
    known: Collection[str] | None = getattr(tuner, "target_module_mapping", None)
    return TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING if isinstance(peft_config, IA3Config) else known


def _feedforward_problems(model: PreTrainedModel, peft_config: IA3Config) -> Iterator[Problem]:
    """Names of which IA3 scales the input and not the output; PEFT is silent about those that match nothing."""
    asked = peft_config.feedforward_modules
    if asked is None and model.config.model_type not in TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING:
        yield Problem(
            "peft.feedforward_modules",
            f": PEFT has no default for {model.config.model_type}; name the modules of "
            "peft.target_modules that are scaled at their input (the last linear layer of the MLP), or [] for none",
        )
    for name in sorted(asked or ()) if not isinstance(asked, str) else ():
        if not any(_ends_with(module, name) for module, _ in model.named_modules()):
            yield Problem(
                "peft.feedforward_modules", f": no module is named {name!r}; available are {_available(model)}"
            )


def _pattern_problems(model: PreTrainedModel, pattern: str) -> Iterator[Problem]:
    """A string is a regular expression for the whole module name."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        yield Problem("peft.target_modules", f": {pattern!r} is not a regular expression: {error}")
        return
    matched = {name: module for name, module in model.named_modules() if expression.fullmatch(name)}
    if not matched:
        hint = " (a string is a regular expression for the whole name; write a list to match endings)"
        yield Problem(
            "peft.target_modules", f": {pattern!r} matches no module{hint}; available are {_available(model)}"
        )
    yield from _match_problems(model, pattern, matched)


def _name_problems(model: PreTrainedModel, name: str) -> Iterator[Problem]:
    """A list entry is a module name or its ending."""
    if name.lower() == ALL_LINEAR:
        yield Problem(
            "peft.target_modules", f": {ALL_LINEAR} works as a string, not in a list; write it without brackets"
        )
        return
    matched = {module_name: module for module_name, module in model.named_modules() if _ends_with(module_name, name)}
    if not matched:
        hint = did_you_mean(name, (target.name for target in targets(model)))
        yield Problem("peft.target_modules", f": no module is named {name!r}{hint}; available are {_available(model)}")
    yield from _match_problems(model, name, matched)


def _match_problems(model: PreTrainedModel, asked: str, matched: dict[str, torch.nn.Module]) -> Iterator[Problem]:
    if any(module is output_layer(model) for module in matched.values()):
        yield Problem(
            "peft.target_modules",
            f": {asked!r} matches the output layer, where TRL's fused loss reads the base "
            "weight alone and would never train the adapter; leave it out, or name it in peft.modules_to_save",
        )
    bare = sorted(
        {type(m).__name__ for m in matched.values() if "weight" not in dict(m.named_parameters(recurse=False))}
    )
    if bare:
        yield Problem(
            "peft.target_modules",
            f": {asked!r} matches {', '.join(bare)}, without a weight of its own to adapt; "
            f"available are {_available(model)}",
        )


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _available(model: PreTrainedModel) -> str:
    return ", ".join(target.name for target in targets(model))


def render_modules(model: PreTrainedModel, lora_targets: Any = None) -> str:
    """What an adapter can target, as a table; `*` marks what LoRA takes where `target_modules` is null."""
    default = lora_targets or TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type, ())
    lines = [f"  {'module':<24}{'kind':<8}{'count':>6}{'in':>8}{'out':>8}{'LoRA r=8':>14}"]
    found = targets(model)
    for t in found:
        mark = "*" if _is_default(t.name, default) else " "
        shape = f"{t.kind:<8}{t.count:>6}{t.inputs:>8}{t.outputs:>8}{t.lora_parameters(8):>14,}"
        lines.append(f"{mark} {t.name:<24}{shape}")
    total = sum(t.lora_parameters(8) for t in found)
    modules = sum(t.count for t in found)
    lines.append(f"* {model.config.model_type}'s default, taken where peft.target_modules is null")
    lines.append(
        f"peft.target_modules={ALL_LINEAR} takes all of these ({modules} modules, {total:,} parameters with r=8), "
        "without the output layer"
    )
    return "\n".join(lines)


def _is_default(name: str, default: str | Collection[str]) -> bool:
    if isinstance(default, str):
        return default == ALL_LINEAR or bool(re.fullmatch(default, name))
    return any(_ends_with(name, ending) or _ends_with(ending, name) for ending in default)


def output_layer(model: PreTrainedModel) -> torch.nn.Module | None:
    head: torch.nn.Module | None = model.get_output_embeddings()
    return head
