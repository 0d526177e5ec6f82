# SPDX-License-Identifier: Apache-2.0
"""SHAPE FOLDER: the shipped model as a plain folder, or one with random weights and the same tokenizer."""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTBigCodeConfig, LlamaConfig

from fmstune import files

SHAPES = {
    # SmolLM2-135M
    "llama_135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 512,
    },
    "llama_3m": {
        "vocab_size": 1536,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
    },
    "llama_30m": {
        "vocab_size": 32000,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 10,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": 512,
    },
}


def main(shape: str, folder: str) -> None:
    shipped = files.resolve("package:tiny_llama")
    tokenizer = AutoTokenizer.from_pretrained(shipped)
    if shape in SHAPES:
        torch.manual_seed(0)
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        config = LlamaConfig(**SHAPES[shape], **ids, tie_word_embeddings=True)
        model = AutoModelForCausalLM.from_config(config)
    elif shape == "gpt_bigcode":
        sizes = {"n_embd": 384, "n_layer": 8, "n_head": 6, "n_positions": 512, "vocab_size": len(tokenizer)}
        model = AutoModelForCausalLM.from_config(GPTBigCodeConfig(**sizes))
    else:
        model = AutoModelForCausalLM.from_pretrained(shipped)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
