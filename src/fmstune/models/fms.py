"""Llama and GPTBigCode with the blocks of ibm-fms (foundation-model-stack), under transformers' names.

transformers gives what is around the blocks: the loop over them, the masks, the cache, loading and saving. Norms,
attention, rotary positions and MLP are ibm-fms' own code. Only their modules are registered under the names that
transformers has for them, so that weights, adapters and checkpoints are those of transformers, and PEFT, FSDP and TRL
find what they look for. docs/decisions/0020-fms-backend.md says why not ibm-fms' own adapter.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import transformers
from fms.models.gpt_bigcode import GPTBigCodeBlock as FmsBigCodeBlock
from fms.models.gpt_bigcode import GPTBigCodeConfig as FmsBigCodeConfig
from fms.models.llama import LLaMABlock, LLaMAConfig
from fms.modules.attention import FusedQKV, MultiHeadAttention, UnfusedQKV, get_attention_type, register_attention_op
from fms.modules.feedforward import FeedForwardBlock, GatedLinearUnit
from fms.modules.layernorm import LayerNormParameterized
from fms.modules.positions import RotaryEmbedding
from torch import Tensor, nn
from transformers import Cache, GPTBigCodeConfig, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from fmstune.checks.fms import architecture_problems
from fmstune.errors import raise_if_any


def fms_model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class to load a model of this configuration with; raises UserError where ibm-fms has no such blocks."""
    raise_if_any(architecture_problems(config))
    return {"llama": LlamaForCausalLM, "gpt_bigcode": GPTBigCodeForCausalLM}[config.model_type]


class LlamaForCausalLM(transformers.LlamaForCausalLM):
    """Its name is what `save_pretrained` writes into config.json: the result is a plain Llama."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        blocks, rotary = _llama(config), _rotary(config)
        self.model.layers = nn.ModuleList(
            LlamaDecoderLayer(blocks, rotary, number, config.attention_dropout)
            for number in range(config.num_hidden_layers)
        )
        self.model.norm = LayerNormParameterized(
            config.hidden_size, eps=config.rms_norm_eps, use_high_precision_pow=True
        )


class GPTBigCodeForCausalLM(transformers.GPTBigCodeForCausalLM):
    """The same for GPTBigCode."""

    def __init__(self, config: GPTBigCodeConfig) -> None:
        super().__init__(config)
        blocks = _gpt_bigcode(config)
        self.transformer.h = nn.ModuleList(
            GPTBigCodeBlock(blocks, number, config.attn_pdrop) for number in range(config.num_hidden_layers)
        )


def _llama(config: LlamaConfig) -> LLaMAConfig:
    """What ibm-fms needs to know to build a block; its own reading of a configuration leaves values out."""
    return LLaMAConfig(
        emb_dim=config.hidden_size,
        nheads=config.num_attention_heads,
        kvheads=config.num_key_value_heads,
        nlayers=config.num_hidden_layers,
        norm_eps=config.rms_norm_eps,
        hidden_grow_factor=_growth(config.intermediate_size, config.hidden_size),
        multiple_of=1,
        activation_fn=config.hidden_act,
        attn_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
        fused_weights=False,
    )


def _gpt_bigcode(config: GPTBigCodeConfig) -> FmsBigCodeConfig:
    width = 4 * config.hidden_size if config.n_inner is None else config.n_inner
    return FmsBigCodeConfig(
        emb_dim=config.hidden_size,
        nheads=config.num_attention_heads,
        nlayers=config.num_hidden_layers,
        ln_eps=config.layer_norm_epsilon,
        hidden_grow_factor=_growth(width, config.hidden_size),
        activation_fn=config.activation_function,
        p_dropout=config.resid_pdrop,
        multiquery_attn=True,
    )


def _growth(width: int, hidden_size: int) -> float:
    """A factor that comes to exactly this width: ibm-fms cuts the product off, which rounding may leave just below."""
    return (width + 0.5) / hidden_size


def _rotary(config: LlamaConfig) -> RotaryEmbedding:
    rope = dict(config.rope_parameters)
    return HalvesRotary(
        dim=config.hidden_size // config.num_attention_heads,
        ratio=rope["rope_theta"],
        max_seq_len=config.max_position_embeddings,
        scaling=rope if rope["rope_type"] != "default" else {},
    )


class HalvesRotary(RotaryEmbedding):
    """ibm-fms' rotation for weights in transformers' order.

    ibm-fms turns neighbours of a head together, transformers the two halves. ibm-fms moves the rows of the weights when
    it loads them; here the numbers are moved, so that weights and adapters stay those of transformers.
    """

    def adjusted_qk(self, q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Queries and keys, rotated, in the order in which they came."""
        rotated: tuple[Tensor, Tensor] = super().adjusted_qk(_paired(q), _paired(k), *args, **kwargs)
        return _halved(rotated[0]), _halved(rotated[1])


def _paired(heads: Tensor) -> Tensor:
    return heads.view(*heads.shape[:-1], 2, -1).transpose(-1, -2).flatten(-2)


def _halved(heads: Tensor) -> Tensor:
    return heads.view(*heads.shape[:-1], -1, 2).transpose(-1, -2).flatten(-2)


def _under(name: str) -> property:
    """Where ibm-fms' code finds a module that has transformers' name, also when PEFT has put another in its place."""
    return property(lambda module: getattr(module, name))


