"""What this machine has for a run: GPUs, asked of the driver without torch and without taking any, and cores.

And what cards can do: their peaks by name.
"""

import ctypes
import functools
import os
import re
import sys
from typing import NamedTuple


@functools.cache
def gpus() -> int:
    """Return the number of CUDA devices that CUDA_VISIBLE_DEVICES shows; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    # cuInit makes no context, so it takes no memory of a device (CUDA Driver API, "Initialization")
    count = ctypes.c_int(0)
    return 0 if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) else count.value


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class Card(NamedTuple):
    """A card, and its dense peaks in TFLOP/s with sums in float32; None where it has no such unit."""

    names: str
    """Pattern of the whole names that torch gives it."""
    bf16: float | None
    fp16: float
    tf32: float | None
    fp32: float


CARDS: dict[str, Card] = {
    "GB200": Card(r"NVIDIA GB200", 2500, 2500, 1250, 80),
    "B200": Card(r"NVIDIA B200", 2250, 2250, 1125, 75),
    "H200, GH200": Card(r"NVIDIA (H200|GH200 \d+GB)", 989.4, 989.4, 494.7, 66.9),
    "H100 SXM": Card(r"NVIDIA H100 \d+GB HBM3", 989.4, 989.4, 494.7, 66.9),
    "H100 NVL, H200 NVL": Card(r"NVIDIA (H100|H200) NVL", 835.5, 835.5, 417.5, 60),
    "H100 PCIe": Card(r"NVIDIA H100 PCIe", 756, 756, 378, 51.2),
    "A100, A800": Card(r"NVIDIA A(100|800)(-SXM4-\d+GB|-PCIE-\d+GB| \d+GB PCIe)", 312, 312, 156, 19.5),
    "A30": Card(r"NVIDIA A30", 165, 165, 82, 10.3),
    "A40": Card(r"NVIDIA A40", 149.7, 149.7, 74.8, 37.4),
    "A10": Card(r"NVIDIA A10", 125, 125, 62.5, 31.2),
    "A10G": Card(r"NVIDIA A10G", 70, 70, 35, 35),
    "L40S": Card(r"NVIDIA L40S", 362, 362, 183, 91.6),
    "L40": Card(r"NVIDIA L40", 181, 181, 90.5, 90.5),
    "L4": Card(r"NVIDIA L4", 121, 121, 60, 30.3),
    "RTX 6000 Ada": Card(r"NVIDIA RTX 6000 Ada Generation", 364.2, 364.2, 182.1, 91.1),
    "RTX A6000": Card(r"NVIDIA RTX A6000", 154.8, 154.8, 77.4, 38.7),
    "GeForce RTX 5090": Card(r"NVIDIA GeForce RTX 5090", 209.5, 209.5, 104.8, 104.8),
    "GeForce RTX 4090": Card(r"NVIDIA GeForce RTX 4090", 165.2, 165.2, 82.6, 82.6),
    "GeForce RTX 3090": Card(r"NVIDIA GeForce RTX 3090", 71, 71, 35.6, 35.6),
    "T4": Card(r"(Tesla|NVIDIA) T4", None, 65, None, 8.1),
    "V100S PCIe": Card(r"Tesla V100S-PCIE-\d+GB", None, 130, None, 16.4),
    "V100 SXM": Card(r"Tesla V100-SXM\d-\d+GB", None, 125, None, 15.7),
    "V100 PCIe": Card(r"Tesla V100-PCIE-\d+GB", None, 112, None, 14),
}
"""Cards whose peaks are known; a laptop's card, or a part of a card (MIG), has another name and is not.

From NVIDIA's data sheet of each card, and for GeForce its white papers (Ampere GA102, Ada, RTX Blackwell). Where a
sheet states the peak with sparsity alone, half of it.
"""


def peak_tflops(card: str, dtype: str, *, tf32: bool = False) -> float | None:
    """Return the dense peak of a card in TFLOP/s, for products of this dtype; None for a card that is not known."""
    known = next((one for one in CARDS.values() if re.fullmatch(one.names, card)), None)
    if known is None:
        return None
    return {"bfloat16": known.bf16, "float16": known.fp16, "float32": known.tf32 if tf32 else known.fp32}[dtype]
