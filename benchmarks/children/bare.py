# SPDX-License-Identifier: Apache-2.0
"""MODEL ARROW METHOD STEPS BATCH FOLDER: torch alone; logits of supervised positions only, AdamW, clipping, cosine."""

import os
import sys
from pathlib import Path

import pyarrow as pa
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(folder_of_model: str, arrow: str, method: str, steps: str, batch: str, folder: str) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(42)
    model = base = AutoModelForCausalLM.from_pretrained(folder_of_model, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder_of_model)
    if method == "lora":
        lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"])
        model = get_peft_model(base, lora)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(steps))
    with pa.memory_map(arrow) as source:
        rows = pa.ipc.open_stream(source).read_all().select(["input_ids", "labels"])
    Path(folder).mkdir()
    for number in range(int(steps)):
        chosen = [(number * int(batch) + n) % len(rows) for n in range(int(batch))]
        loss = step_loss(base, rows.take(chosen).to_pylist(), tokenizer.pad_token_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        with (Path(folder) / "steps").open("a", encoding="utf-8") as file:
            file.write(f"{loss.item()}\n")
    model.save_pretrained(folder)


def step_loss(base: torch.nn.Module, rows: list[dict[str, list[int]]], pad: int) -> torch.Tensor:
    """The mean loss over the supervised positions of a batch, padded to its longest row."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([[*row["input_ids"], *[pad] * (width - len(row["input_ids"]))] for row in rows])
    labels = torch.tensor([[*row["labels"], *[-100] * (width - len(row["labels"]))] for row in rows])
    mask = torch.tensor([[*[1] * len(row["input_ids"]), *[0] * (width - len(row["input_ids"]))] for row in rows])
    hidden = base.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    supervised = targets != -100
    logits = base.lm_head(hidden[:, :-1][supervised])
    return torch.nn.functional.cross_entropy(logits.float(), targets[supervised])


if __name__ == "__main__":
    main(*sys.argv[1:])
