"""What this machine has for a run: GPUs, asked of the driver without torch and without taking any, and cores."""

import ctypes
import functools
import os
import sys


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
