"""job.model → tokenizer and model, with special tokens that the model knows about."""

import dataclasses
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jinja2.exceptions import TemplateError
from safetensors import SafetensorError
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    Mxfp4Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.chat_template_utils import render_jinja_template

from fmstune import files
from fmstune.checks.fms import package_problems
from fmstune.checks.precision import Precision
from fmstune.checks.weights import weight_problems
from fmstune.config.choices import Attention, Backend, Device, Dtype
from fmstune.config.job import SUPERVISED, Model, Objective, Quantization
from fmstune.data.templates import LimitReached, check_template, limited, names
from fmstune.errors import Problem, UserError, raise_if_any
from fmstune.models import architecture
from fmstune.models.saved_weights import incomplete_problems
from fmstune.models.varlen import VARLEN, varlen_problems

log = logging.getLogger(__name__)

PAD_TOKEN = "<pad>"


class Tokenizer(NamedTuple):
    """A tokenizer whose special tokens are all set, and which of its ids the model has never seen."""

    tokenizer: PreTrainedTokenizerBase
    added: tuple[int, ...] = ()
    """Ids of tokens that were added here."""
    to_train: tuple[int, ...] = ()
    """Those of them that carry meaning: all but the pad token, whose embedding is never looked at."""


def load_tokenizer(model: Model, *, local_files_only: bool = False, to_train: bool = True) -> Tokenizer:
    """The tokenizer with the job's special tokens and a pad token; raises UserError where it cannot be loaded."""
    place, field = files.resolve(model.tokenizer or model.path), "model.tokenizer" if model.tokenizer else "model.path"
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            place, revision=model.revision, trust_remote_code=False, local_files_only=local_files_only
        )
    except Exception as err:  # tokenizers raises it bare for what its files hold
        raise UserError.of([architecture.hub_problem(field, "tokenizer", place, model.revision, err)]) from err
    raise_if_any(_loses_text(tokenizer, field, place))
    if model.chat_template is not None:
        tokenizer.chat_template = _chat_template(model.chat_template)
    before = len(tokenizer)
    if model.special_tokens:
        tokenizer.add_special_tokens(dict(model.special_tokens))
    meaningful = len(tokenizer)
    if tokenizer.eos_token is None:
        raise UserError(place, ": the tokenizer has no end-of-sequence token; set model.special_tokens.eos_token")
    if tokenizer.pad_token is None and to_train:
        _set_pad(tokenizer)
    elif tokenizer.pad_token is None:
        # nothing is trained: end-of-sequence, which the model has, is as good under a mask
        tokenizer.pad_token = tokenizer.eos_token
    return Tokenizer(tokenizer, tuple(range(before, len(tokenizer))), tuple(range(before, meaningful)))


def _chat_template(file: str) -> str:
    """The template's text, which is saved with the tokenizer; raises UserError where it cannot be read or compiled."""
    path = files.user_path(files.resolve(file))
    try:
        text = path.read_text(encoding="utf-8")
        check_template(text)
        with limited(text):
            # render_jinja_template compiles before it looks at the conversations
            render_jinja_template([], chat_template=text)
        names[text] = f"the chat template {path}"
    except (OSError, UnicodeDecodeError) as err:
        raise UserError("model.chat_template", f": {path} cannot be read ({err})") from err
    except LimitReached as err:
        raise UserError("model.chat_template", f": {path}: {err}; simplify the template") from err
    except TemplateError as err:
        raise UserError("model.chat_template", f": {path} is not a Jinja template ({err})") from err
    return text


def _loses_text(tokenizer: PreTrainedTokenizerBase, field: str, place: str) -> Iterator[Problem]:
    """A tokenizer that gives no spaces back; transformers goes by the model's type and can take the wrong class."""
    probe = "a word and more"
    ids = tokenizer(probe, add_special_tokens=False)["input_ids"]
    back = tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip()
    if back.lower() != probe:
        text = f": the tokenizer of {place} (a {type(tokenizer).__name__}) turns {probe!r} into {back!r}"
        yield Problem(field, f"{text}, so text would be lost; set model.tokenizer to one that fits")


def _set_pad(tokenizer: PreTrainedTokenizerBase) -> None:
    """Take a token that the vocabulary has already before growing it: padding is masked, so any but eos will do."""
    if PAD_TOKEN in tokenizer.get_vocab():
        tokenizer.pad_token = PAD_TOKEN
    elif tokenizer.unk_token is not None and tokenizer.unk_token != tokenizer.eos_token:
        tokenizer.pad_token = tokenizer.unk_token
    else:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    log.info("the tokenizer had no pad token; it is %s now", tokenizer.pad_token)


