"""PEFT configurations from the job or a saved adapter, and the model wrapped with them."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import peft
from peft import PeftConfig, PeftModel, TaskType, get_peft_model
from peft.utils.other import TrainableTokensWrapper
from safetensors import SafetensorError
from transformers import PreTrainedModel

from fmstune import files
from fmstune.checks.weights import ADAPTER_WEIGHTS, adapter_weight_problems
from fmstune.config.job import FULL, LORAPLUS_LR_RATIO, SUPERVISED, Model, Objective
from fmstune.errors import Problem, UserError, one_line, raise_if_any
from fmstune.models.shapes import REFUSALS


def full() -> None:
    """The `_target_` of `peft=full`: no adapter, every weight is trained."""


def peft_configuration(settings: dict[str, Any], model: Model, objective: Objective = SUPERVISED) -> PeftConfig | None:
    """The PEFT configuration of the group, None for full tuning; raises UserError where PEFT refuses the values."""
    target = settings["_target_"]
    if target == FULL:
        return None
    cls = getattr(peft, target.removeprefix("peft."))
    values = {key: value for key, value in settings.items() if key not in ("_target_", LORAPLUS_LR_RATIO)}
    # PEFT knows "all-linear" as a word and not in a list
    if values.get("target_modules") == ["all-linear"]:
        values["target_modules"] = "all-linear"
    if values.get("prompt_tuning_init") == "TEXT" and not values.get("tokenizer_name_or_path"):
        values["tokenizer_name_or_path"] = files.resolve(model.tokenizer or model.path)
    values |= _configurations(cls, values)
    try:
        config: PeftConfig = cls(**{"task_type": TaskType(objective.task_type), **values})
    except REFUSALS as err:
        raise UserError("peft", f": {target} refuses these fields: {err}") from err
    if model.adapter is None:
        return config
    # its own configuration, to train it further
    saved = read_adapter(model.adapter, "model.adapter")
    if not (Path(model.adapter).is_dir() or huggingface_hub.file_exists(model.adapter, ADAPTER_WEIGHTS)):
        # PEFT would fall back to a pickle, which can run code on loading
        raise UserError("model.adapter", f": {model.adapter} has no {ADAPTER_WEIGHTS}; fmstune reads safetensors only")
    if saved.peft_type != config.peft_type:
        found = saved.peft_type.value if saved.peft_type else "of no method (no peft_type)"
        text = f": {model.adapter} is {found}, and the peft group chose {config.peft_type.value}; choose its method"
        raise UserError("model.adapter", text)
    saved.inference_mode = False
    # when it was tuned before, the base may have been elsewhere
    saved.base_model_name_or_path, saved.revision = files.resolve(model.path), model.revision
    return saved


def _configurations(cls: type[PeftConfig], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that PEFT wants as configurations of their own, such as `kasa_config`, built from their fields."""
    built, problems = dict[str, Any](), list[Problem]()
    known = {name: one for base in cls.__mro__ for name, one in vars(sys.modules[base.__module__]).items()}
    for field in fields(cls):
        kind = re.fullmatch(r"(?:Optional\[)?(\w+Config)\]?", str(getattr(field.type, "__name__", field.type)))
        if kind is None or (value := values.get(field.name)) is None:
            continue
        try:
            built[field.name] = known[kind[1]](**value)
        except (TypeError, *REFUSALS) as err:
            problems.append(Problem(f"peft.{field.name}", f"must be a mapping of fields of {kind[1]}: {one_line(err)}"))
    raise_if_any(problems)
    return built


def with_added_tokens(config: PeftConfig | None, added: Sequence[int]) -> PeftConfig | None:
    """The configuration that trains the embeddings of these ids too, where the method can; the base never saw them."""
    takes_more = added and getattr(config, "trainable_token_indices", ()) is None
    return replace(config, trainable_token_indices=list(added)) if config is not None and takes_more else config


def wrap(model: PreTrainedModel, config: PeftConfig | None, adapter: str | None) -> PreTrainedModel | PeftModel:
    """The model with a new adapter, with a saved one to train further, or as it is (full tuning)."""
    if config is None:
        return model
    if adapter is None:
        try:
            return _with_bias_of_head(get_peft_model(model, config))
        except REFUSALS as err:
            raise UserError("peft", f": {type(config).__name__} refuses these fields: {err}") from err
    try:
        further = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as err:
        # torch raises RuntimeError for weights of another shape
        raise UserError("model.adapter", f": {adapter} does not fit the model: {one_line(err)}") from err
    # PEFT looks there when it saves
    further.active_peft_config.base_model_name_or_path = config.base_model_name_or_path
    further.active_peft_config.revision = config.revision
    return _with_bias_of_head(further)


def _with_bias_of_head(model: PeftModel) -> PeftModel:
    """The same, where an output layer whose rows are trained has the `bias` that TRL's fused loss asks for.

    PEFT 0.21 passes on `weight` alone (peft/utils/other.py, `TrainableTokensWrapper._hasattr_wrapped`).
    """
    head = model.get_output_embeddings()
    if isinstance(head, TrainableTokensWrapper) and not hasattr(head, "bias"):
        head.bias = getattr(head.token_adapter.get_base_layer(), "bias", None)
    return model


def read_adapter(adapter: str, field: str) -> PeftConfig:
    """The configuration of a saved adapter; raises UserError where it cannot be read, or its folder has no weights."""
    try:
        config = PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError, TypeError) as err:
        hint = "give a folder that save_pretrained wrote, or a hub id that can be reached"
        raise UserError(field, f": {adapter} cannot be read as an adapter ({err}); {hint}") from err
    if Path(adapter).is_dir():
        raise_if_any(adapter_weight_problems(field, Path(adapter)))
    return config
