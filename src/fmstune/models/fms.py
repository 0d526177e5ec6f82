"""Llama and GPTBigCode with the blocks of ibm-fms (foundation-model-stack), under transformers' names.

Norms, attention, rotary positions and MLP are code of ibm-fms; the loop over the blocks, masks, cache, loading and
saving are code of transformers. The modules have transformers' names, so PEFT, FSDP, TRL, checkpoints and adapters
work as with transformers. docs/decisions/0020-fms-backend.md says why not ibm-fms' own adapter.
"""

from collections.abc import Mapping
from operator import attrgetter
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
        # ibm-fms' own conversion leaves values out
        blocks = LLaMAConfig(
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
        rope = dict(config.rope_parameters)
        rotary = HalvesRotary(
            dim=config.hidden_size // config.num_attention_heads,
            ratio=rope["rope_theta"],
            max_seq_len=config.max_position_embeddings,
            scaling=rope if rope["rope_type"] != "default" else {},
        )
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
        width = 4 * config.hidden_size if config.n_inner is None else config.n_inner
        blocks = FmsBigCodeConfig(
            emb_dim=config.hidden_size,
            nheads=config.num_attention_heads,
            nlayers=config.num_hidden_layers,
            ln_eps=config.layer_norm_epsilon,
            hidden_grow_factor=_growth(width, config.hidden_size),
            activation_fn=config.activation_function,
            p_dropout=config.resid_pdrop,
            multiquery_attn=True,
        )
        self.transformer.h = nn.ModuleList(
            GPTBigCodeBlock(blocks, number, config.attn_pdrop) for number in range(config.num_hidden_layers)
        )


def _growth(width: int, hidden_size: int) -> float:
    """A factor that gives exactly this width: ibm-fms truncates the product, which rounding may leave just below."""
    return (width + 0.5) / hidden_size


class HalvesRotary(RotaryEmbedding):
    """ibm-fms' rotation, which pairs neighbours, for weights in transformers' order, which pairs halves of a head."""

    def adjusted_qk(self, q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Queries and keys, rotated, in the order in which they came."""
        q, k = super().adjusted_qk(_transposed(q, 2, -1), _transposed(k, 2, -1), *args, **kwargs)
        return _transposed(q, -1, 2), _transposed(k, -1, 2)


def _transposed(heads: Tensor, rows: int, columns: int) -> Tensor:
    return heads.view(*heads.shape[:-1], rows, columns).transpose(-1, -2).flatten(-2)


class Renamed:
    """A module of ibm-fms whose parts have transformers' names, and are still found by those of ibm-fms."""

    NAMES: ClassVar[Mapping[str, str]]

    def __init_subclass__(cls) -> None:
        for theirs, here in cls.NAMES.items():
            if theirs != here:
                # looked up each time: PEFT may have replaced the module
                setattr(cls, theirs.rpartition(".")[2], property(attrgetter(here)))

    @classmethod
    def rename(cls, module: Any) -> None:
        """Give the parts their names, in transformers' order, which an optimizer's state depends on."""
        found = {here: module.get_submodule(theirs) for theirs, here in cls.NAMES.items()}
        for theirs in dict.fromkeys(name.partition(".")[0] for name in cls.NAMES):
            delattr(module, theirs)
        for here, child in found.items():
            module.add_module(here, child)
        module.__class__ = cls


class LlamaAttention(Renamed, MultiHeadAttention):
    """ibm-fms' attention, with three separate projections."""

    in_proj = UnfusedQKV.forward
    NAMES: ClassVar = {"in_proj.query": "q_proj", "in_proj.key": "k_proj", "in_proj.value": "v_proj", "dense": "o_proj"}


class LlamaMLP(Renamed, GatedLinearUnit):
    """ibm-fms' gated MLP."""

    NAMES: ClassVar = {"wg": "gate_proj", "w1": "up_proj", "w2": "down_proj"}


class GPTBigCodeAttention(Renamed, MultiHeadAttention):
    """ibm-fms' attention with one matrix for queries, keys and values, as transformers has it too."""

    in_proj = FusedQKV.forward
    NAMES: ClassVar = {"in_proj.qkv_fused": "c_attn", "dense": "c_proj"}


class GPTBigCodeMLP(Renamed, FeedForwardBlock):
    """ibm-fms' MLP."""

    NAMES: ClassVar = {"w1": "c_fc", "w2": "c_proj"}


class LlamaDecoderLayer(Renamed, GradientCheckpointingLayer, LLaMABlock):
    """ibm-fms' block, called as transformers' is; FSDP wraps it by this name."""

    NAMES: ClassVar = {
        "attn": "self_attn",
        "ff_sub_layer": "mlp",
        "ln": "input_layernorm",
        "ff_ln": "post_attention_layernorm",
    }

    def __init__(self, config: LLaMAConfig, rotary: RotaryEmbedding, number: int, attention_dropout: float) -> None:
        super().__init__(config, rotary)
        self.number = number
        self.rename(self)
        LlamaAttention.rename(self.self_attn)
        LlamaMLP.rename(self.mlp)
        self.self_attn.p_dropout = attention_dropout

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        **_others: Any,
    ) -> Any:
        """The hidden states after this block."""
        attention = {"attn_name": _ATTENTION, "mask": attention_mask, "cache": past_key_values, "layer": self.number}
        return LLaMABlock.forward(self, hidden_states, position_ids=position_ids, use_cache=True, **attention)[0]


class GPTBigCodeBlock(Renamed, GradientCheckpointingLayer, FmsBigCodeBlock):
    """The same of GPTBigCode."""

    NAMES: ClassVar = {"ln": "ln_1", "attn": "attn", "ff_ln": "ln_2", "ff_sub_layer": "mlp"}

    def __init__(self, config: FmsBigCodeConfig, number: int, attention_dropout: float) -> None:
        super().__init__(config)
        self.number = number
        self.rename(self)
        self.attn.splits = self.attn.in_proj.splits
        GPTBigCodeAttention.rename(self.attn)
        GPTBigCodeMLP.rename(self.mlp)
        # ibm-fms has one probability for all, and drops out within the MLP too, which the model was not trained with
        self.attn.p_dropout, self.mlp.p_dropout = attention_dropout, 0.0

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        layer_past: Cache | None = None,
        attention_mask: Tensor | None = None,
        **_others: Any,
    ) -> Any:
        """The hidden states after this block."""
        attention = {"attn_name": _ATTENTION, "mask": attention_mask, "cache": layer_past, "layer": self.number}
        return FmsBigCodeBlock.forward(self, hidden_states, use_cache=True, **attention)[0]


def _store(
    keys: Tensor, values: Tensor, key_cache: None, value_cache: None, *, cache: Cache | None, layer: int, **_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys and values with those of earlier positions, in transformers' cache.

    Needed without a cache too: ibm-fms tells heads from positions by their numbers, and confuses them in a row of as
    many positions as heads (fms 1.13, modules/attention.py:228).
    """
    keys, values = keys.transpose(2, 1), values.transpose(2, 1)
    if cache is not None:
        keys, values = cache.update(keys, values, layer)
    return keys, values, keys, values


def _compute(*tensors_and_sizes: Any, cache: Cache | None, layer: int, **attention: Any) -> Any:
    """ibm-fms' own attention, torch's SDPA."""
    return get_attention_type(attn_name="sdpa_causal")["compute_prefill"](*tensors_and_sizes, **attention)


_ATTENTION = "fmstune"
register_attention_op(_ATTENTION, _store, _compute)
