"""The loss of a line on which rows share their beginnings: that of the same rows alone."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from fmstune.data.tokens import IGNORED
from fmstune.training.collate import TARGETS


class Scored(NamedTuple):
    """What TRL's loss is computed with in place of the model and the batch."""

    model: Callable[..., Any]
    inputs: dict[str, Any]


def score_each_row(model: Callable[..., Any], inputs: Mapping[str, Any]) -> Scored:
    """Return model and batch so that the fused LM head scores a place once, and each trained token of a row counts.

    TRL's head (trainer/utils.py, `_fused_forward`) takes one label a position, as `shift_labels`. Its figures of each
    position are then repeated for each row that trains the position's next token, so that all that TRL makes of them
    (loss, `dft`, entropy, accuracy, counts) is what it makes of the rows alone.
    """
    given = dict(inputs)
    targets, labels = given.pop(TARGETS), given.pop("labels")
    shift_labels = torch.full_like(given["input_ids"], IGNORED)
    shift_labels[0, targets] = labels[0, 1:]

    def scored(**arguments: Any) -> Any:
        outputs = model(**arguments)
        for name in ("log_probs", "entropy", "is_top1", "label_mask"):
            setattr(outputs, name, getattr(outputs, name)[:, targets.to(outputs.log_probs.device)])
        return outputs

    return Scored(scored, {**given, "shift_labels": shift_labels})
