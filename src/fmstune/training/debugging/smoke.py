"""`debug=smoke` in the runner: the stop after the first step, and the small model that stands in for the job's own."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, TrainerCallback, TrainerControl, TrainerState, set_seed

from fmstune.config.job import SUPERVISED, Job
from fmstune.errors import UserError, one_line
from fmstune.models.architecture import REFUSALS, build_empty, model_class, model_configuration

LAYERS = 2
"""Layers that are kept at least; more where the model has more than two kinds of layers."""
_NUMBER = "num_hidden_layers"


class Smoke(TrainerCallback):
    """Gives its own process the notice of a preemption in the first step, so that the run saves, stops, and resumes."""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Send the notice, unless the run is resumed; it is heeded at the end of the step."""
        if state.global_step == 0:
            os.kill(os.getpid(), signal.SIGUSR1)


def write_small_model(job: Job, folder: Path) -> int:
    """Write the job's model at two layers with random weights into the folder; its tokenizer is not written."""
    config = small_configuration(model_configuration(job.model))
    build_empty(config)  # raises UserError where the values make no model
    set_seed(job.seed)
    try:
        model = model_class(SUPERVISED).from_config(config, dtype=config.dtype or torch.float32)
        model.save_pretrained(folder)
    except REFUSALS as err:
        raise UserError("model", f": two layers of it cannot be made: {one_line(err)}") from err
    print(f"model      {config.model_type} of {_layers(config)} layers, {model.num_parameters():,} random weights")
    return 0


def small_configuration(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration with the first layer of each kind, two at least; widths and vocabulary stay as they are."""
    text = config.get_text_config()
    own = text.attribute_map.get(_NUMBER, _NUMBER)
    count = _layers(config)
    values = text.to_dict()
    by_layer = {key: one for key, one in values.items() if isinstance(one, list) and len(one) == count > LAYERS}
    kept = kept_layers([tuple(map(str, kinds)) for kinds in zip(*by_layer.values(), strict=True)], count)
    values |= {key: [one[layer] for layer in kept] for key, one in by_layer.items()} | {own: len(kept)}
    # random weights are not quantized
    values.pop("quantization_config", None)
    if text is config:
        return type(config).from_dict(values)
    return type(config).from_dict({**config.to_dict(), "text_config": values})


def kept_layers(kinds: Sequence[tuple[str, ...]], count: int) -> list[int]:
    """Numbers of the first layer of each kind, and of further ones up to two; `kinds` is empty where all are alike."""
    firsts = sorted({kind: layer for layer, kind in reversed([*enumerate(kinds)])}.values())
    others = (layer for layer in range(count) if layer not in firsts)
    return sorted([*firsts, *(layer for layer, _ in zip(others, range(LAYERS - len(firsts)), strict=False))])


def _layers(config: PreTrainedConfig) -> int:
    return int(getattr(config.get_text_config(), _NUMBER))
