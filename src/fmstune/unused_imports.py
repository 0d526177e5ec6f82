"""Import training libraries without the optional packages that they import merely because these are installed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

UNUSED = ("boto3", "scipy", "wandb")
"""accelerate imports boto3 to ask about SageMaker, transformers scipy for object detection, TRL wandb for model cards
that fmstune's trainer does not write. A tracker imports wandb itself, later.
"""


@contextmanager
def hide_unused_packages() -> Iterator[None]:
    """Make these packages look not installed (None in `sys.modules`), which saves a sixth of the start of a run."""
    modules: dict[str, Any] = sys.modules
    hidden = [name for name in UNUSED if name not in modules]
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]
