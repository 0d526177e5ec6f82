"""Counts and module names of the architecture, from its configuration on the meta device; reads no weight."""

import copy
import re
import warnings
from collections.abc import Iterator, Sequence

import torch
from peft import PeftConfig, PeftModel, PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig, get_peft_model
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from fmstune.checks.memory import quantised_bytes
from fmstune.checks.plan_inputs import Dimensions
from fmstune.config.job import Quantization
from fmstune.config.upstream_fields import fields_of
from fmstune.errors import Problem, UserError, one_line, raise_if_any
from fmstune.models.adapter_targets import linear_layers, matrix_shape, target_problems
from fmstune.models.experts import Experts, find_experts, missed_experts
from fmstune.models.flop_count.layers import count_model_flops

_OF_THE_MODEL = ("token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules")
"""Fields of a prompt that PEFT fills in from the model when they are left out."""
REFUSALS = (AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError, re.error)
"""What PEFT raises for values that it does not expect."""


def parameters(model: torch.nn.Module, *, trained: bool = False) -> int:
    """Parameters of a model, all or the trained ones; tied ones count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def dimensions(
    model: PreTrainedModel, peft_config: PeftConfig | None, quantization: Quantization | None = None
) -> Dimensions:
    """The numbers that a plan needs; the parameters are exact. No adapter is full tuning.

    The model is one of `build_empty`, and holds the adapter afterwards.
    """
    quantised = [module.get_parameter("weight") for _, module in linear_layers(model)] if quantization else []
    kept = quantization or Quantization()
    bits, double = 4 if kept.load_in_4bit else 8, kept.bnb_4bit_use_double_quant
    base, experts = parameters(model), find_experts(model)
    vocabulary: int = model.get_input_embeddings().weight.shape[0]
    if peft_config is not None:
        raise_if_any(target_problems(model, peft_config))
    adapted = model if peft_config is None else attach(model, peft_config)
    readers = list(_readers(adapted, adapter=peft_config is not None))
    dora = [m for m in adapted.modules() if isinstance(m, LoraLayer) and getattr(peft_config, "use_dora", False)]
    text = model.config.get_text_config()
    # 0 for a model with a state and no attention, such as Mamba
    heads, hidden_size = getattr(text, "num_attention_heads", 0), text.hidden_size
    return Dimensions(
        base_parameters=base,
        adapter_parameters=parameters(adapted) - base,
        trainable_parameters=parameters(adapted, trained=True),
        hidden_size=hidden_size,
        layers=text.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or hidden_size // max(heads, 1),
        intermediate_size=_mlp_width(text, experts),
        vocabulary=vocabulary,
        tied=bool(text.tie_word_embeddings),
        max_positions=getattr(text, "max_position_embeddings", None),
        mlp_kept=_mlp_kept(model),
        rms_norm=any(type(module).__name__.endswith("RMSNorm") for module in model.modules()),
        dropout=any(getattr(text, name, 0.0) for name in ("attn_pdrop", "resid_pdrop", "attention_dropout")),
        linear_inputs=sum(inputs for _, inputs in set(readers)),
        linear_inputs_each=sum(inputs for _, inputs in readers),
        adapter_dropout=getattr(peft_config, "lora_dropout", 0.0) > 0,
        virtual_tokens=peft_config.num_virtual_tokens if isinstance(peft_config, PromptLearningConfig) else 0,
        prefix_tokens=peft_config.num_virtual_tokens if isinstance(peft_config, PrefixTuningConfig) else 0,
        quantised_parameters=sum(weight.numel() for weight in quantised),
        quantised_bytes=sum(quantised_bytes(w.numel(), w.shape[0], bits=bits, double=double) for w in quantised),
        dora_outputs=sum(layer.out_features for layer in dora),
        idle_parameters=experts.idle if experts else 0,
        missed_experts=missed_experts(experts, adapted, peft_config),
        flops=count_model_flops(adapted, model.config, experts),
    )


def unset_fields(config: PeftConfig) -> list[str]:
    """The fields of a method that are null and may not be; PEFT finds that out when it computes with them."""
    fields = fields_of(f"peft.{type(config).__name__}")
    return [
        f"peft.{name}"
        for name, field in fields.items()
        if not field.optional and name not in _OF_THE_MODEL and getattr(config, name) is None
    ]


def attach(model: PreTrainedModel, peft_config: PeftConfig) -> torch.nn.Module:
    """The model with its adapter, on the meta device; an initialisation that reads weights or text is left out."""
    empty = copy.deepcopy(peft_config)
    if isinstance(empty, PromptTuningConfig):
        empty.prompt_tuning_init = "RANDOM"
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
            method, said = type(peft_config).__name__, one_line(error)
            text = f": {method} refuses these fields: {said}"
            if "NoneType" in said and (unset := unset_fields(peft_config)):
                text = f": {method} misses a value: one of {', '.join(unset)}, which are null; set it"
            if "ParamWrapper" in said and "lora_dropout" in said:
                reached = "reaches the experts of this mixture, where PEFT cannot drop out"
                raise UserError("peft.lora_dropout", f"must be 0: peft.target_modules {reached}") from error
            # a few methods cannot be built on the meta device
            if isinstance(error, NotImplementedError) or "meta tensor" in said:
                text = f": {method} cannot be checked without the weights ({said}); choose another method"
            raise UserError("peft", text) from error
    raise_if_any(_prompt_problems(peft_config, empty))
    if isinstance(peft_config, PrefixTuningConfig):
        raise_if_any(_prefix_problems(adapted, model.config.model_type))
    raise_if_any([*_pattern_key_problems(adapted, peft_config), *_embedding_problems(adapted)])
    return adapted


def _embedding_problems(adapted: torch.nn.Module) -> Iterator[Problem]:
    """Adapters on the embedding that could not be trained with TRL's loss, or be merged to what they are."""
    if not isinstance(adapted, PeftModel):
        return
    table, head = adapted.get_input_embeddings(), adapted.get_output_embeddings()
    tied = adapted.config.get_text_config().tie_word_embeddings
    instead = "name it in peft.modules_to_save with peft.ensure_weight_tying=true, or leave it out"
    if tied and isinstance(table, BaseTunerLayer) and not isinstance(head, ModulesToSaveWrapper):
        text = ": the embedding of this model is its output layer, too, and an adapter of one is none of the other"
        yield Problem("peft.target_modules", f"{text}; {instead}")
    rows = [module for module in adapted.modules() if isinstance(module, TrainableTokensWrapper)]
    if any(isinstance(module.token_adapter.get_base_layer(), ModulesToSaveWrapper) for module in rows):
        text = ": peft.modules_to_save trains all rows of the same matrix; leave one of the two out"
        yield Problem("peft.trainable_token_indices", text)
    elif tied and rows and table.weight is not head.weight and _rows_of(table) != _rows_of(head):
        text = ": the embedding of this model is its output layer, too; give a list of ids, which is for both"
        yield Problem("peft.trainable_token_indices", text)


