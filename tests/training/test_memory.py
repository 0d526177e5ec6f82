"""Memory of the process is measured, not guessed."""

import mmap

from fmstune.training import memory

SIZE = 50 * 2**20


def taken() -> mmap.mmap:
    """Memory that is really new: the heap may hold some that was freed before."""
    block = mmap.mmap(-1, SIZE)
    for page in range(0, SIZE, mmap.PAGESIZE):
        block[page] = 1
    return block


def test_the_peak_sees_what_is_gone_again() -> None:
    memory.reset_peak("cpu")
    before = memory.peak("cpu")
    taken().close()
    assert memory.peak("cpu") - before > 40 * 2**20


def test_a_reset_forgets_the_former_peak() -> None:
    block = taken()
    held = memory.now("cpu")
    block.close()
    memory.reset_peak("cpu")
    assert memory.peak("cpu") < held - 30 * 2**20
