# SPDX-License-Identifier: Apache-2.0
"""SHAPE DEVICE FOLDER: a Llama with random weights in bfloat16 and the shipped tokenizer; zeros would be too quick."""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from fmstune import files

SHAPES = {
    "llama2_7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "llama_1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 16, "num_attention_heads": 16},
    # for a CPU
    "small": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
}


def main(shape: str, device: str, folder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(files.resolve("package:tiny_llama"))
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    vocabulary = len(tokenizer) if shape == "small" else 32000
    config = LlamaConfig(**SHAPES[shape], **ids, vocab_size=vocabulary, max_position_embeddings=4096, use_cache=False)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
