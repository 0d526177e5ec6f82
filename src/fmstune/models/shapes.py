"""Counts and module names of the architecture, from its configuration on the meta device; reads no weight."""

import copy
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import (
    IA3Config,
    PeftConfig,
    PeftModel,
    PeftType,
    PrefixTuningConfig,
    PromptLearningConfig,
    PromptTuningConfig,
    PromptTuningInit,
    get_peft_model,
)
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
)
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from fmstune.checks.memory import quantised_bytes
from fmstune.checks.plan_inputs import Dimensions
from fmstune.config.job import Quantization
from fmstune.config.objective import SUPERVISED, Objective
from fmstune.errors import Problem, UserError, did_you_mean, raise_if_any
from fmstune.models.architecture import build_empty

ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer but the output layer; it is a string of its own and no list entry."""
_OF_THE_MODEL = ("token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules")
"""Fields of a prompt that PEFT fills in from the model when they are left out."""
REFUSALS = (
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    re.error,
)
"""How PEFT meets values that it does not expect."""


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


def parameters(model: torch.nn.Module, *, trained: bool = False) -> int:
    """Parameters of a model, all or the trained ones; tied ones count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def dimensions(
    config: PreTrainedConfig,
    peft_config: PeftConfig | None,
    quantization: Quantization | None = None,
    objective: Objective = SUPERVISED,
) -> Dimensions:
    """The numbers that a plan needs; the parameters are exact. No adapter is full tuning."""
    model = build_empty(config, objective)
    quantised = [module.get_parameter("weight") for _, module in _linears(model)] if quantization else []
    base = parameters(model)
    vocabulary = _vocabulary(model)
    if peft_config is not None:
        raise_if_any(target_problems(model, peft_config))
    adapted = model if peft_config is None else attach(model, peft_config)
    readers = list(_readers(adapted, adapter=peft_config is not None))
    text = config.get_text_config()
    heads, hidden_size = text.num_attention_heads, text.hidden_size
    names = [name for name, _ in model.named_modules()]
    return Dimensions(
        base_parameters=base,
        adapter_parameters=parameters(adapted) - base,
        trainable_parameters=parameters(adapted, trained=True),
        hidden_size=hidden_size,
        layers=text.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or hidden_size // heads,
        intermediate_size=_intermediate_size(text),
        vocabulary=vocabulary,
        tied=bool(text.tie_word_embeddings),
        max_positions=getattr(text, "max_position_embeddings", None),
        mlp_kept=_mlp_kept(model, names),
        rms_norm=any(type(module).__name__.endswith("RMSNorm") for module in model.modules()),
        dropout=any(getattr(text, name, 0.0) for name in ("attn_pdrop", "resid_pdrop", "attention_dropout")),
        linear_inputs=sum(inputs for _, inputs in set(readers)),
        linear_inputs_each=sum(inputs for _, inputs in readers),
        adapter_dropout=getattr(peft_config, "lora_dropout", 0.0) > 0,
        virtual_tokens=peft_config.num_virtual_tokens if isinstance(peft_config, PromptLearningConfig) else 0,
        prefix_tokens=peft_config.num_virtual_tokens if isinstance(peft_config, PrefixTuningConfig) else 0,
        quantised_parameters=sum(weight.numel() for weight in quantised),
        quantised_bytes=_quantised_bytes(quantised, quantization) if quantization else 0,
        dora_outputs=sum(_dora_outputs(adapted)) if getattr(peft_config, "use_dora", False) else 0,
    )


def _quantised_bytes(weights: Sequence[torch.nn.Parameter], quantization: Quantization) -> int:
    bits, double = 4 if quantization.load_in_4bit else 8, quantization.bnb_4bit_use_double_quant
    return sum(quantised_bytes(w.numel(), w.shape[0], bits=bits, double=double) for w in weights)


def attach(model: PreTrainedModel, peft_config: PeftConfig) -> torch.nn.Module:
    """The model with its adapter, on the meta device; an initialisation that reads weights or text is left out."""
    empty = copy.deepcopy(peft_config)
    if isinstance(empty, PromptTuningConfig):
        empty.prompt_tuning_init = PromptTuningInit.RANDOM
    elif hasattr(empty, "init_lora_weights"):
        empty.init_lora_weights = False
    for name in _OF_THE_MODEL if isinstance(empty, PromptLearningConfig) else ():
        setattr(empty, name, None)
    # PEFT's warnings come again, and to the user, when the real adapter is built
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        try:
            adapted: torch.nn.Module = get_peft_model(model, empty)
        except REFUSALS as error:
            raise UserError("peft", _refusal(type(peft_config).__name__, error)) from error
    raise_if_any(_prompt_problems(peft_config, empty))
    if isinstance(peft_config, PrefixTuningConfig):
        raise_if_any(_prefix_problems(adapted, model.config.model_type))
    raise_if_any(_pattern_key_problems(adapted, peft_config))
    return adapted


def _refusal(method: str, error: Exception) -> str:
    """PEFT's words, unless they are about the meta device, where a few methods cannot be built."""
    said = " ".join(str(error).split())[:300]
    if isinstance(error, NotImplementedError) or "meta tensor" in said:
        return f": {method} cannot be checked without the weights ({said}); choose another method"
    return f": {method} refuses these fields: {said}"


