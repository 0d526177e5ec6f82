"""The fields of the job that take one of a few words: each an enumeration of the words."""

from enum import StrEnum

Dtype = StrEnum("Dtype", ["auto", "float32", "bfloat16", "float16"])
"""How weights are held; `auto` is resolved in one place, `fmstune.checks.precision`."""
Attention = StrEnum("Attention", ["auto", "sdpa", "eager", "flash_attention_2", "varlen"])
"""The attention kernel, by transformers' own names, and `varlen`, torch's own for rows that lie end to end.

`auto` takes FlashAttention-2 where it can run, else `varlen` for packed rows on a CUDA device, else `sdpa`.
"""
Kernels = StrEnum("Kernels", ["none", "liger"])
"""Whose kernels compute norms, rotary positions and gated layers: torch's own, or Liger's in Triton."""
Backend = StrEnum("Backend", ["transformers", "fms"])
"""Whose blocks the model is made of: transformers' own, or those of ibm-fms (foundation-model-stack)."""
Device = StrEnum("Device", ["auto", "cpu", "cuda", "mps"])
"""Where the run computes; `auto` takes the first accelerator that there is, else the CPU."""
Auto = StrEnum("Auto", ["auto"])
"""The third word of a field that is true or false."""
OverLength = StrEnum("OverLength", ["truncate", "drop", "error"])
"""What happens to a row of more than `max_length` tokens."""
Untrainable = StrEnum("Untrainable", ["error", "drop"])
"""What happens to a row that would train on nothing (no response template, or no answer left)."""
StoppingStrategy = StrEnum("StoppingStrategy", ["all_exhausted", "first_exhausted"])
"""When a weighted mixture of sources has made its epoch, by the names of `datasets.interleave_datasets`."""
Overlap = StrEnum("Overlap", ["keep", "drop", "error"])
"""What happens to training rows that are also held out."""
QuantType = StrEnum("QuantType", ["nf4", "fp4"])
"""The 4-bit numbers of bitsandbytes: spaced as normal weights are (QLoRA's), or floating point."""
Direction = StrEnum("Direction", ["minimize", "maximize"])
"""Which values of a number are better."""
Strategy = StrEnum("Strategy", ["single", "ddp", "fsdp"])
"""How several processes share the work."""
Sharding = StrEnum("Sharding", ["full_shard", "shard_grad_op", "hybrid_shard"])
"""What FSDP shares out among the processes."""


class Prefetch(StrEnum):
    """When FSDP1 fetches the next weights in the backward pass, by torch's own names."""

    BACKWARD_PRE = "BACKWARD_PRE"
    BACKWARD_POST = "BACKWARD_POST"
    NO_PREFETCH = "NO_PREFETCH"


BITSANDBYTES = {
    *("adamw_bnb_8bit", "adamw_8bit", "ademamix", "ademamix_8bit", "lion_8bit", "lion_32bit", "paged_adamw_32bit"),
    *("paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit"),
    *("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
}
"""Values of `training.optim` that are optimizers of bitsandbytes (transformers/trainer_optimizer.py)."""
