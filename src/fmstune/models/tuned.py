"""The result of a training → a model that can answer: an adapter on its base, or a whole model, with its tokenizer."""

import json
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from fmstune import files
from fmstune.checks.hub import HubModel, fetch_file
from fmstune.checks.precision import Situation, resolve_precision
from fmstune.config.after_training.serving import Serving, Talk
from fmstune.config.choices import Attention, Device, Dtype
from fmstune.config.job import Model
from fmstune.config.requests import Harness, Scoring
from fmstune.errors import UserError, naming_flag, one_line
from fmstune.models import architecture, base_identity
from fmstune.models import load as models
from fmstune.models.adapters import read_adapter
from fmstune.models.load import Tokenizer
from fmstune.models.sharding import virtual_tokens

_of_flag = partial(naming_flag, fields=("model.path", "model.tokenizer", "model.attention", "launcher.device"))


class Place(NamedTuple):
    """Where the weights are: of a whole model, or of an adapter and its base."""

    model: str
    base: str | None
    """None for a whole model."""
    revision: str | None = None
    """Of the base."""
    compared: bool = False
    """Whether it is the base of a comparison: a whole model that is asked in the tokens of the tuned one."""


class Tuned(NamedTuple):
    """A model in evaluation mode, on its device, and its tokenizer with a pad token."""

    model: PreTrainedModel | PeftModel
    tokenizer: Tokenizer


def locate(model: str, base: str | None, *, force: bool) -> Place:
    """Find out whether this is an adapter, and check its base, or `base` in its place; raises UserError."""
    place = files.resolve(model)
    config_file = _adapter_config_file(place)
    if config_file is None:
        if base is not None:
            raise UserError("--base_model_name_or_path", f": {model} is a whole model and has no base; leave it out")
        with _of_flag("--model"):
            # before the tokenizer: its error would not name the model
            architecture.model_configuration(Model(path=place))
        return Place(place, None)
    # of a hub id, transformers has fetched the adapter's configuration alone
    base_file = None if Path(place).is_dir() else fetch_file(HubModel(place), base_identity.FILE)
    recorded = base_identity.read_base((base_file or Path(config_file)).parent)
    named, revision = (recorded.id, recorded.revision) if recorded is not None else _named(model, Path(config_file))
    if base is None and not named:
        raise UserError("--model", f": {model} does not name its base; pass --base_model_name_or_path")
    chosen = Place(place, base or named, revision if base in (None, named) else None)
    _same_base(model, chosen, recorded, given=base is not None, force=force)
    return chosen


def _adapter_config_file(place: str) -> str | None:
    """An adapter's configuration; None for a whole model."""
    found: str | None = None
    # neither cached nor reachable: the error of loading names the model
    with suppress(OSError, ValueError):
        found = find_adapter_config_file(place)
    return found


def _named(model: str, config_file: Path) -> tuple[str | None, str | None]:
    """The base and its revision as PEFT records them, of an adapter that fmstune has not saved."""
    try:
        values = json.loads(config_file.read_text(encoding="utf-8"))
        return values.get("base_model_name_or_path"), values.get("revision")
    except (OSError, ValueError, AttributeError) as err:
        raise UserError("--model", f": {model}: {config_file.name} cannot be read as a configuration ({err})") from err


def _same_base(model: str, place: Place, recorded: base_identity.Base | None, *, given: bool, force: bool) -> None:
    """Refuse a base that is not there, or is another one than was tuned on."""
    assert place.base is not None
    try:
        if recorded is not None and recorded.local and place.base == recorded.id:
            # the name of a missing folder can look like a hub id
            Path(files.resolve(place.base)).resolve(strict=True)
        found = base_identity.identify_base(place.base, place.revision)
    except (OSError, ValueError, UserError) as err:
        what = recorded.id if recorded is not None and not recorded.local else "its base"
        gone = "is neither a folder here nor available from the hub"
        if given:
            hint = files.did_you_mean_beside(Path(place.base))
            text = f": {place.base} {gone}; give the folder or hub id of {what}{hint}"
            raise UserError("--base_model_name_or_path", text) from err
        change = f"pass --base_model_name_or_path with the folder or hub id of {what}"
        raise UserError("--model", f": {model} was tuned on {place.base}, which {gone}; {change}") from err
    wrong = list(base_identity.base_differences(recorded, found)) if recorded is not None else []
    if wrong and not force:
        shown = [*wrong[:5], *([f"and {len(wrong) - 5} more"] if len(wrong) > 5 else [])]
        change = "pass the right one with --base_model_name_or_path, or --force to load it all the same"
        text = f": {model} was tuned on another base than {place.base}: {'; '.join(shown)}; {change}"
        raise UserError("--model", text)


