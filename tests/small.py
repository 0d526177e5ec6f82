"""Small real models and tokenizers, made in the test that needs them."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

TEXT = ["### Text: the parcel came late", "### Label: complaint", "thank you so much", "ünïcode wörds € 5"] * 20

TAGGED = [{"output": f"<a> the parcel came {word}<b>\n### Response: complaint <a>"} for word in ("late", "soon")] * 8
"""Rows that hold two tokens to add."""

LLAMA = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "tie_word_embeddings": False,
}

BIGCODE = {
    "model_type": "gpt_bigcode",
    "vocab_size": 320,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def byte_level_tokenizer(*, vocabulary: int = 300, special: tuple[str, ...] = ("<|end|>",)) -> PreTrainedTokenizerFast:
    """A GPT-2-style tokenizer with one special token: end of sequence; no pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0], bos_token=special[0])


def model(architecture: dict[str, Any] | None = None, *, attention: str | None = None) -> PreTrainedModel:
    """A model with random weights, always the same ones."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**(architecture or LLAMA))
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def save(folder: Path, *, architecture: dict[str, Any] | None = None, tokenizer: Any = None) -> Path:
    """A model folder as a user would have one."""
    model(architecture).save_pretrained(folder)
    (tokenizer or byte_level_tokenizer()).save_pretrained(folder)
    return folder
