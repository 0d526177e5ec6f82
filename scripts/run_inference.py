#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""The early tool's inference script, with its flags: `fmstune generate` under its former name."""

import sys

from fmstune.cli import main

if __name__ == "__main__":
    sys.argv = ["fmstune", "generate", *sys.argv[1:]]
    main()
