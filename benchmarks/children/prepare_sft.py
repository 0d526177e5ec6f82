# SPDX-License-Identifier: Apache-2.0
"""ROWS MODEL: SFTTrainer's own preparation of prompts and completions; prints its seconds, reading included."""

import json
import os
import sys
import tempfile
import time

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from fmstune.data.formats import alpaca


def main(rows: str, folder: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as place:
        arguments = SFTConfig(
            output_dir=place,
            max_length=4096,
            bf16=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            dataset_num_proc=int(os.environ["RAYON_NUM_THREADS"]),
        )
        begun = time.perf_counter()
        # named, as a forked process has read the variable already
        read = load_dataset("json", data_files=rows, split="train", cache_dir=os.environ.get("HF_DATASETS_CACHE"))
        dataset = read.map(pair, remove_columns=SFT_COLUMNS)
        SFTTrainer(model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer)
        print(json.dumps({"seconds": time.perf_counter() - begun}))


SFT_COLUMNS = ["instruction", "input", "output"]


def pair(row: dict[str, str]) -> dict[str, str]:
    """Prompt and completion, as SFTTrainer takes them."""
    *before, answer = alpaca(row)
    return {"prompt": "".join(segment.text for segment in before), "completion": answer.text}


if __name__ == "__main__":
    main(*sys.argv[1:])
