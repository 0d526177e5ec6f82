"""job.model → the configuration of a causal language model, from a folder, from values or from the hub; no weight."""

import copy
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import errors as hub_errors
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fmstune import files
from fmstune.checks.hub import cached_snapshot, unreachable
from fmstune.config.job import SUPERVISED, Model, Objective
from fmstune.errors import Problem, UserError, did_you_mean, one_line, raise_if_any

REFUSALS = (
    hub_errors.StrictDataclassError,
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),
)
"""What transformers and torch raise for values of a configuration that they do not expect."""
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
"""Values that are at least 1 in every architecture that has them."""
_MOST_BLOCKS = 10_000
"""Blocks of more would take minutes to make, even without numbers."""
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
        if (cached := cached_snapshot(place, model.revision)) is not None and (cached / "config.json").is_file():
            raise_if_any(_disagreements(model, given, _from_folder(str(cached))))
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
    # Qwen3's mixture takes head_dim, too, and does not declare it
    known = {*default.to_dict(), *default.attribute_map, *_RENAMED, "head_dim"}
    raise_if_any(
        Problem(f"model.architecture.{key}", f": {model_type} has no such value{did_you_mean(key, known)}")
        for key in architecture
        if key not in known
    )
    raise_if_any(_unknown_in_parts(architecture, default))
    raise_if_any(
        Problem(f"model.architecture.{key}", text) for key, text in _size_problems(architecture, _own_names(default))
    )
    try:
        config = AutoConfig.for_model(**copy.deepcopy(architecture))
    except REFUSALS as error:
        raise UserError("model.architecture", f": {_reason(error)}") from error
    raise_if_any(Problem(f"model.architecture.{key}", text) for key, text in _rope_problems(config))
    return config


def _unknown_in_parts(architecture: dict[str, Any], default: PreTrainedConfig) -> Iterator[Problem]:
    """Unknown keys of the configuration for the text or for pictures."""
    for key, values in architecture.items():
        part = getattr(default, key, None)
        if isinstance(part, PreTrainedConfig) and isinstance(values, dict):
            known = {*part.to_dict(), *part.attribute_map, *_RENAMED}
            for name in values.keys() - known:
                text = f": {part.model_type} has no such value{did_you_mean(name, known)}"
                yield Problem(f"model.architecture.{key}.{name}", text)


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
    raise_if_any(Problem("model.path", f": {file}: {key} {text}") for key, text in _word_problems(values))
    raise_if_any(_code_problems(folder, values))
    own = _own_names(CONFIG_MAPPING[values["model_type"]])
    raise_if_any(Problem("model.path", f": {file}: {key} {text}") for key, text in _size_problems(values, own))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except REFUSALS as error:
        raise UserError("model.path", f": {file} has values that transformers refuses: {_reason(error)}") from error
    raise_if_any(Problem("model.path", f": {file}: {key} {text}") for key, text in _rope_problems(config))
    return config