def with_base(asked: Scoring | Harness | Serving | Talk) -> tuple[Place, Place | None]:
    """The model, and its base alone where it is known and wanted; raises UserError where one of them is missing."""
    base = asked.base_model_name_or_path
    adapts = _adapter_config_file(files.resolve(asked.model)) is not None
    place = locate(asked.model, base if adapts else None, force=asked.force)
    name, revision = (base, None) if base is not None else (asked.run_base, asked.run_base_revision)
    if adapts:
        name, revision = place.base, place.revision
    if asked.no_base or name is None:
        return place, None
    compared = Place(files.resolve(name), None, revision, compared=True)
    with _of_flag("--base_model_name_or_path"):
        architecture.model_configuration(Model(path=compared.model, revision=revision))
    if base is not None and not adapts and not asked.force:
        own, known = (tokenizer_of(one).tokenizer.get_vocab() for one in (compared, place))
        if different := [(number, token) for token, number in own.items() if known.get(token) != number]:
            number, token = min(different)
            text = f": {base} has another vocabulary than --model, first at token {number} ({token!r})"
            change = "give the model that was tuned, or --force to compare all the same"
            raise UserError("--base_model_name_or_path", f"{text}, so its answers would mean nothing; {change}")
    return place, compared


def positions(model: Tuned) -> int | None:
    """How many tokens the model takes, virtual ones not counted; None where its configuration does not say."""
    found = getattr(model.model.config.get_text_config(), "max_position_embeddings", None)
    return None if found is None else int(found) - virtual_tokens(model.model)


def load_tuned(place: Place, tokenizer: Tokenizer, *, dtype: Dtype, attention: Attention, device: Device) -> Tuned:
    """The model on its device, in evaluation mode; raises UserError where it cannot be loaded."""
    with _of_flag("--device"):
        where = models.find_device(device)
    # the weights of an adapter's base, and of a model that is not trained, can have half the bits on a GPU
    precision = resolve_precision(Situation(dtype, True, where, where == "cuda" and torch.cuda.is_bf16_supported()))
    with _of_flag("--attention"):
        kernel = models.find_attention(attention, where, precision)
    model: PreTrainedModel | PeftModel = whole(place, tokenizer, dtype=precision.weights, attention=kernel)
    if place.base is not None or place.compared:
        grow(model, tokenizer)
    if place.base is not None:
        model = adapted(model, place.model)
    return Tuned(model.to(where).eval(), tokenizer)


def in_turn(
    asked: Scoring | Harness, place: Place, base: Place | None, tokenizer: Tokenizer
) -> Iterator[tuple[str, Tuned]]:
    """Yield the tuned model, then its base if any; delete the first before the second is loaded, to save memory."""
    for name, one in (("tuned", place), ("base", base)):
        if one is not None:
            yield name, load_tuned(one, tokenizer, dtype=asked.dtype, attention=asked.attention, device=asked.device)


def whole(place: Place, tokenizer: Tokenizer, *, dtype: str, attention: str) -> PreTrainedModel:
    """The whole model, or the base of the adapter, as it was saved."""
    with _of_flag("--model" if place.base is None and not place.compared else "--base_model_name_or_path"):
        path = Model(path=place.base or place.model, revision=place.revision)
        architecture.model_configuration(path)
        # without `added`: these tokens come with the adapter, or are in the model already
        return models.load_model(path, Tokenizer(tokenizer.tokenizer), dtype=dtype, attention=attention)


def tokenizer_of(place: Place) -> Tokenizer:
    """The tokenizer that was saved with the weights, which knows the added tokens; else the one of the base."""
    try:
        with _of_flag("--model"):
            return models.load_tokenizer(Model(path=place.model), to_train=False)
    except UserError:
        if place.base is None:
            raise
    with _of_flag("--base_model_name_or_path"):
        return models.load_tokenizer(Model(path=place.base, revision=place.revision), to_train=False)


def grow(base: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Make room in the base for the tokens that the run added; their embeddings come with the adapter."""
    rows = base.get_input_embeddings().weight.shape[0]
    if len(tokenizer.tokenizer) > rows:
        models.add_tokens(base, tokenizer.tokenizer, range(rows, len(tokenizer.tokenizer)))


def adapted(base: PreTrainedModel | PeftModel, adapter: str, name: str = "default") -> PeftModel:
    """The base with this adapter in addition to earlier ones; raises UserError where it does not fit."""
    config = adapter_config(adapter)
    try:
        if isinstance(base, PeftModel):
            base.load_adapter(adapter, name)
            return base
        return PeftModel.from_pretrained(base, adapter, name, config=config)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as err:
        raise UserError("--model", f": {adapter} does not fit its base: {one_line(err)}") from err


def adapter_config(adapter: str) -> PeftConfig:
    """The adapter's configuration for use without training; raises UserError where it cannot be used."""
    config = read_adapter(adapter, "--model")
    # PEFT would look for the tokenizer of the machine that the adapter was tuned on
    config.inference_mode = True
    return config