def _rows_of(module: torch.nn.Module) -> list[int] | None:
    """The rows that are trained of an embedding or output layer; None where none are alone."""
    indices = module.token_adapter.token_indices if isinstance(module, TrainableTokensWrapper) else {}
    return next((list(rows) for rows in indices.values()), None)


def _prompt_problems(given: PeftConfig, filled: PeftConfig) -> Iterator[Problem]:
    """Values of a prompt that contradict the model."""
    for name in _OF_THE_MODEL if isinstance(given, PromptLearningConfig) else ():
        value, found = getattr(given, name), getattr(filled, name)
        if value not in (None, found):
            yield Problem(f"peft.{name}", f"is {value}, and the model has {found}; leave it out")


def _prefix_problems(adapted: torch.nn.Module, model_type: str) -> Iterator[Problem]:
    """Keys and values that do not fit the cache, tried without numbers: Falcon's one head, Mamba's none at all."""
    ids = torch.ones(1, 2, dtype=torch.long, device="meta")
    try:
        with torch.no_grad():
            adapted(input_ids=ids, attention_mask=ids)
    except RuntimeError as error:
        # other errors of a pass on the meta device say nothing about the prefix
        if " must match " in str(error) or " broadcast " in str(error):
            text = f": the keys and values that PrefixTuningConfig makes do not fit the cache of {model_type}"
            yield Problem("peft", f"{text}; choose another method, such as peft=p_tuning")


def _pattern_key_problems(adapted: torch.nn.Module, peft_config: PeftConfig) -> Iterator[Problem]:
    """Ranks or scales of modules that are not adapted; PEFT is silent about them."""
    base = adapted.get_base_model() if isinstance(adapted, PeftModel) else adapted
    names = [name for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)]
    for field in ("rank_pattern", "alpha_pattern"):
        for key in getattr(peft_config, field, None) or ():
            # as peft.utils.other.get_pattern_key does it
            if not any(re.match(rf"(.*\.)?({key})$", name) for name in names):
                yield Problem(f"peft.{field}", f": {key!r} matches no module that is adapted; see peft.target_modules")


def _readers(model: torch.nn.Module, *, adapter: bool) -> Iterator[tuple[str, int]]:
    """(parent, inputs) of every module that is trained and so keeps its input; siblings share one of a width."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    for name, module in model.named_modules():
        reads = isinstance(module, BaseTunerLayer) if adapter else isinstance(module, torch.nn.Linear | Conv1D)
        if isinstance(module, IA3Layer) and not module.is_feedforward:
            # its output is scaled
            yield name, matrix_shape(module.get_base_layer())[1]
        elif reads and module is not head:
            inputs: int | None = getattr(module, "in_features", None)
            if not inputs:
                weight = module.get_parameter("weight")
                # LN tuning adapts norms, whose weight is not a matrix
                inputs = weight.shape[0] if weight.dim() == 1 else matrix_shape(module)[0]
            yield name.rpartition(".")[0], inputs


def _mlp_width(text: PreTrainedConfig, experts: Experts | None) -> int:
    """Width of the MLP that computes one token, in a mixture of all of its experts together."""
    names = (["moe_intermediate_size"] if experts else []) + [
        "intermediate_size",
        "n_inner",
        "ffn_hidden_size",
        "ffn_dim",
    ]
    # architectures without a width of the MLP take four times the hidden size
    width = next((_widest(value) for name in names if (value := getattr(text, name, None))), 4 * text.hidden_size)
    shared = getattr(text, "shared_intermediate_size", None) or 0
    return width * experts.per_token + shared if experts else shared or width


def _widest(width: int | Sequence[int]) -> int:
    """The width of an MLP; of a width for each layer, the largest, which the plan takes for all."""
    return int(max(width)) if isinstance(width, Sequence) else int(width)


def _mlp_kept(model: PreTrainedModel) -> int:
    """Tensors that the activation function keeps: silu(gate) * up keeps 3, a fused function its input alone."""
    # fused in experts, where they are parameters, and in Granite's shared MLP (input_linear)
    if any(re.search(r"\.(gate_proj|gate_up_proj|input_linear)\b", name) for name, _ in model.named_parameters()):
        return 3
    # gelu_new is written out in Python, step by step
    return 4 if any(isinstance(module, NewGELUActivation) for module in model.modules()) else 1
