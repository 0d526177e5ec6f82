"""Memory of the process is measured, not guessed."""

import ctypes
import mmap

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

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


class Holes(GradientCheckpointingLayer):
    """Keeps every other one of 2,000 tensors of 100 KiB."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        made = [torch.ones(25 * 1024) for _ in range(2_000)]
        self.kept = made[::2]
        return hidden


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
@pytest.mark.parametrize(("learns", "least", "most"), [(True, 80, 140), (False, 150, 240)])
def test_what_a_block_frees_between_tensors_that_it_keeps_is_given_back(learns: bool, least: int, most: int) -> None:
    ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
    before = memory.now("cpu")
    block = Holes()
    memory.trim_between_blocks(block)
    with torch.set_grad_enabled(learns):
        block(torch.zeros(1))
    assert least < (memory.now("cpu") - before) / 2**20 < most
