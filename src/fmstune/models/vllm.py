"""A LoRA adapter in the form that vLLM reads; vLLM refuses or ignores much of what PEFT writes.

vLLM (vllm/lora: peft_helper.py, lora_model.py, until 0.11 models.py) takes tensors named `….lora_A.weight`,
`….lora_B.weight`, `….lora_embedding_A` and `…_B`, and raises at any other. Until 0.11 it reads the rows of added
tokens from `new_embeddings.safetensors`, if `embed_tokens` and `lm_head` have LoRA tensors of their own;
from 0.12 on an adapter adds no tokens (vllm-project/vllm#28382).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from fmstune import files
from fmstune.errors import Problem, raise_if_any
from fmstune.models import architecture, base_identity
from fmstune.models.save import write_adapter_ends
from fmstune.models.tuned import Place

NEW_EMBEDDINGS = "new_embeddings.safetensors"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of `--max-lora-rank` that every version of vLLM takes."""

_PREFIX = "base_model.model."
_LORA = re.compile(r"\.(lora_[AB]\.weight|lora_embedding_[AB])$")
_TABLE = re.compile(r"^(.+?)(?:\.token_adapter)?(?:\.base_layer)?\.weight$")
_ROWS = re.compile(r"^(.+?)(?:\.token_adapter)?\.trainable_tokens_delta$")


class Embeddings(NamedTuple):
    """The embeddings of the base before tokens were added: their size, and the names of the two modules."""

    rows: int
    hidden_size: int
    input: str
    output: str
    tied: bool
    """Whether the two are one matrix."""


class Saved(NamedTuple):
    """The tensors of an adapter, sorted."""

    lora: dict[str, Tensor]
    tables: dict[str, Tensor]
    """Whole embeddings by the name of their module."""
    trained: dict[str, Tensor]
    """Trained rows of an embedding by the name of its module."""
    others: list[str]


def export_adapter(
    place: Place, config: PeftConfig, base: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, folder: Path, out: str
) -> list[str]:
    """Write the adapter for vLLM, return the lines of its report; raises UserError with all that vLLM cannot take."""
    raise_if_any(config_problems(place.model, config))
    source = Path(place.model if Path(place.model).is_dir() else snapshot_download(place.model))
    saved = sort(load_file(source / str(SAFETENSORS_WEIGHTS_NAME)))
    embeddings = embeddings_of(base)
    given = config.trainable_token_indices or []
    # tokens whose input embeddings were trained
    indices = sorted({index for some in given.values() for index in some} if isinstance(given, dict) else given)
    # tokens behind the base's embeddings that mean something: vLLM pads nothing
    added = [index for index in range(embeddings.rows, len(tokenizer)) if index != tokenizer.pad_token_id]
    raise_if_any(token_problems(place.model, saved, embeddings, indices, added))
    tensors, rows = _for_vllm(saved, embeddings, indices, len(tokenizer) if added else None, config.r)
    save_file(tensors, folder / str(SAFETENSORS_WEIGHTS_NAME), metadata={"format": "pt"})
    if rows:
        save_file(rows, folder / NEW_EMBEDDINGS, metadata={"format": "pt"})
    modules = sorted({_last(_LORA.sub("", name)) for name in tensors})
    replace(config, target_modules=modules, trainable_token_indices=None).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ends = write_adapter_ends(folder, tokenizer, _generation_config(place, base))
    if (identity := base_identity.read_base(source)) is not None:
        base_identity.write_base(identity, folder)
    lines = [
        f"wrote {out}: LoRA of rank {config.r} for vLLM, {len(tensors):,} tensors",
        " ".join(["vllm serve", *serving_words(place, config, out, ends=ends)]),
    ]
    if added:
        lines.append(
            f"note: the embeddings of {_tokens(len(added), 'added ')} are in {NEW_EMBEDDINGS}, which vLLM reads until "
            "0.11; later versions add no tokens by an adapter, so merge for them (leave --export out)"
        )
    return lines


def _generation_config(place: Place, base: PreTrainedConfig) -> GenerationConfig:
    """What the base's answers end with, and how it is asked."""
    try:
        return GenerationConfig.from_pretrained(files.resolve(str(place.base)), revision=place.revision)
    except OSError:  # a base without the file
        return GenerationConfig.from_model_config(base)


