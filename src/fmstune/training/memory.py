"""The peak memory of this process: of the device on a GPU, of the process on a CPU; and what makes it smaller there."""

import ctypes
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers.modeling_layers import GradientCheckpointingLayer


def now(device: str) -> int:
    """Bytes in use."""
    return torch.cuda.memory_allocated() if device == "cuda" else int(psutil.Process().memory_info().rss)


def reset_peak(device: str) -> None:
    """Measure the peak from here on; where Linux does not allow it, the peak of the whole process stays."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets the peak resident set size


def peak(device: str) -> int:
    """Bytes at most since `reset_peak`."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if (status := Path("/proc/self/status")).is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # macOS counts in bytes, others in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def trim_between_blocks(model: torch.nn.Module) -> None:
    """Let the process give back the memory between tensors that are kept, each time it has grown by 64 MiB.

    torch asks for aligned blocks, and glibc does not put one where another of the same size has been (sourceware.org,
    bug 14581), so a forward pass leaves holes. Nothing happens in evaluation, and where the C library is not glibc.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is None:
        return
    process = psutil.Process()
    low = process.memory_info().rss

    def look(block: torch.nn.Module, *_: Any) -> None:
        nonlocal low
        if not (block.training and torch.is_grad_enabled()):
            return
        held = process.memory_info().rss
        low = min(low, held)
        if held - low > _GROWTH:
            trim(ctypes.c_size_t(0))
            low = process.memory_info().rss

    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.register_forward_hook(look)


_GROWTH = 64 * 2**20
"""Bytes, below which a step would lose more time to a trim than the memory is worth."""