def _register(module: nn.Module, names: Mapping[str, str]) -> None:
    """Give modules transformers' names, in transformers' order: an optimizer's state goes by it."""
    found = {here: module.get_submodule(theirs) for theirs, here in names.items()}
    for theirs in dict.fromkeys(name.partition(".")[0] for name in names):
        delattr(module, theirs)
    for here, child in found.items():
        module.add_module(here, child)


class LlamaAttention(MultiHeadAttention):
    """ibm-fms' attention, with the three projections beside each other."""

    query, key, value, dense = _under("q_proj"), _under("k_proj"), _under("v_proj"), _under("o_proj")
    in_proj = UnfusedQKV.forward
    NAMES: ClassVar = {"in_proj.query": "q_proj", "in_proj.key": "k_proj", "in_proj.value": "v_proj", "dense": "o_proj"}


class LlamaMLP(GatedLinearUnit):
    """ibm-fms' gated MLP."""

    wg, w1, w2 = _under("gate_proj"), _under("up_proj"), _under("down_proj")
    NAMES: ClassVar = {"wg": "gate_proj", "w1": "up_proj", "w2": "down_proj"}


class GPTBigCodeAttention(MultiHeadAttention):
    """ibm-fms' attention with one matrix for queries, keys and values, as transformers has it too."""

    qkv_fused, dense = _under("c_attn"), _under("c_proj")
    in_proj = FusedQKV.forward
    NAMES: ClassVar = {"in_proj.qkv_fused": "c_attn", "dense": "c_proj"}


class GPTBigCodeMLP(FeedForwardBlock):
    """ibm-fms' MLP."""

    w1, w2 = _under("c_fc"), _under("c_proj")
    NAMES: ClassVar = {"w1": "c_fc", "w2": "c_proj"}


class LlamaDecoderLayer(GradientCheckpointingLayer, LLaMABlock):
    """ibm-fms' block, called as transformers' is; FSDP wraps it by this name."""

    attn, ff_sub_layer = _under("self_attn"), _under("mlp")
    ln, ff_ln = _under("input_layernorm"), _under("post_attention_layernorm")
    NAMES: ClassVar = {
        "attn": "self_attn",
        "ff_sub_layer": "mlp",
        "ln": "input_layernorm",
        "ff_ln": "post_attention_layernorm",
    }

    def __init__(self, config: LLaMAConfig, rotary: RotaryEmbedding, number: int, attention_dropout: float) -> None:
        super().__init__(config, rotary)
        self.number = number
        _register(self, self.NAMES)
        _become(self.self_attn, LlamaAttention)
        _become(self.mlp, LlamaMLP)
        self.self_attn.p_dropout = attention_dropout

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        **_others: Any,
    ) -> Tensor:
        """The hidden states after this block."""
        attention = {"attn_name": _ATTENTION, "mask": attention_mask, "cache": past_key_values, "layer": self.number}
        states: Tensor
        states, _ = LLaMABlock.forward(self, hidden_states, position_ids=position_ids, use_cache=True, **attention)
        return states


class GPTBigCodeBlock(GradientCheckpointingLayer, FmsBigCodeBlock):
    """The same of GPTBigCode."""

    ln, ff_ln, ff_sub_layer = _under("ln_1"), _under("ln_2"), _under("mlp")
    NAMES: ClassVar = {"ln": "ln_1", "attn": "attn", "ff_ln": "ln_2", "ff_sub_layer": "mlp"}

    def __init__(self, config: FmsBigCodeConfig, number: int, attention_dropout: float) -> None:
        super().__init__(config)
        self.number = number
        _register(self, self.NAMES)
        self.attn.splits = self.attn.in_proj.splits
        _become(self.attn, GPTBigCodeAttention)
        _become(self.mlp, GPTBigCodeMLP)
        # ibm-fms has one probability for all, and drops out within the MLP too, which the model was not trained with
        self.attn.p_dropout, self.mlp.p_dropout = attention_dropout, 0.0

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        layer_past: Cache | None = None,
        attention_mask: Tensor | None = None,
        **_others: Any,
    ) -> Tensor:
        """The hidden states after this block."""
        attention = {"attn_name": _ATTENTION, "mask": attention_mask, "cache": layer_past, "layer": self.number}
        states: Tensor
        states, _ = FmsBigCodeBlock.forward(self, hidden_states, use_cache=True, **attention)
        return states


def _become(module: nn.Module, cls: Any) -> None:
    """Let a module of ibm-fms find its parts under transformers' names."""
    _register(module, cls.NAMES)
    module.__class__ = cls


def _store(
    keys: Tensor, values: Tensor, key_cache: None, value_cache: None, *, cache: Cache | None, layer: int, **_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys and values with those of the positions before, in transformers' cache.

    Without a cache too it is what tells heads from positions: ibm-fms guesses by their numbers, and takes the one for
    the other in a row of as many positions as there are heads (fms 1.13, modules/attention.py:228).
    """
    keys, values = keys.transpose(2, 1), values.transpose(2, 1)
    if cache is not None:
        keys, values = cache.update(keys, values, layer)
    return keys, values, keys, values


def _compute(*tensors_and_sizes: Any, cache: Cache | None, layer: int, **attention: Any) -> Tensor:
    """ibm-fms' own attention, torch's SDPA."""
    computed: Tensor = get_attention_type(attn_name="sdpa_causal")["compute_prefill"](*tensors_and_sizes, **attention)
    return computed


_ATTENTION = "fmstune"
register_attention_op(_ATTENTION, _store, _compute)
