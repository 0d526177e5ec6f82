"""Values of fields that are not set: the dataclasses' defaults under all files of Hydra, and rates by method."""

import copy
import dataclasses
import re
import typing
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from fmstune.config import groups, named_classes
from fmstune.config.job import FULL, LORAPLUS_LR_RATIO, EarlyStopping, Job, Slurm
from fmstune.config.renamed_fields import USUAL_RATE, with_format_settings

PROVIDER = "fmstune dataclasses"
"""Name under which Hydra knows that a value is the default of a dataclass."""
CALLS = re.compile(r"\$\{(usual_rate|by_method):.*\}", re.DOTALL)
"""A value of `training` that depends on the method."""


def register() -> None:
    """Give Hydra the defaults as `fields/…`, and OmegaConf the functions that files of conf/ call."""
    _store_defaults()
    for resolver in (first, usual_rate, by_method):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


@cache
def _store_defaults() -> None:
    store = ConfigStore.instance()
    for name, cls in (("job", Job), ("slurm", Slurm), ("early_stopping", EarlyStopping)):
        store.store(group="fields", name=name, node=defaults_of(cls), provider=PROVIDER)


def defaults_of(cls: Any) -> dict[str, Any]:
    """The default of each field, those of its groups included; of a field without one `???`, or an empty mapping."""
    hints, found = typing.get_type_hints(cls), dict[str, Any]()
    for field in (one for one in dataclasses.fields(cls) if not one.metadata):
        if dataclasses.is_dataclass(hints[field.name]):
            found[field.name] = defaults_of(hints[field.name])
        elif field.default is not dataclasses.MISSING:
            found[field.name] = field.default.value if isinstance(field.default, Enum) else field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
        else:
            found[field.name] = {} if typing.get_origin(hints[field.name]) is dict else "???"
    return found


def first(*values: Any) -> Any:
    """The first value that is not null."""
    return next((value for value in values if value is not None), None)


def usual_rate(target: str | None, own: float | None, full: float) -> float:
    """A method's usual learning rate: the one in its own file, else that of its class in conf/peft."""
    if target == FULL:
        return full
    if own is not None:
        return own
    # LoRA's relatives have its class, and the file of LoRA has the fewest keys
    methods = sorted(groups.shipped_choices("peft").values(), key=len, reverse=True)
    rates = {one["_target_"]: float(one[USUAL_RATE]) for one in methods if USUAL_RATE in one}
    return rates.get(str(target), 1e-4)  # LoRA's


def by_method(table: Mapping[str, Any], otherwise: Any, *, _root_: DictConfig) -> Any:
    """The value for the job's PEFT class, or for `loraplus_lr_ratio` where that is set."""
    plus = OmegaConf.select(_root_, f"peft.{LORAPLUS_LR_RATIO}") is not None and LORAPLUS_LR_RATIO in table
    return table.get(LORAPLUS_LR_RATIO if plus else OmegaConf.select(_root_, "peft._target_"), otherwise)


def settled(config: DictConfig) -> DictConfig:
    """The configuration with the values of `usual_rate` and `by_method` in place of the calls, and without the rest."""
    config = copy.deepcopy(config)
    OmegaConf.set_struct(config, False)
    training: Any = OmegaConf.to_container(config.training, resolve=False)
    for key in [key for key, value in training.items() if CALLS.match(str(value))]:
        config.training[key] = config.training[key]
    if OmegaConf.is_dict(config.get("data")) and OmegaConf.is_dict(config.data.get("format")):
        data: Any = OmegaConf.to_container(config.data, resolve=False)
        config.data.format = with_format_settings(data)[0]["format"]
    if OmegaConf.is_dict(config.get("tracking")):
        tracking: Any = OmegaConf.to_container(config.tracking, resolve=False)
        config.tracking = named_classes.with_tracker_defaults(tracking)
    if OmegaConf.is_dict(config.get("peft")):
        config.peft.pop(USUAL_RATE, None)
    return config
