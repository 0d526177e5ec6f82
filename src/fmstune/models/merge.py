"""`fmstune merge` in the runner: adapters → the weights of their base; what was written is compared, then kept."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import align_special_tokens

from fmstune import __version__
from fmstune import files as package_files
from fmstune.config.choices import Dtype
from fmstune.config.job import Model
from fmstune.config.requests import Merge
from fmstune.errors import Problem, UserError, one_line, raise_if_any
from fmstune.files import real_path, user_path, write_aside, write_json
from fmstune.models import architecture, base_identity, load, shapes, tuned, vllm
from fmstune.models.load import Tokenizer
from fmstune.models.save import name_turn_ends
from fmstune.models.tuned import Place
from fmstune.runs import model_card, run_folder
from fmstune.tables import show_bytes

RECORD = "merge.json"
"""Beside the merged weights: what was merged into what, and how well that went."""

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""How far logits may lie apart, as a share of their size (both by root mean square): weights and sums are rounded.

A Llama of 30 layers, LoRA on all of its matrices: 1e-6 in float32, 3e-3 in float16, 2e-2 in bfloat16.
"""

PROMPTS = (
    "The parcel came late, and the box was open when I found it.",
    "def add(a, b):\n    return a + b\n",
    "Below is an instruction that describes a task. Write a response.",
    "3 4 15 926, 53589! € and über",
)
"""Texts whose logits are compared; one of the newest tokens is put into each."""


class Logits(NamedTuple):
    """Logits of the prompts, a row a position."""

    base: torch.Tensor
    adapted: torch.Tensor


class Difference(NamedTuple):
    """How the logits of the merged model differ from those of the adapters on their base."""

    largest: float
    """The largest difference of all."""
    share: float
    """Root mean square of the differences by that of the logits."""
    moved: float
    """The same of the adapters on their base by the base alone: what the adapters do."""
    same: int
    """Positions where the likeliest token is the same."""
    positions: int


class Asked(NamedTuple):
    """What is to be merged, checked."""

    places: list[Place]
    weights: tuple[float, ...]
    tokenizers: list[PreTrainedTokenizerBase]
    config: PreTrainedConfig
    """Of the base, or of the whole model."""
    dtype: str


def check_merge(request: Merge, *, whole_models: bool = False) -> Asked:
    """Find the adapters and their base; raises UserError where they cannot be merged, before weights are read.

    With `whole_models`, a whole model stands for itself.
    """
    places = [tuned.locate(model, request.base_model_name_or_path, force=request.force) for model in request.model]
    whole = [place.model for place in places if not place.base]
    if not whole_models or len(places) > 1:
        raise_if_any(Problem("--model", f": {model} is a whole model, with nothing to merge") for model in whole)
    raise_if_any(_several_bases(places))
    configs = [tuned.adapter_config(place.model) for place in places if place.base]
    weights = request.weight or (1.0,) * len(places)
    raise_if_any(_unmergeable(request.model, configs, weights) if configs else ())
    tokenizers = [tuned.tokenizer_of(place).tokenizer for place in places]
    raise_if_any(_several_vocabularies(request.model, tokenizers))
    base = _base(places[0])
    # that of the base, unless another is asked for
    saved = str(base.dtype).removeprefix("torch.")
    dtype = request.dtype.value if request.dtype is not Dtype.auto else saved if saved in TOLERANCE else "float32"
    return Asked(places, weights, tokenizers, base, dtype)


def run_merge(request: Merge, prove: Callable[[Merge, Path], str | None] | None = None) -> int:
    """Merge, or export for vLLM; the folder is written whole and verified, or not at all.

    `prove` compares what was written with training; it raises UserError, or gives the lines that say what it compared.
    """
    asked = check_merge(request)
    places, weights, tokenizers, _, dtype = asked
    if request.export is not None:
        config = tuned.adapter_config(places[0].model)
        with new_folder(real_path(user_path(request.out))) as aside:
            lines = vllm.export_adapter(places[0], config, asked.config, tokenizers[0], aside, request.out)
            proven = prove(request, aside) if prove is not None else None
            lines += [proven] if proven is not None else []
        print("\n".join(lines))
        return 0
    with new_folder(real_path(user_path(request.out))) as aside:
        expected, model = merge_adapters(asked)
        parameters = shapes.parameters(model)
        model.save_pretrained(aside, max_shard_size=request.max_shard_size)
        tokenizers[0].save_pretrained(aside)
        name_turn_ends(aside, tokenizers[0])
        # two models at once would take twice the memory
        del model
        gc.collect()
        written = load.load_model(Model(path=str(aside)), Tokenizer(tokenizers[0]), dtype=dtype, attention="sdpa")
        found = difference(expected, _logits(written.eval(), tokenizers[0]))
        raise_if_any(_too_different(found, dtype))
        adapters = list(zip(request.model, weights, strict=True))
        merged = [{"model": name, "weight": weight} for name, weight in adapters]
        identity = asdict(base_identity.identify_base(str(places[0].base), places[0].revision))
        facts = {"dtype": dtype, **found._asdict(), "tolerance": TOLERANCE[dtype]}
        write_json(aside / RECORD, {"adapters": merged, "base": identity, **facts})
        (aside / model_card.MODEL_CARD).write_text(
            _card(places[0], adapters, dtype, found, tokenizers[0]), encoding="utf-8"
        )
        sizes = [file.stat().st_size for file in aside.glob("*.safetensors")]
        del written
        proven = prove(request, aside) if prove is not None else None
    _report(request, places, dtype, found, parameters, sizes)
    if proven is not None:
        print(proven)
    return 0


