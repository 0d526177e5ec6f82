"""Memory of the process is measured, not guessed."""

import torch

from fmstune import memory


def test_the_peak_sees_what_is_gone_again() -> None:
    memory.reset_peak("cpu")
    before = memory.peak("cpu")
    block = torch.ones(50 * 2**20 // 4)
    del block
    assert memory.peak("cpu") - before > 40 * 2**20


def test_a_reset_forgets_the_former_peak() -> None:
    block = torch.ones(50 * 2**20 // 4)
    held = memory.now("cpu")
    del block
    memory.reset_peak("cpu")
    assert memory.peak("cpu") < held - 30 * 2**20
