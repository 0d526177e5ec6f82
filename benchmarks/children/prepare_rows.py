# SPDX-License-Identifier: Apache-2.0
"""ROWS DATA TOKENIZER: fmstune's own preparation, from files to tokens; prints its seconds and where the tokens are."""

import json
import sys
import time
from importlib import import_module, resources

import yaml
from transformers import AutoTokenizer

from fmstune import cache
from fmstune.config import freeze
from fmstune.config.job import FULL, Data
from fmstune.data.dataset import prepare_data


def main(rows: str, choice: str, folder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    job_data = chosen(choice, rows)
    # fmstune imports it when it first needs it, and imports are not counted
    import_module("datasets")
    begun = time.perf_counter()
    prepared = prepare_data(job_data, tokenizer, 42)
    seconds = time.perf_counter() - begun
    (arrow,) = (cache.place() / "tokenized").glob("*/train.arrow")
    tokens = prepared.ledger.tokens_total
    print(json.dumps({"seconds": seconds, "arrow": str(arrow), "rows": len(prepared.train), "tokens": tokens}))


def chosen(choice: str, rows: str) -> Data:
    """The data group of a job, by the name of its file."""
    text = resources.files("fmstune.conf").joinpath("data", f"{choice}.yaml").read_text(encoding="utf-8")
    tree = {**yaml.safe_load(text), "train": rows, "eval": None}
    job = {"name": "x", "model": {"path": "x"}, "peft": {"_target_": FULL}, "data": tree, "training": {}}
    return freeze.freeze(job).job.data


if __name__ == "__main__":
    main(*sys.argv[1:])
