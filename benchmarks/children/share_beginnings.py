# SPDX-License-Identifier: Apache-2.0
"""KIND ROUNDS [ROWS]: steps on the same rows, padded or packed against shared; prints a JSON line a round.

KIND is `gradients` (how far they differ, by shape and depth), `beginnings` (16 rows of 256 shared and 32 own tokens),
`alpaca` (rows of a file) or `apart` (rows that share nothing). Speed is in CPU seconds of a forward and backward
pass, the making of the batch included.
"""

import json
import random
import sys
import time
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from fmstune.models import varlen
from fmstune.models.trl_internals import add_fused_lm_head, score_supervised_positions_on_cpu
from fmstune.training.collate import DOCUMENTS, Collator, SharingCollator
from fmstune.training.objectives.shared_targets import score_each_row
from fmstune.training.trainer import without_count

Row = dict[str, list[int]]
SMALL = {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0}
GPT = {"vocab_size": 500, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "pad_token_id": 0}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, **HEADS},
    "gpt_bigcode": {**GPT, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "qwen2": {**SMALL, **HEADS},
}
SMOLLM2 = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "max_position_embeddings": 2048}
SMOLLM2 |= {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True, "pad_token_id": 0}
draw = random.Random(0)


def main(kind: str, rounds: str, file: str = "") -> None:
    score_supervised_positions_on_cpu()
    if kind == "gradients":
        for shape, architecture in SHAPES.items():
            made = model(shape, architecture)
            differences = [difference(made, rows) for rows in map(tree, range(1, 5))]
            print(json.dumps({"shape": shape, "differences": differences}), flush=True)
        return
    # where both sides compute the same, a few layers tell as much as thirty; else the head would weigh too much
    made = model("llama", {**SMOLLM2, "num_hidden_layers": 6 if kind == "apart" else 30})
    made = get_peft_model(made, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    rows = {"beginnings": lambda: family(16, 256, 32), "apart": lambda: family(16, 0, 100)}.get(
        kind, lambda: read(file)
    )()
    sides = {"beside": padded if kind == "beginnings" else packed, "shared": SharingCollator()}
    for collate in sides.values():
        step(made, collate, rows[:2])
    for number in range(int(rounds)):
        order = sorted(sides, reverse=bool(number % 2))
        took = {side: step(made, sides[side], rows) for side in order}
        print(json.dumps(took), flush=True)


def model(shape: str, architecture: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape, **architecture))
    add_fused_lm_head(made, outputs=("log_probs", "entropy", "is_top1"))
    return made


def tokens(count: int) -> list[int]:
    return [draw.randrange(2, 500) for _ in range(count)]


def family(members: int, shared: int, own: int) -> list[Row]:
    """Rows of a shared beginning, of which the last 16 tokens are trained."""
    beginning = tokens(shared)
    rows = [beginning + tokens(own) for _ in range(members)]
    return [{"input_ids": ids, "labels": [-100] * (len(ids) - 16) + ids[-16:]} for ids in rows]


def tree(depth: int) -> list[Row]:
    """Two branches at each level; trained tokens stand in every part."""
    rows = [tokens(40)]
    for _ in range(depth):
        rows = [row + tokens(20) for row in rows for _ in range(2)]
    return [{"input_ids": ids, "labels": [i if n % 3 == 0 else -100 for n, i in enumerate(ids)]} for ids in rows]


def read(file: str) -> list[Row]:
    """16 rows of a file in the Alpaca shape, a token for each word, as the shipped tokenizer is a small one."""
    with open(file, encoding="utf-8") as lines:
        examples = [json.loads(line) for line, _ in zip(lines, range(16), strict=False)]
    header = tokens(30)
    rows = []
    for example in examples:
        words = [len(str(example.get(name, "")).split()) for name in ("instruction", "input", "output")]
        # a word is about four thirds of a token
        prompt, answer = (max(sum(part) * 4 // 3, 2) for part in (words[:2], words[2:]))
        ids = header + tokens(prompt + answer)
        rows.append({"input_ids": ids, "labels": [-100] * (len(ids) - answer) + ids[-answer:]})
    return rows


def padded(rows: list[Row]) -> dict[str, Any]:
    return Collator(pad_token_id=0)(rows)


def packed(rows: list[Row]) -> dict[str, Any]:
    """The rows as the documents of one pack under `varlen`, the fastest that there is beside sharing."""
    pack = {name: [value for row in rows for value in row[name]] for name in ("input_ids", "labels")}
    return Collator(pad_token_id=0, flat=True, segments=True)([{**pack, DOCUMENTS: [len(r["labels"]) for r in rows]}])


def step(made: Any, collate: Any, rows: list[Row]) -> float:
    """CPU seconds of a batch, its forward and its backward pass; the gradients are left."""
    base = made.get_base_model() if hasattr(made, "get_base_model") else made
    base.set_attn_implementation("sdpa" if collate is padded else varlen.VARLEN)
    made.zero_grad(set_to_none=True)
    begun = time.process_time()
    batch = collate(rows)
    inputs, _ = without_count(batch)
    call, inputs = score_each_row(made, inputs) if "targets" in inputs else (made, inputs)
    outputs = call(**inputs, fused_lm_head=True)
    (-outputs.log_probs.sum() / outputs.label_mask.sum()).backward()
    return time.process_time() - begun


def difference(made: Any, rows: list[Row]) -> float:
    """The largest difference of a gradient, relative to the largest number in it."""
    found = []
    for collate in (padded, SharingCollator()):
        step(made, collate, rows)
        found.append({name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None})
    alone, shared = found
    return max(float((alone[n] - shared[n]).abs().max() / (alone[n].abs().max() + 1e-12)) for n in alone)


if __name__ == "__main__":
    main(*sys.argv[1:])
