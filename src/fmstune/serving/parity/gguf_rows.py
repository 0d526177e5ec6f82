"""A GGUF file → what it makes of training's rows: as llama.cpp serves it, or without it as far as its data tells."""

import copy
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gguf import GGUFReader, LlamaFileType
from transformers import PreTrainedTokenizerBase

from fmstune.errors import UserError, one_line
from fmstune.runs.run_folder import CHAT
from fmstune.serving.llama_cpp.vocabulary import read_vocabulary
from fmstune.serving.parity.reference import limit
from fmstune.serving.parity.training_rows import TrainedRow
from fmstune.serving.parity.verdict import Cause, Served, first_difference

_PRECISION = {LlamaFileType.ALL_F32: "float32", LlamaFileType.MOSTLY_BF16: "bfloat16", LlamaFileType.MOSTLY_F16: "f16"}
"""What may differ by the type of a file; files of fewer bits are judged as q8_0."""
NOT_INSTALLED = (
    "note: llama.cpp is not installed here, so its tokens and answers were not compared: "
    "pip install llama-cpp-python, then fmstune parity RUN --gguf FILE"
)


class OfFile(NamedTuple):
    """What a file was found to make of the rows."""

    served: list[Served]
    stops: frozenset[int]
    """The tokens at which answers end."""
    dtype: str
    """How exact it is meant to be, as `verdict.TOLERANCE` names it."""
    notes: list[str]


@dataclass(frozen=True)
class _Data:
    """What a file says besides its weights."""

    path: Path
    fields: dict[str, Any]

    def of_tokenizer(self, name: str) -> Any:
        return self.fields.get(f"tokenizer.{name}")

    @property
    def begins(self) -> bool:
        """Whether the first token is put before each text."""
        return bool(self.of_tokenizer("ggml.add_bos_token"))

    @property
    def dtype(self) -> str:
        stored = self.fields.get("general.file_type")
        return next((name for kind, name in _PRECISION.items() if kind == stored), "q8_0")


