"""A tokenizer of transformers → the vocabulary of a GGUF file; refused where llama.cpp would split texts otherwise."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from fmstune.data.chat_template import answer_ends, chat_template
from fmstune.data.messages import Turn
from fmstune.data.tokens import RowProblem
from fmstune.errors import UserError
from fmstune.runs.run_folder import CHAT

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPLITS = {
    rf"{_ENDINGS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    rf"{_ENDINGS}|{_WORDS}|\p{{N}}|{_REST}": "qwen2",
}
"""How byte-level tokenizers split a text into words, by the name of llama.cpp (src/llama-vocab.cpp, `regex_exprs`)."""


class Vocabulary(NamedTuple):
    """What a GGUF file says of a tokenizer."""

    kind: str
    """`llama`: pieces of SentencePiece; `gpt2`: pairs of bytes."""
    split: str
    tokens: list[str]
    types: list[TokenType]
    scores: list[float]
    """Of pieces; higher ones are joined first."""
    merges: list[str]
    """Of pairs of bytes, the first ones first."""
    begins: bool = False
    """Whether the first token is put before each text."""
    spaced: bool = True
    """Of pieces: whether a text begins with a space, and so does what stands behind a special token."""


def read_vocabulary(
    tokenizer: PreTrainedTokenizerBase, rows: int, format: Mapping[str, Any] | None = None
) -> Vocabulary:
    """The vocabulary for embeddings of so many rows, to be asked in this data format.

    Raises UserError for a tokenizer that llama.cpp lacks.
    """
    found = json.loads(tokenizer.backend_tokenizer.to_str())
    model = found["model"]
    if model["type"] != "BPE":
        raise _unknown(f"it is {model['type']} and not BPE")
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    pieces = _has_pieces(found)
    split = "default" if pieces else _split_of(found)
    ranks = {"".join(pair): -float(rank) for rank, pair in reversed(list(enumerate(merges)))}
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [TokenType.UNUSED] * rows
    for text, number in model["vocab"].items():
        tokens[number], types[number] = text, _type_of(text) if pieces else TokenType.NORMAL
    if pieces and tokenizer.unk_token_id is not None:
        types[tokenizer.unk_token_id] = TokenType.UNKNOWN
    for added in found["added_tokens"]:
        number = added["id"]
        tokens[number] = added["content"]
        if types[number] is not TokenType.UNKNOWN:
            types[number] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    scores = [ranks.get(token, 0.0) for token in tokens]
    kind, begins = "llama" if pieces else "gpt2", begins_with_bos(tokenizer, format)
    spaced = not (pieces and _is_spaced_once(found) and _begins_with_special(tokenizer, format))
    return Vocabulary(kind, split, tokens, types, scores, list(map(" ".join, merges)), begins, spaced)


def _type_of(piece: str) -> TokenType:
    return TokenType.BYTE if piece.startswith("<0x") and len(piece) == 6 else TokenType.NORMAL


def _has_pieces(found: dict[str, Any]) -> bool:
    """Whether spaces are `▁` and unknown characters bytes, as in Llama 2."""
    if not found["model"].get("byte_fallback"):
        return False
    normalizer, pre_tokenizer = found["normalizer"], found["pre_tokenizer"]
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    prepends = pre_tokenizer is None and [step["type"] for step in steps] == ["Prepend", "Replace"]
    if not prepends and not steps and pre_tokenizer is not None and pre_tokenizer["type"] == "Metaspace":
        prepends = not pre_tokenizer.get("split") and pre_tokenizer["prepend_scheme"] != "never"
    if prepends:
        return True
    raise _unknown("its pieces do not begin with a space")


def _split_of(found: dict[str, Any]) -> str:
    """How the tokenizer splits a text into words, in llama.cpp's name for it."""
    if found["normalizer"] is not None and found["normalizer"]["type"] != "NFC":
        raise _unknown(f"it changes texts before it splits them ({found['normalizer']['type']})")
    given = found["pre_tokenizer"] or {"type": "none"}
    steps = given.get("pretokenizers", [given])
    if steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        raise _unknown("its tokens are not bytes of the text")
    before = [(step["type"], step.get("pattern", {}).get("Regex")) for step in steps[:-1]]
    if steps[-1]["use_regex"]:
        if not before:
            return "gpt-2"
        if before == [("Digits", None)] and steps[0]["individual_digits"]:
            return "smollm"
    elif len(before) == 1 and before[0][0] == "Split" and before[0][1] in _SPLITS:
        return _SPLITS[before[0][1]]
    raise _unknown("llama.cpp does not split texts in its way")


def _unknown(why: str) -> UserError:
    return UserError("--export", f"gguf: the tokenizer cannot be written, as {why}; merge without --export")


def add_vocabulary(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, found: Vocabulary) -> None:
    """Put the tokens, the special ones and the chat template into the file."""
    writer.add_tokenizer_model(found.kind)
    writer.add_tokenizer_pre(found.split)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.types)
    if found.kind == "llama":
        writer.add_token_scores(found.scores)
        writer.add_add_space_prefix(found.spaced)
    else:
        writer.add_token_merges(found.merges)
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None:
            add(number)
    writer.add_add_bos_token(found.begins)
    writer.add_add_eos_token(False)
    ends = [end.token for end in answer_ends(tokenizer) if end.token not in (None, tokenizer.eos_token_id)]
    if ends and ends[0] is not None:
        writer.add_eot_token_id(ends[0])
    if tokenizer.chat_template is not None:
        named = tokenizer.chat_template
        given = [{"name": name, "template": text} for name, text in named.items()] if isinstance(named, dict) else named
        writer.add_chat_template(given)


def begins_with_bos(tokenizer: PreTrainedTokenizerBase, format: Mapping[str, Any] | None = None) -> bool:
    """Whether the tokenizer puts its first token before a text by itself, and does so in training.

    Of a run on conversations it does where the template writes it: training adds nothing to what a template writes,
    and llama.cpp would (common/chat.cpp: it leaves out only what the template has written, too).
    """
    if tokenizer.bos_token_id is None or tokenizer("a")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return False
    written = _conversation(tokenizer, format)
    return written is None or written.startswith(str(tokenizer.bos_token))


def _is_spaced_once(found: dict[str, Any]) -> bool:
    """Whether only the begin of a text gets a space, and no word behind a special token."""
    return (found["pre_tokenizer"] or {}).get("prepend_scheme") == "first"


def _begins_with_special(tokenizer: PreTrainedTokenizerBase, format: Mapping[str, Any] | None) -> bool:
    """Whether all that is asked are conversations, and these begin with a special token, so that nothing is spaced."""
    written = _conversation(tokenizer, format)
    return written is not None and written.startswith(tuple(tokenizer.get_added_vocab()))


def _conversation(tokenizer: PreTrainedTokenizerBase, format: Mapping[str, Any] | None) -> str | None:
    """What the chat template writes for a question; None where rows of this format are no conversations."""
    if format is None or format["_target_"] != CHAT or tokenizer.chat_template is None:
        return None
    template = chat_template(tokenizer, None, format.get("template_kwargs"))
    with suppress(RowProblem):
        return template.write([Turn({"role": "user", "content": "a"}, False)], asks=True).text
    return None