def serving_words(place: Place, config: PeftConfig, out: str, *, ends: bool) -> list[str]:
    """The words of `vllm serve` for an adapter that was written into the folder `out`.

    With `ends`, the folder also says at which tokens answers end: vLLM would read those of the base.
    """
    rank, served = next(known for known in RANKS if known >= config.r), files.resolve(str(place.base))
    words = [served, "--tokenizer", out, *(["--generation-config", out] if ends else [])]
    return [*words, "--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"tuned={out}"]


def config_problems(model: str, config: PeftConfig) -> Iterator[Problem]:
    """Parts of the configuration that vLLM refuses (vllm/lora/peft_helper.py) or ignores without a word."""
    if not isinstance(config, LoraConfig):
        yield _refusal(f"{model} is {config.peft_type.value}, and vLLM reads LoRA only")
        return
    reasons = {
        "is DoRA": config.use_dora,
        "has whole modules (modules_to_save)": config.modules_to_save,
        "has biases": config.bias != "none" or config.lora_bias,
        "has ranks or alphas of their own for some modules, which vLLM does not read": config.rank_pattern
        or config.alpha_pattern,
        f"is of rank {config.r}, above vLLM's {RANKS[-1]}": config.r > RANKS[-1],
    }
    yield from (_refusal(f"{model} {reason}") for reason, holds in reasons.items() if holds)


def _refusal(text: str) -> Problem:
    return Problem("--export", f"vllm_lora: {text}; merge it instead")


def sort(tensors: Mapping[str, Tensor]) -> Saved:
    """Tell LoRA's own tensors from embeddings that were saved with them."""
    found = Saved({}, {}, {}, [])
    for key, tensor in tensors.items():
        name = key.removeprefix(_PREFIX)
        if _LORA.search(name):
            found.lora[key] = tensor
        elif match := _ROWS.match(name):
            found.trained[match[1]] = tensor
        elif match := _TABLE.match(name):
            found.tables[match[1]] = tensor
        else:
            found.others.append(name)
    return found


def embeddings_of(base: PreTrainedConfig) -> Embeddings:
    """The embeddings by name, from the configuration alone."""
    model = architecture.build_empty(base)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    rows, hidden_size = table.weight.shape
    return Embeddings(rows, hidden_size, names[id(table)], names[id(head)], bool(base.tie_word_embeddings))


def token_problems(
    model: str, saved: Saved, embeddings: Embeddings, indices: Sequence[int], added: Sequence[int]
) -> Iterator[Problem]:
    """Embeddings that vLLM has no place for."""
    known = {embeddings.input, embeddings.output}
    if unknown := sorted({*saved.others, *(saved.tables.keys() - known), *(saved.trained.keys() - {embeddings.input})}):
        yield _refusal(f"vLLM has no place for {', '.join(unknown[:5])} of {model}")
    if within := [index for index in indices if index < embeddings.rows]:
        trained = f"{model} trained the embeddings of tokens that the base has rows for (first {within[0]})"
        yield _refusal(f"{trained}, and vLLM reads the embeddings of the base")
    if added and _last(embeddings.input) != "embed_tokens":
        reads = f"vLLM reads added tokens only of an embedding called embed_tokens, not {_last(embeddings.input)}"
        yield _refusal(f"{model} added {_tokens(len(added))}, and {reads}")
    if added and (gone := ({embeddings.input} if embeddings.tied else known) - saved.tables.keys()):
        yield _refusal(f"{model} added tokens, and holds no {' and no '.join(sorted(gone))}")


def _for_vllm(
    saved: Saved, embeddings: Embeddings, indices: Sequence[int], vocabulary: int | None, rank: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The adapter's tensors and the rows of added tokens; `vocabulary` is None where no added token means anything."""
    if vocabulary is None:
        return saved.lora, {}
    new = saved.tables[embeddings.input][embeddings.rows : vocabulary].clone()
    for place, index in enumerate(indices):
        new[index - embeddings.rows] = saved.trained[embeddings.input][place].to(new.dtype)
    out = new if embeddings.tied else saved.tables[embeddings.output][embeddings.rows : vocabulary]
    # LoRA of zeros on both embeddings: vLLM looks at new rows only of modules that the adapter targets
    table, head = f"{_PREFIX}{embeddings.input}", f"{_PREFIX}{embeddings.output}"
    zeros = {
        f"{table}.lora_embedding_A": torch.zeros(rank, vocabulary),
        f"{table}.lora_embedding_B": torch.zeros(embeddings.hidden_size, rank),
        f"{head}.lora_A.weight": torch.zeros(rank, embeddings.hidden_size),
        f"{head}.lora_B.weight": torch.zeros(vocabulary, rank),
    }
    return {**zeros, **saved.lora}, {"input_embeddings": new, "output_embeddings": out.clone()}


def _tokens(count: int, kind: str = "") -> str:
    return f"{count} {kind}token{'' if count == 1 else 's'}"


def _last(name: str) -> str:
    return name.rpartition(".")[2]