def find_device(device: Device) -> str:
    """The device to compute on, as torch names it; raises UserError when it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device is Device.auto:
        return next(str(name) for name, available in there.items() if available)
    if not there[device.value]:
        found = ", ".join(name for name, available in there.items() if available)
        raise UserError("launcher.device", f"={device.value} is not available here (found {found})")
    return str(device.value)


def find_attention(attention: Attention, device: str, precision: Precision, *, end_to_end: bool = False) -> str:
    """The kernel to use; raises UserError where it cannot run.

    `auto` takes FlashAttention-2 where it can run, else `varlen` where it is fast and rows lie `end_to_end`, else SDPA.
    """
    half = bool({precision.weights, precision.autocast} & {"bfloat16", "float16"})
    needed = {
        f"a CUDA device (this is {device})": device == "cuda",
        "the package flash-attn (pip install 'fmstune[flash-attn]')": importlib.util.find_spec("flash_attn"),
        "a dtype of bfloat16 or float16": half,
    }
    missing = [what for what, found in needed.items() if not found]
    # transformers would download a kernel, or fail later
    if attention is Attention.flash_attention_2 and missing:
        raise UserError("model.attention", f"=flash_attention_2 needs {' and '.join(missing)}; choose sdpa")
    if attention is Attention.varlen and device == "cuda" and not half:
        text = "=varlen on a CUDA device needs a dtype of bfloat16 or float16; set model.dtype, or choose sdpa"
        raise UserError("model.attention", text)
    if attention is Attention.auto:
        otherwise = Attention.varlen if end_to_end and device == "cuda" and half else Attention.sdpa
        return str((otherwise if missing else Attention.flash_attention_2).value)
    return str(attention.value)


def usable_attention(model: PreTrainedModel, attention: str, *, asked: bool = False) -> str:
    """The kernel, or the next that the architecture has; raises UserError where the job `asked` for the kernel."""
    if attention == VARLEN:
        if not (problems := list(varlen_problems(model))):
            return attention
        if asked:
            raise UserError.of(problems)
        attention = "sdpa"
    try:
        return str(model.get_correct_attn_implementation(attention))
    except ImportError:
        # not installed here, where the job need not run
        return attention
    except ValueError as err:
        if asked:
            text = f"={attention}: transformers' {type(model).__name__} cannot use it; choose auto or eager"
            raise UserError("model.attention", text) from err
        return "eager"


def bits_and_bytes(quantization: Quantization | None, precision: Precision) -> BitsAndBytesConfig | None:
    """How transformers loads a quantised base; None for a whole one.

    `peft.prepare_model_for_kbit_training` is not called: it would cast embeddings, norms and output layer to float32,
    which autocast does where needed; PEFT freezes the base, and Trainer sets up activation checkpointing.
    """
    if quantization is None:
        return None
    values = {name: getattr(value, "value", value) for name, value in vars(quantization).items()}
    if quantization.bnb_4bit_compute_dtype is Dtype.auto:
        values["bnb_4bit_compute_dtype"] = precision.autocast or precision.weights
    return BitsAndBytesConfig(**values)


def unpacking(config: PreTrainedConfig) -> Mxfp4Config | None:
    """How weights in 4-bit floats, as GPT-OSS has them, are unpacked: transformers trains and merges no packed ones."""
    packed = getattr(config, "quantization_config", None)
    method = packed.get("quant_method") if isinstance(packed, dict) else getattr(packed, "quant_method", None)
    return Mxfp4Config(dequantize=True) if method == "mxfp4" else None


def load_model(
    model: Model,
    tokenizer: Tokenizer,
    objective: Objective = SUPERVISED,
    *,
    dtype: str,
    attention: str,
    quantization_config: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """The model in this dtype with an embedding for every token; safetensors only; raises UserError."""
    place, kind = files.resolve(model.path), architecture.model_class(objective)
    # that of the weights, which says how they are packed
    config = architecture.model_configuration(dataclasses.replace(model, architecture=None), objective)
    if attention not in ("eager", "sdpa"):
        attention = usable_attention(architecture.build_empty(config, objective), attention)
    if model.backend is Backend.fms:
        raise_if_any(package_problems())
        # an extra, and so imported where it is asked for alone
        from fmstune.models import fms

        kind = fms.fms_model_class(architecture.model_configuration(model))
    if (folder := files.user_path(place)).is_dir():
        raise_if_any(weight_problems("model.path", folder))
    try:
        loaded, found = kind.from_pretrained(
            place,
            revision=model.revision,
            dtype=getattr(torch, dtype),
            # None: SDPA, or eager where the architecture has no SDPA
            attn_implementation=None if attention == "sdpa" else attention,
            quantization_config=quantization_config or unpacking(config),
            use_safetensors=True,
            trust_remote_code=False,
            # both are refused below, with names
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **objective.model_fields,
        )
    except (OSError, SafetensorError, *architecture.REFUSALS) as err:
        raise UserError.of([architecture.hub_problem("model.path", "model", place, model.revision, err)]) from err
    raise_if_any(incomplete_problems(place, found, objective.new_modules))
    add_tokens(loaded, tokenizer.tokenizer, tokenizer.added)
    return loaded


def add_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, added: Sequence[int]) -> None:
    """Give added tokens the mean of the old embeddings; the matrix grows only when it has no spare rows.

    The mean keeps new logits unremarkable (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
    Models"); a random row can dominate the softmax.
    """
    if not added:
        return
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        # where the two are tied, this sets the same rows twice
        for table in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
            table.weight[list(added)] = table.weight[: min(added)].float().mean(dim=0).to(table.weight.dtype)
