#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""The early tool's inference script, with its flags: `fmstune generate` under its former name."""

import sys

from fmstune.cli.main import main

FORMER = {"--use_flash_attn": ("--attention", "flash_attention_2")}
"""Flags that have another name today."""

if __name__ == "__main__":
    sys.argv = ["fmstune", "generate", *(today for word in sys.argv[1:] for today in FORMER.get(word, (word,)))]
    main()
