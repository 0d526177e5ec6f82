"""Logs and warnings of other libraries in a runner, their threads, and how long they wait for the hub."""

import logging
import os
import warnings

import datasets
import torch
import transformers

from fmstune import ranks
from fmstune.checks.limits import MOST_THREADS
from fmstune.errors import UserError
from fmstune.models.hub_internals import fail_at_once_without_a_network

_SILENT = (
    *("httpx", "httpx2", "huggingface_hub", "filelock", "fsspec", "matplotlib", "trl", "accelerate"),
    *("aim", "alembic", "gguf", "mlflow"),
)
"""Loggers that speak of errors only."""


def quiet() -> None:
    """Other libraries speak only of what is wrong; their progress bars would write over ours."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    # under prompt learning, rows of one length are generated together, so positions are right without ids
    warnings.filterwarnings("ignore", message="Position ids are not supported for parameter efficient tuning")
    warnings.filterwarnings("ignore", message="Setting `save_embedding_layers` to `True`")
    # PEFT sets it right itself for the Conv1D layers of GPT-2
    warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
    # one process speaks for all
    logging.basicConfig(format="%(message)s", level=logging.INFO if ranks.here().is_main else logging.WARNING)
    for name in _SILENT:
        logging.getLogger(name).setLevel(logging.ERROR)
    fail_at_once_without_a_network()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(first_level(threads))


def first_level(threads: str) -> int:
    """Threads of the outermost loops, of a value of OMP_NUM_THREADS: OpenMP takes a list, one number a level."""
    number = threads.partition(",")[0].strip()
    if not number.isdecimal() or not 1 <= int(number) <= MOST_THREADS:
        hint = "unset it, or set launcher.threads"
        raise UserError("", f"OMP_NUM_THREADS must be a number from 1 to {MOST_THREADS:,}, got {threads!r}; {hint}")
    return int(number)