def _prompt_problems(given: PeftConfig, filled: PeftConfig) -> Iterator[Problem]:
    """What a prompt says about the model and PEFT finds otherwise."""
    for name in _OF_THE_MODEL if isinstance(given, PromptLearningConfig) else ():
        value, found = getattr(given, name), getattr(filled, name)
        if value not in (None, found):
            yield Problem(f"peft.{name}", f"is {value}, and the model has {found}; leave it out")


def _prefix_problems(adapted: torch.nn.Module, model_type: str) -> Iterator[Problem]:
    """Keys and values that do not fit the cache, tried without numbers: Falcon's one head, Mamba's none at all."""
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    try:
        with torch.no_grad():
            adapted(input_ids=ids, attention_mask=torch.ones_like(ids))
    except RuntimeError as error:
        # what else a pass on the meta device cannot do says nothing about the prefix
        if " must match " in str(error) or " broadcast " in str(error):
            yield Problem(
                "peft",
                f": the keys and values that PrefixTuningConfig makes do not fit the cache of {model_type}; "
                "choose another method, such as peft=p_tuning",
            )


def _pattern_key_problems(adapted: torch.nn.Module, peft_config: PeftConfig) -> Iterator[Problem]:
    """Ranks or scales of modules that are not adapted; PEFT is silent about them."""
    for field in ("rank_pattern", "alpha_pattern"):
        for key in getattr(peft_config, field, None) or ():
            # as peft.utils.other.get_pattern_key does it
            expression = re.compile(rf"(.*\.)?({key})$")
            if not any(map(expression.match, _adapted_names(adapted))):
                yield Problem(f"peft.{field}", f": {key!r} matches no module that is adapted; see peft.target_modules")


def _adapted_names(adapted: torch.nn.Module) -> list[str]:
    base = adapted.get_base_model() if isinstance(adapted, PeftModel) else adapted
    return [name for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)]


def _readers(model: torch.nn.Module, *, adapter: bool) -> Iterator[tuple[str, int]]:
    """(parent, inputs) of every module that is trained and so keeps its input; siblings share one of a width."""
    head = _head(model) if isinstance(model, PreTrainedModel) else None
    for name, module in model.named_modules():
        reads = isinstance(module, BaseTunerLayer) if adapter else isinstance(module, torch.nn.Linear | Conv1D)
        if isinstance(module, IA3Layer) and not module.is_feedforward:
            # what is scaled is its output
            yield name, _matrix(module.get_base_layer())[1]
        elif reads and module is not head:
            yield name.rpartition(".")[0], getattr(module, "in_features", None) or _inputs(module)


def _dora_outputs(model: torch.nn.Module) -> Iterator[int]:
    """Outputs of every module that DoRA adapts."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            yield module.out_features


def _inputs(module: torch.nn.Module) -> int:
    """Numbers a position that the module reads; LN tuning adapts norms, whose weight is no matrix."""
    weight = module.get_parameter("weight")
    return weight.shape[0] if weight.dim() == 1 else _matrix(module)[0]


def _head(model: PreTrainedModel) -> torch.nn.Module | None:
    head: torch.nn.Module | None = model.get_output_embeddings()
    return head


def _vocabulary(model: PreTrainedModel) -> int:
    embedding: torch.nn.Module = model.get_input_embeddings()
    return embedding.get_parameter("weight").shape[0]


def _intermediate_size(config: PreTrainedConfig) -> int:
    """Width of the MLP; architectures that have no value for it take four times the hidden size."""
    names = ("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim")
    given = [getattr(config, name, None) for name in names]
    return int(next((width for width in given if width), 4 * config.hidden_size))


def _mlp_kept(model: PreTrainedModel, names: Collection[str]) -> int:
    """Tensors that the activation function keeps: silu(gate) * up keeps 3, a fused function its input alone."""
    if any(name.endswith(("gate_proj", "gate_up_proj")) for name in names):
        return 3
    # gelu_new is written out in Python, step by step
    return 4 if any(isinstance(module, NewGELUActivation) for module in model.modules()) else 1


def targets(model: PreTrainedModel) -> list[Target]:
    """What an adapter can target, in the model's order; the output layer is left out, as in `all-linear`."""
    found: dict[str, list[torch.nn.Module]] = {}
    for name, module in _linears(model):
        found.setdefault(".".join(name.split(".")[-2:]), []).append(module)
    groups: dict[str, list[torch.nn.Module]] = {}
    for ending, modules in found.items():
        last = ending.rpartition(".")[2]
        same = [other for name, other in found.items() if name.rpartition(".")[2] == last]
        uniform = len({_matrix(module) for others in same for module in others}) == 1
        groups.setdefault(last if uniform else ending, []).extend(modules)
    return [
        Target(name, type(modules[0]).__name__, len(modules), *_matrix(modules[0])) for name, modules in groups.items()
    ]


def _linears(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module]]:
    head = _head(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head:
            yield name, module


def _matrix(module: torch.nn.Module) -> tuple[int, int]:
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
    if any(module is _head(model) for module in matched.values()):
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