def _word_problems(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of the words that a class is looked up by, and of positions that are left open."""
    if not isinstance(values.get("model_type", ""), str):
        yield "model_type", f"must be text, such as llama, got {values['model_type']!r}"
    classes = values.get("architectures")
    if values.get("rope_parameters") == {}:
        # transformers would take a default, and a model's positions are those that it was trained with
        yield "rope_parameters", "is empty; it must hold rope_type and rope_theta, as the model was trained with"
    if classes is not None and not (isinstance(classes, list) and all(isinstance(one, str) for one in classes)):
        yield "architectures", f"must be a list of text, such as [LlamaForCausalLM], got {classes!r}"


def _own_names(kind: PreTrainedConfig | type[PreTrainedConfig]) -> dict[str, str]:
    """The names of transformers by an architecture's own, such as hidden_size by n_embd."""
    return {own: name for name, own in kind.attribute_map.items()}


def _size_problems(values: dict[str, Any], renamed: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of each size that is not above 0, those of a nested configuration included."""
    for key, value in values.items():
        if isinstance(value, dict) and key.endswith("_config"):
            yield from ((f"{key}.{inner}", text) for inner, text in _size_problems(value, {}))
        # other types than int are refused by transformers, which names the field
        elif renamed.get(key, key) in _SIZES and isinstance(value, int) and value < 1:
            yield key, f"must be at least 1, got {value!r}"
        elif renamed.get(key, key) == "num_hidden_layers" and isinstance(value, int) and value > _MOST_BLOCKS:
            yield key, f"is {value:,}, and no model has more than {_MOST_BLOCKS:,} blocks"


def _rope_problems(config: PreTrainedConfig) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of the rotary positions, which transformers at most warns of before it computes."""
    text = config.get_text_config()
    given = getattr(text, "rope_parameters", None)
    if not isinstance(given, dict):
        return
    nested = {f"rope_parameters.{key}": given[key] for key in text.nested_rope_parameter_keys(given)}
    for place, rope in (nested or {"rope_parameters": given}).items():
        if not isinstance(rope, dict):
            # None: layers without positions
            if rope is not None:
                yield place, f"must be a mapping, got {rope!r}"
            continue
        kind = rope.get("rope_type", "default")
        if kind not in (known := ("default", *ROPE_INIT_FUNCTIONS)):
            yield f"{place}.rope_type", f"must be one of {', '.join(known)}; got {kind!r}"
        for key in sorted(_ROPE_NUMBERS & rope.keys()):
            if rope[key] is not None and not _is_positive(rope[key]):
                yield f"{place}.{key}", f"must be a number above 0, got {rope[key]!r}"
        for key in sorted(_ROPE_LISTS & rope.keys()):
            if not (isinstance(rope[key], list) and rope[key] and all(map(_is_positive, rope[key]))):
                yield f"{place}.{key}", "must be a list of numbers above 0"


_ROPE_NUMBERS = {
    *("rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    *("beta_fast", "beta_slow", "attention_factor", "partial_rotary_factor"),
}
_ROPE_LISTS = {"short_factor", "long_factor"}


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _reason(error: BaseException) -> str:
    """What a library said; an error such as KeyError says nothing without its name."""
    bare = isinstance(error, LookupError | ArithmeticError | AttributeError | AssertionError)
    return f"{type(error).__name__}: {one_line(error)}" if bare else one_line(error)


def _from_hub(path: str, revision: str | None) -> PreTrainedConfig:
    if path.startswith(("/", "./", "../", "~")):
        raise UserError("model.path", f": no folder {path}; give an existing folder or a hub id")
    try:
        values, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
        raise_if_any(_code_problems(path, values))
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    except OSError as error:
        raise UserError.of([hub_problem("model.path", "configuration", path, revision, error)]) from error
    except REFUSALS as error:
        raise UserError("model.path", f": {path} has values that transformers refuses: {_reason(error)}") from error


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
        why = unreachable(path)
        change = "give a folder, or model.architecture in a job, to check without the hub"
        return Problem(field, f": {why}; {change}{files.did_you_mean_beside(Path(path))}")
    return Problem(field, f": the {part} {path} cannot be loaded: {_reason(error)}")


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
    for key, here, there in _compared(model.architecture or {}, given, found):
        yield Problem(f"model.architecture.{key}", f"is {here!r}, but {model.path} has {there!r}; correct it")


def _compared(
    values: Mapping[str, Any], given: PreTrainedConfig, found: PreTrainedConfig | None
) -> Iterator[tuple[str, Any, Any]]:
    """(key, value, value) of what both configurations have otherwise, of these values."""
    for key, value in values.items():
        kept = _RENAMED.get(key, key)
        here, there = getattr(given, kept), getattr(found, kept, None)
        if isinstance(value, Mapping) and isinstance(here, PreTrainedConfig):
            # the part for the text or for pictures, of which these values say not all
            yield from ((f"{key}.{inner}", *both) for inner, *both in _compared(value, here, there))
        elif here != there:
            yield key, here, there


def _causal_problems(path: str, config: PreTrainedConfig, objective: Objective) -> Iterator[Problem]:
    """Models that do not predict the next token, or would get a random head to do so."""
    named, expected = config.architectures or [], MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    is_causal = objective.model_class == SUPERVISED.model_class
    if expected is None and getattr(config, "vision_config", None) is not None:
        held = (named or [config.model_type])[0]
        text = f": {path} holds a {held}, a model of pictures that transformers loads as no causal language model"
        yield Problem("model.path", f"{text}; take a model of text alone")
    elif config.is_encoder_decoder or expected is None:
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
        # torch warns of tensors without an element, which are refused below
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model: PreTrainedModel = model_class(objective).from_config(config)
    except REFUSALS as err:
        raise UserError(
            "model", f": the configuration makes no {config.model_type} model: {_unknown_word(config, err)}"
        ) from err
    if empty := [name for name, parameter in model.named_parameters() if not parameter.numel()]:
        text = f": the configuration makes a {config.model_type} model without a number in {empty[0]}"
        raise UserError("model", f"{text}; correct the sizes in its config.json")
    return model


def _unknown_word(config: PreTrainedConfig, error: BaseException) -> str:
    """What torch or transformers said; of a word that is looked up in vain, the field that holds it."""
    word = error.args[0] if isinstance(error, KeyError) and error.args else None
    fields = [key for key, value in config.to_dict().items() if isinstance(word, str) and value == word]
    return f"{fields[0]}={word!r} is unknown" if fields else _reason(error)


def forward_problems(model: PreTrainedModel) -> Iterator[Problem]:
    """Sizes that make a model but do not fit each other, tried on two tokens without numbers, on the meta device."""
    # a mask for each pair of positions is taken as it is; transformers would look at the numbers of another
    error = _forward_error(model, torch.ones(1, 1, 2, 2, device="meta"))
    # other errors of such a pass say nothing about the sizes, nor does a mask that the model has another form for
    if any(words in str(error) for words in _DO_NOT_FIT) and _forward_error(model, None):
        text = f": the sizes in the configuration of this {model.config.model_type} do not fit each other"
        yield Problem("model", f"{text}: {one_line(error)}")


def _forward_error(model: PreTrainedModel, mask: torch.Tensor | None) -> Exception | None:
    """What ends a pass through the first two blocks; the others are like them, and would take seconds."""
    ids = torch.ones(1, 2, dtype=torch.long, device="meta")
    blocks = next((list(m) for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 2), [])
    hooks = [blocks[1].register_forward_hook(_enough)] if blocks else []
    try:
        with torch.no_grad(), suppress(_EnoughSeen):
            model(input_ids=ids, attention_mask=mask, use_cache=False)
    except Exception as error:
        return error
    finally:
        for hook in hooks:
            hook.remove()
    return None


class _EnoughSeen(Exception):
    """Ends a forward pass."""


def _enough(*_: Any) -> None:
    raise _EnoughSeen


_DO_NOT_FIT = (" must match ", " broadcast", "cannot be multiplied", "is invalid for input of size", "size mismatch")
"""Words of torch for shapes that cannot be computed with."""
