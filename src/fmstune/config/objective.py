"""The group `objective`: what a model is trained for, as far as it must be known before anything heavy is imported."""

from dataclasses import dataclass, field
from typing import Any

SFT = "fmstune.training.objectives.sft.Sft"
"""The `_target_` of `objective=sft`, and of all jobs that were frozen before there was a choice."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    _target_: str = SFT
    """Class that encodes rows, trains and scores for it; one of your own package needs `--trust`."""
    config_class: str = "trl.SFTConfig"
    """Configuration class of TRL whose fields `training` takes."""
    model_class: str = "AutoModelForCausalLM"
    """Class of transformers that holds the weights."""
    model_fields: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's configuration that the class needs, such as `num_labels: 1`."""
    new_modules: list[str] = field(default_factory=list)
    """Modules of the class that the base has no weights for, such as `score`; they start random."""
    task_type: str = "CAUSAL_LM"
    """PEFT's name for what the model does."""
    columns: list[str] = field(default_factory=lambda: ["input_ids", "labels"])
    """Columns of a tokenised row; any but these two hold the tokens of texts that the format returns by these names."""
    frozen_copies: int = 0
    """Models of the same size that are held and not trained, such as a reference; the plan counts them."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Metrics by name that a run has in addition: `label`, `better`, `where`, and if need be `unit` and `form`."""


SUPERVISED = Objective()
"""That of jobs without one, and of models that are loaded to answer."""


def text_columns(objective: Objective) -> tuple[str, ...]:
    """The columns that hold texts of their own; none where a row is one text."""
    return tuple(name for name in objective.columns if name not in SUPERVISED.columns)
