"""No search for garbage while there is none: importing and composing make objects that stay."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_MANY = 20_000
"""Objects that are made before the collector looks at the young ones; Python 3.11 waits for 700."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause the cyclic collector, which would look through the same objects again and again.

    It takes a sixth of the time in which torch, transformers and TRL are imported (Python 3.11). Nothing is frozen:
    what does become garbage meanwhile is found afterwards.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Let the cyclic collector wait for more objects: rows are made and dropped in great numbers, without cycles.

    It takes a fifth of the time in which rows are tokenised, and most of that in looking through the libraries.
    """
    former = gc.get_threshold()
    gc.set_threshold(_MANY, *former[1:])
    try:
        yield
    finally:
        gc.set_threshold(*former)
