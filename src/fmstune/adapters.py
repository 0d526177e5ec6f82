"""What PEFT needs beyond a configuration: building it from the job, and wrapping a model with it."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import peft
from peft import PeftConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from fmstune import package_files
from fmstune.errors import UserError
from fmstune.job import FULL, Model


def full() -> None:
    """The `_target_` of `peft=full`: no adapter, every weight is trained."""


def configuration(settings: dict[str, Any], model: Model) -> PeftConfig | None:
    """The PEFT configuration of the job's peft group; None for full tuning.

    Raises UserError where PEFT itself refuses the values.
    """
    target = settings["_target_"]
    if target == FULL:
        return None
    cls = getattr(peft, target.removeprefix("peft."))
    values = {key: value for key, value in settings.items() if key != "_target_"}
    # PEFT knows "all-linear" as a word and not in a list
    if values.get("target_modules") == ["all-linear"]:
        values["target_modules"] = "all-linear"
    if values.get("prompt_tuning_init") == "TEXT" and not values.get("tokenizer_name_or_path"):
        values["tokenizer_name_or_path"] = package_files.resolve(model.tokenizer or model.path)
    try:
        return cls(**{"task_type": TaskType.CAUSAL_LM, **values})
    except (TypeError, ValueError) as err:
        raise UserError(f"peft: {target} refuses these fields: {err}") from err


def wrap(
    model: PreTrainedModel, config: PeftConfig | None, adapter: str | None, added_tokens: Sequence[int]
) -> PreTrainedModel | PeftModel:
    """The model with a new adapter, with an existing one to go on with, or as it is (full tuning).

    `added_tokens` are ids that the base never saw; where the method can, their embeddings are trained too.
    """
    if config is None:
        return model
    if adapter is not None:
        return _existing(model, config, adapter)
    names = {field.name for field in fields(config)}
    if added_tokens and "trainable_token_indices" in names and config.trainable_token_indices is None:
        config.trainable_token_indices = list(added_tokens)
    return get_peft_model(model, config)


def _existing(model: PreTrainedModel, config: PeftConfig, adapter: str) -> PeftModel:
    """Go on with a saved adapter; its own configuration holds, so the job must not ask for another method."""
    try:
        saved = PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError) as err:
        raise UserError(f"model.adapter: {adapter} cannot be read as an adapter: {err}") from err
    if saved.peft_type != config.peft_type:
        raise UserError(
            f"model.adapter: {adapter} is {saved.peft_type.value}, and the peft group chose {config.peft_type.value}"
        )
    return PeftModel.from_pretrained(model, adapter, is_trainable=True)
