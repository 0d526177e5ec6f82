# SPDX-License-Identifier: Apache-2.0
"""ROWS TOKENIZER: one call of the tokenizer on the finished texts; prints its seconds."""

import json
import sys
import time
from pathlib import Path

from transformers import AutoTokenizer

from fmstune.data.formats import alpaca


def main(rows: str, folder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = Path(rows).read_text(encoding="utf-8").splitlines()
    texts = ["".join(segment.text for segment in alpaca(json.loads(line))) for line in lines]
    begun = time.perf_counter()
    made = tokenizer(texts, return_attention_mask=False, verbose=False)
    seconds = time.perf_counter() - begun
    print(json.dumps({"seconds": seconds, "tokens": sum(map(len, made["input_ids"]))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
