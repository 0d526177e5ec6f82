"""The peak memory of this process: of the device on a GPU, of the process on a CPU."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch


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
