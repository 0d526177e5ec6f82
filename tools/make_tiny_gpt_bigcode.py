#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Make the embedded model of the second architecture: StarCoder's shape, with the tiny Llama's tokenizer.

Multi-query attention, learned positions, LayerNorm with bias and dropout, in 0.2 million parameters. It is pretrained
briefly on the corpus of `pretrain_tiny_llama`: enough to answer a label with a label, not enough to read messages well.
"""

import argparse
import random
from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig, GPTBigCodeConfig, GPTBigCodeForCausalLM

from pretrain_tiny_llama import ASSETS, HELD_OUT, SEED, batches, documents, held_out_texts, pretrain

STEPS = 400


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the tiny GPTBigCode.")
    parser.add_argument("--out", type=Path, default=ASSETS / "tiny_gpt_bigcode", help="folder to write to")
    parser.add_argument("--steps", type=int, default=STEPS, help="batches of documents; 0 leaves the weights random")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny_llama")
    model = new_model(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    if args.steps:
        rng = random.Random(SEED)
        pretrain(model, batches(documents(rng, held_out_texts(HELD_OUT)), tokenizer, rng), args.steps)
    model.eval()
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(args.out)


def new_model(vocabulary: int, bos: int, eos: int, pad: int) -> GPTBigCodeForCausalLM:
    """The shape of bigcode/starcoder with every number small; its weights are random."""
    config = GPTBigCodeConfig(
        vocab_size=vocabulary,
        n_embd=64,
        n_inner=256,
        n_layer=2,
        n_head=4,
        n_positions=512,
        multi_query=True,
        initializer_range=0.05,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    return GPTBigCodeForCausalLM(config)


if __name__ == "__main__":
    main()
