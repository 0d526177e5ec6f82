"""job.model → the configuration of a causal language model, from a folder, from values or from the hub; no weight."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import errors as hub_errors
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fmstune import files
from fmstune.config.job import SUPERVISED, Model, Objective
from fmstune.errors import Problem, UserError, did_you_mean, one_line, raise_if_any

_RENAMED = {"rope_theta": "rope_parameters", "rope_scaling": "rope_parameters", "torch_dtype": "dtype"}
"""Keys of older configurations that transformers 5 takes and keeps under another name."""


def model_configuration(model: Model, objective: Objective = SUPERVISED) -> PreTrainedConfig:
    """The configuration of the model: from its folder, else from `model.architecture`, else from the hub."""
    given = None if model.architecture is None else _from_architecture(model.architecture)
    place = files.resolve(model.path)
    if Path(place).is_dir():
        config = _from_folder(place)
        if given is not None:
            raise_if_any(_disagreements(model, given, config))
    elif given is not None:
        config = given
    else:
        config = _from_hub(place, model.revision)
    raise_if_any(_causal_problems(model.path, config, objective))
    for name, value in objective.model_fields.items():
        setattr(config, name, value)
    return config


def _from_architecture(architecture: dict[str, Any]) -> PreTrainedConfig:
    """A configuration from values alone; transformers itself would take any unknown key in silence."""
    model_type = architecture.get("model_type")
    if model_type is None:
        raise UserError("model.architecture", ": model_type is missing; add the transformers name, such as llama")
    if model_type not in CONFIG_MAPPING:
        hint = did_you_mean(str(model_type), CONFIG_MAPPING.keys())
        raise UserError("model.architecture.model_type", f": transformers knows no {model_type!r}{hint}")
    default = CONFIG_MAPPING[model_type]()
    known = {*default.to_dict(), *default.attribute_map, *_RENAMED}
    raise_if_any(
        Problem(f"model.architecture.{key}", f": {model_type} has no such value{did_you_mean(key, known)}")
        for key in architecture
        if key not in known
    )
    try:
        return AutoConfig.for_model(**architecture)
    except hub_errors.StrictDataclassError as error:
        raise UserError("model.architecture", f": {one_line(error)}") from error


def _from_folder(folder: str) -> PreTrainedConfig:
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise UserError("model.path", f": {folder} has no config.json; give the folder that save_pretrained wrote")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError("model.path", f": {file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError("model.path", f": {file} holds a {type(values).__name__}; a configuration is a JSON object")
    raise_if_any(_code_problems(folder, values))
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (hub_errors.StrictDataclassError, ValueError, TypeError) as error:
        raise UserError("model.path", f": {file} has values that transformers refuses: {one_line(error)}") from error


def _from_hub(path: str, revision: str | None) -> PreTrainedConfig:
    if path.startswith(("/", "./", "../", "~")):
        raise UserError("model.path", f": no folder {path}; give an existing folder or a hub id")
    try:
        values, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
        raise_if_any(_code_problems(path, values))
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    except OSError as error:
        raise UserError.of([hub_problem("model.path", "configuration", path, revision, error)]) from error


def hub_problem(field: str, part: str, path: str, revision: str | None, error: Exception) -> Problem:
    """The reason why transformers did not load a part of a model; the kind is in the cause of its OSError."""
    page, cause = f"https://huggingface.co/{path}", error.__cause__ or error
    # from the special to the general: each of these is a subclass of a later one
    if isinstance(cause, hub_errors.GatedRepoError):
        return Problem(field, f": {path} is gated; accept its terms at {page} and log in with `hf auth login`")
    if isinstance(cause, hub_errors.RevisionNotFoundError):
        return Problem("model.revision", f": {path} has no revision {revision!r}; see {page}/tree/main")
    if isinstance(cause, hub_errors.RepositoryNotFoundError):
        return Problem(field, f": neither a folder nor a hub model is named {path}; if private, `hf auth login` first")
    if isinstance(cause, hub_errors.HFValidationError):
        return Problem(field, f": {path} is neither a folder nor a hub id (NAME or OWNER/NAME)")
    if isinstance(cause, hub_errors.LocalEntryNotFoundError | hub_errors.HfHubHTTPError | ConnectionError):
        why = f"no folder is named {path}, and it is neither in the hub's cache nor can the hub be reached"
        change = "give a folder, or model.architecture in a job, to check without the hub"
        return Problem(field, f": {why}; {change}{files.did_you_mean_beside(Path(path))}")
    return Problem(field, f": the {part} {path} cannot be loaded: {one_line(error)}")


def _code_problems(place: str, values: dict[str, Any]) -> Iterator[Problem]:
    """Refuse a model that needs code of its own: it would run with the user's rights."""
    model_type, own = values.get("model_type"), values.get("auto_map", {})
    # not GPT2LMHeadCustomModel of santacoder, whose model_type is gpt2
    upstream = values.get("architectures") in (None, [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)])
    if model_type is None:
        yield Problem("model.path", f": the config.json of {place} names no model_type; add the transformers name")
    elif own and not (model_type in CONFIG_MAPPING and upstream):
        code, change = ", ".join(map(str, own.values())), "take a model of an architecture that transformers has"
        text = f": {place} needs code of its own ({code}), and fmstune runs none from a model; {change}"
        yield Problem("model.path", text)
    elif model_type not in CONFIG_MAPPING:
        hint = did_you_mean(str(model_type), CONFIG_MAPPING.keys())
        yield Problem("model.path", f": {place} has the model_type {model_type!r}, unknown to this transformers{hint}")


def _disagreements(model: Model, given: PreTrainedConfig, found: PreTrainedConfig) -> Iterator[Problem]:
    """Every value of `model.architecture` that the model's folder contradicts."""
    for key in model.architecture or {}:
        kept = _RENAMED.get(key, key)
        here, there = getattr(given, kept), getattr(found, kept, None)
        if here != there:
            yield Problem(f"model.architecture.{key}", f"is {here!r}, but {model.path} has {there!r}; correct it")


def _causal_problems(path: str, config: PreTrainedConfig, objective: Objective) -> Iterator[Problem]:
    """Models that do not predict the next token, or would get a random head to do so."""
    named, expected = config.architectures or [], MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    is_causal = objective.model_class == SUPERVISED.model_class
    if config.is_encoder_decoder or expected is None:
        text = f": {path} ({config.model_type}) is not a causal language model; only these can be tuned"
        yield Problem("model.path", text)
    elif is_causal and named and not any(name == expected or "CausalLM" in name or "LMHead" in name for name in named):
        text = f": {path} holds a {named[0]}, but tuning needs a {expected}, a causal language model"
        yield Problem("model.path", text)


def model_class(objective: Objective) -> Any:
    """Return the class of transformers that holds the weights; raises UserError where there is none."""
    found = getattr(transformers, objective.model_class, None)
    if found is None:
        raise UserError("objective.model_class", f": transformers has no {objective.model_class!r}; give an AutoModel")
    return found


def build_empty(config: PreTrainedConfig, objective: Objective = SUPERVISED) -> PreTrainedModel:
    """The model on the meta device: names and shapes, no memory; raises UserError where the values make no model."""
    try:
        with torch.device("meta"):
            return model_class(objective).from_config(config)
    except (ValueError, TypeError, AssertionError, RuntimeError, ZeroDivisionError) as err:
        raise UserError("model", f": the configuration makes no {config.model_type} model: {one_line(err)}") from err
