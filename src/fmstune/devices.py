"""How many GPUs this machine has, asked of the driver: without torch, and without taking any of them."""

import ctypes
import functools


@functools.cache
def gpus() -> int:
    """CUDA devices that CUDA_VISIBLE_DEVICES leaves in sight; 0 where there is no driver.

    cuInit makes no context, so it takes no memory of a device (CUDA Driver API, "Initialization").
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