def _several_bases(places: Sequence[Place]) -> Iterator[Problem]:
    bases = {str(real_path(str(place.base))): str(place.base) for place in places}
    if len(bases) > 1:
        change = "pass the one to merge them into with --base_model_name_or_path, if they are one model in two places"
        text = f": the adapters were tuned on different bases ({', '.join(bases.values())}); {change}"
        yield Problem("--model", text)


def _unmergeable(named: Sequence[str], configs: Sequence[PeftConfig], weights: Sequence[float]) -> Iterator[Problem]:
    """Adapters without weights that could be merged, or whose effects do not add up."""
    weighed = len(configs) > 1 or set(weights) != {1.0}
    for model, config in zip(named, configs, strict=True):
        method = getattr(config.peft_type, "value", config.peft_type)
        if config.is_prompt_learning:
            why = "it learnt virtual tokens that stand before each prompt, and changed no weight that could be merged"
            yield Problem("--model", f": {model} is {method}: {why}; fmstune generate and PEFT use it as it is")
        elif not hasattr(PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type), "merge_and_unload"):
            text = f": {model} is {method}, which PEFT cannot merge; fmstune generate uses it as it is"
            yield Problem("--model", text)
        elif weighed and (what := _not_additive(config)) is not None:
            text = f": {model} {what}, which can neither be weighted nor added to another; merge it alone"
            yield Problem("--model", text)


def _not_additive(config: PeftConfig) -> str | None:
    """The part of an adapter whose effect does not add up; None where it has none."""
    if not isinstance(config, LoraConfig):
        return f"is {getattr(config.peft_type, 'value', config.peft_type)}"
    if config.use_dora:
        return "is DoRA, which also sets the length of each column"
    if config.trainable_token_indices:
        return "holds trained embeddings of tokens"
    if config.modules_to_save:
        return f"holds whole modules ({', '.join(sorted(config.modules_to_save))})"
    return "holds biases" if config.bias != "none" else None


def _several_vocabularies(named: Sequence[str], tokenizers: Sequence[PreTrainedTokenizerBase]) -> Iterator[Problem]:
    """Adapters that count their tokens differently cannot share one embedding."""
    for (one, first), (other, second) in pairwise(zip(named, tokenizers, strict=True)):
        if different := first.get_vocab().items() ^ second.get_vocab().items():
            number, token = min((number, token) for token, number in different)
            text = f": {one} and {other} have different vocabularies, first at token {number} ({token!r})"
            yield Problem("--model", text)


def _base(place: Place) -> PreTrainedConfig:
    """The configuration of the base, or of the whole model; raises UserError for a quantised one."""
    named = place.base or place.model
    config = architecture.model_configuration(Model(path=named, revision=place.revision))
    if getattr(config, "quantization_config", None) is not None:
        change = "pass the whole base with --base_model_name_or_path"
        text = f": the base {named} is quantised, and an update would be lost in its few bits; {change}"
        raise UserError("--model", text)
    return config


