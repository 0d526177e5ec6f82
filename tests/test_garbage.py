# SPDX-License-Identifier: Apache-2.0
"""The collector pauses, and goes on as it was."""

import gc
import importlib

import pytest

from fmstune.garbage import uncollected


def test_nothing_is_collected_inside_and_it_is_as_before_afterwards() -> None:
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_so_it_does_when_something_goes_wrong() -> None:
    with pytest.raises(ModuleNotFoundError), uncollected():
        importlib.import_module("no_such_module")
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