def ask_gguf(path: Path, rows: Sequence[TrainedRow], tokenizer: PreTrainedTokenizerBase) -> OfFile:
    """What the file makes of the rows; raises UserError where it cannot be read."""
    data, notes = _read(path), list[str]()
    texts = [_asked(data, row, tokenizer) for row in rows]
    if (variables := _variables(tokenizer)) and any(row.messages is not None for row in rows):
        notes.append(f"note: a GGUF file holds no chat_template_kwargs; ask with {variables}, as was done here")
    if importlib.util.find_spec("llama_cpp") is not None:
        served, stops = _by_llama_cpp(data, rows, texts, tokenizer)
        return OfFile(served, stops, data.dtype, notes)
    asks = {"_target_": CHAT, "template_kwargs": variables} if rows[0].messages is not None else None
    _same_vocabulary(data, tokenizer, asks)
    first = [tokenizer.bos_token_id] if data.begins else []
    prompts = [[*first, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
    ends = (data.of_tokenizer(f"ggml.{name}_token_id") for name in ("eos", "eot"))
    stops = frozenset(one for one in ends if one is not None)
    return OfFile([Served(ids, text) for ids, text in zip(prompts, texts, strict=True)], stops, data.dtype, notes)


def _read(path: Path) -> _Data:
    try:
        fields = GGUFReader(path).fields
    except (OSError, ValueError, IndexError) as err:
        raise UserError("--gguf", f": {path} cannot be read as a GGUF file ({one_line(err)}); write it again") from err
    return _Data(path, {name: field.contents() for name, field in fields.items()})


def _variables(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return dict(tokenizer.init_kwargs.get("chat_template_kwargs") or {})


def _asked(data: _Data, row: TrainedRow, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that is asked: the conversation in the file's own template, as llama.cpp's server writes it."""
    if row.messages is None:
        return row.prompt
    template = data.of_tokenizer("chat_template")
    if template is None:
        raise UserError("parity", f": {Cause.template}: {data.path.name} has no chat template; write it again")
    text = tokenizer.apply_chat_template(
        row.messages,
        tools=row.tools,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
        **_variables(tokenizer),
    )
    # a first token that the template writes stands once (llama.cpp: common/chat.cpp, `apply`)
    return str(text).removeprefix(str(tokenizer.bos_token)) if data.begins else str(text)


def _same_vocabulary(data: _Data, tokenizer: PreTrainedTokenizerBase, format: Mapping[str, Any] | None) -> None:
    """Raise UserError where the file splits texts otherwise than the tokenizer: its lists are not the tokenizer's."""
    tokens, asked = data.of_tokenizer("ggml.tokens") or [], copy.copy(tokenizer)
    # another template is a fault of its own, which the prompts tell
    asked.chat_template = data.of_tokenizer("chat_template")
    ours = read_vocabulary(asked, max(len(tokens), len(tokenizer)), format)
    name, own = ("merges", ours.merges) if ours.kind == "gpt2" else ("scores", ours.scores)
    lists: dict[str, tuple[Sequence[Any], Sequence[Any]]] = {
        "tokens": (ours.tokens, tokens),
        "kinds of tokens": (ours.types, data.of_tokenizer("ggml.token_type") or []),
        name: (own, data.of_tokenizer(f"ggml.{name}") or []),
        "ways of splitting": ([ours.kind, ours.split], [data.of_tokenizer(f"ggml.{one}") for one in ("model", "pre")]),
        "spaces": ([ours.spaced], [data.of_tokenizer("ggml.add_space_prefix") is not False]),
    }
    for what, (wanted, found) in lists.items():
        if wanted != found:
            at = first_difference(wanted, found)
            told = [repr(one[at]) if at < len(one) else "not there" for one in (found, wanted)]
            text = f"{data.path.name} has other {what}: number {at:,} is {told[0]}, {told[1]} in training"
            raise UserError("parity", f": {Cause.base}: {text}; the tokenizer is that of another model")


def _by_llama_cpp(
    data: _Data, rows: Sequence[TrainedRow], texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Served], frozenset[int]]:
    """The rows as llama.cpp tokenises, scores and answers them, and the tokens at which it stops."""
    library = importlib.import_module("llama_cpp")
    room = max(len(row.prompt_ids) + max(len(row.answer_ids), limit(row)) for row in rows)
    try:
        model = library.Llama(
            str(data.path), n_ctx=room, n_threads=torch.get_num_threads(), logits_all=True, verbose=False
        )
    except (OSError, ValueError, RuntimeError) as err:
        raise UserError("--gguf", f": llama.cpp cannot load {data.path} ({one_line(err)}); write it again") from err
    vocabulary = library.llama_model_get_vocab(model.model)
    stops = frozenset(token for token in range(model.n_vocab()) if library.llama_vocab_is_eog(vocabulary, token))
    served = []
    for row, text in zip(rows, texts, strict=True):
        # as its server reads a text: the first token before it if the file says so, and special tokens in it
        ids = model.tokenize(text.encode(), add_bos=True, special=True)
        words = model.detokenize(ids, special=True).decode(errors="replace")
        scored = _log_probs(model, row)
        # answers to other prompts are not compared
        answer = _greedy(model, row, stops) if ids == row.prompt_ids else []
        served.append(Served(ids, words, len(ids), scored, answer))
    model.close()
    return served, stops


def _log_probs(model: Any, row: TrainedRow) -> list[float]:
    """The log-probabilities of the known answer, and of the end of the prompt."""
    model.reset()
    model.eval([*row.prompt_ids, *row.answer_ids])
    first = len(row.before)
    logits = torch.from_numpy(model.scores[first - 1 : first - 1 + len(row.scored)].copy())
    found = logits.log_softmax(-1).gather(1, torch.tensor(row.scored)[:, None])
    return [float(one) for one in found[:, 0]]


def _greedy(model: Any, row: TrainedRow, stops: frozenset[int]) -> list[int]:
    """The greedy answer behind the prompt that has just been read, with the token that ends it."""
    model.n_tokens = len(row.prompt_ids)
    answer: list[int] = []
    while len(answer) < limit(row):
        answer.append(int(model.scores[model.n_tokens - 1].argmax()))
        if answer[-1] in stops:
            break
        model.eval(answer[-1:])
    return answer