def merge_adapters(asked: Asked) -> tuple[Logits, PreTrainedModel]:
    """The logits of the adapters on their base, and the base with the adapters merged into it, module by module."""
    places, weights, (tokenizer, *_), _, dtype = asked
    known = Tokenizer(tokenizer)
    base = tuned.whole(places[0], known, dtype=dtype, attention="sdpa")
    tuned.grow(base, known)
    names = [f"adapter_{number}" for number in range(len(places))]
    adapted: PreTrainedModel | PeftModel = base
    for name, place in zip(names, places, strict=True):
        adapted = tuned.adapted(adapted, place.model, name)
    if len(names) > 1:
        adapted.base_model.set_adapter(names)
    # scaled one by one, the sum is exact for any ranks, unlike one adapter made of several
    for layer in (module for module in adapted.modules() if isinstance(module, LoraLayer)):
        for name, weight in zip(names, weights, strict=True):
            if name in layer.scaling:
                layer.scaling[name] *= weight
    adapted.eval()
    with adapted.disable_adapter():
        alone = _logits(adapted, tokenizer)
    expected = Logits(alone, _logits(adapted, tokenizer))
    try:
        model: PreTrainedModel = adapted.merge_and_unload(safe_merge=True, adapter_names=names)
    except (ValueError, NotImplementedError, RuntimeError, AttributeError) as err:
        given = ", ".join(place.model for place in places)
        raise UserError("--model", f": PEFT cannot merge {given}: {one_line(err)}") from err
    # as Trainer does for a fully tuned model: the tokenizer may end a text otherwise than the base did
    align_special_tokens(model, tokenizer)
    return expected, model


def _logits(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    inputs = [torch.tensor([ids[:positions]]) for ids in prompts(tokenizer)]
    with torch.inference_mode():
        return torch.cat([model(input_ids=ids, use_cache=False).logits[0].float() for ids in inputs])


def prompts(tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """The prompts in tokens, each with one of the newest tokens behind its first."""
    for newest, text in zip(range(len(tokenizer) - 1, -1, -1), PROMPTS, strict=False):
        first, *others = tokenizer(text)["input_ids"]
        yield [first, newest, *others]


def difference(expected: Logits, found: torch.Tensor) -> Difference:
    """Compare logits of the same prompts."""
    size, off = _root_mean_square(expected.adapted), expected.adapted - found
    return Difference(
        largest=off.abs().max().item(),
        share=_root_mean_square(off) / size,
        moved=_root_mean_square(expected.adapted - expected.base) / size,
        same=int((expected.adapted.argmax(-1) == found.argmax(-1)).sum()),
        positions=len(found),
    )


def _root_mean_square(values: torch.Tensor) -> float:
    return values.square().mean().sqrt().item()


def _too_different(found: Difference, dtype: str) -> Iterator[Problem]:
    # written so that a NaN is above it, too
    if not found.share <= TOLERANCE[dtype]:
        by = f"{found.share:.1e} of their size (up to {found.largest:.3g}), above {TOLERANCE[dtype]:.0e} for {dtype}"
        text = f": the merged model is not the adapter on its base: logits differ by {by}; try --dtype float32"
        yield Problem("--model", text)


def _card(
    place: Place, adapters: list[tuple[str, float]], dtype: str, found: Difference, tokenizer: PreTrainedTokenizerBase
) -> str:
    base = str(place.base)
    return model_card.merge_card(
        base,
        adapters,
        model_card.read_licence(user_path(package_files.resolve(base))),
        dtype=dtype,
        difference=(
            f"Its logits differ from those of the adapters on their base by {found.share:.1e} of their size "
            f"(root mean square); the likeliest token is the same at {found.same} of {found.positions} positions."
        ),
        versions={"fmstune": __version__, **{name: version(name) for name in ("peft", "torch", "transformers")}},
        chat=tokenizer.init_kwargs.get(run_folder.ASKED_ALIKE["template_kwargs"]),
    )


def _report(
    request: Merge, places: Sequence[Place], dtype: str, found: Difference, parameters: int, sizes: Sequence[int]
) -> None:
    adapters = "1 adapter" if len(places) == 1 else f"{len(places)} adapters"
    print(f"merged {adapters} into {places[0].base}: {parameters:,} parameters in {dtype}")
    by = f"by up to {found.largest:.2g}, by {found.share:.1e} of their size (tolerance {TOLERANCE[dtype]:.0e})"
    print(f"logits differ {by}; the likeliest token is the same at {found.same} of {found.positions} positions")
    if found.moved < 4 * found.share:
        rounds = f"{dtype} rounds logits by {found.share:.1e} of their size, and the adapters move them by"
        print(f"note: {rounds} {found.moved:.1e}; --dtype float32 keeps more of what was learnt")
    files = "1 file" if len(sizes) == 1 else f"{len(sizes)} files"
    print(f"wrote {request.out}: {files} of weights, {show_bytes(sum(sizes))}")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A new folder that is renamed to `out`, or removed after an error."""
    try:
        with write_aside(out) as aside:
            aside.mkdir()
            yield aside
            run_folder.share_weights(aside)
    except (OSError, SafetensorError) as err:
        reason = getattr(err, "strerror", None) or one_line(err)
        raise UserError("--out", f": {out} cannot be written ({reason}); choose another folder") from err
