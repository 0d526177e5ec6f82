"""Segments → token ids and labels: tokenise the joined text once, train a token that ends in a trained segment.

The rule holds for a token that straddles the start of an answer, too: that token is the first thing that the model
has to write. Counting the tokens of the prompt alone would train nothing of such an answer. Conversations are cut there
instead, because servers tokenise the question of a chat template alone.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from fmstune.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase as PreTrainedTokenizerBase
else:
    PreTrainedTokenizerBase = Any  # the import takes seconds and needs torch; the other modules here take it from here

IGNORED = -100
"""The label of a token that is only read; torch's cross-entropy leaves it out."""


class Segment(NamedTuple):
    """A piece of a row's text; the model learns to write the trained ones and only reads the others."""

    text: str
    trained: bool


class Templated(list[Segment]):
    """Segments that hold their special tokens already, as a chat template writes them; others are given theirs."""

    ended = False
    """Whether the template writes what ends an answer, so that no end-of-sequence may follow."""


class Rows(list[Templated]):
    """Several rows that are made of one, such as a conversation whose template drops the thoughts of earlier turns."""


class TokenRow(NamedTuple):
    """Token ids, and a label for each: the id to be written there, or -100 where the token is only read."""

    input_ids: list[int]
    labels: list[int]


class Texts(dict[str, list[Segment]]):
    """Several texts of one row by name, such as the chosen and the rejected answer; the model reads each alone."""


Formatted = list[Segment] | TokenRow | Texts
"""A row as a format returns it; of a row that it splits, each of the Rows."""


class RowProblem(Exception):
    """A row that cannot be formatted; the caller adds the file and the row's number."""


class TemplateMissing(RowProblem):
    """A row that lacks the response template, so nothing says where its answer begins."""


class Encoded(NamedTuple):
    """A row in tokens, at most `max_length` of them; text is ended by end-of-sequence."""

    input_ids: list[int]
    labels: list[int]
    length: int
    """Tokens before cutting, end-of-sequence included."""
    trained: int
    """Trained tokens, end-of-sequence included."""
    answered: bool
    """Whether a token of an answer is trained; end-of-sequence alone does not count."""
    straddling: int
    """Tokens that lie on both sides of a boundary between read and trained text."""
    answer: int
    """The place of the first token of the last answer."""
    texts: Mapping[str, list[int]] = MappingProxyType({})
    """The ids of each text by name, where the row has several; `input_ids` and `labels` hold them end to end."""

    @property
    def prompt_ids(self) -> list[int]:
        """The tokens before the last answer, without a token that straddles the answer's start."""
        return self.input_ids[: self.answer]

    @property
    def answer_ids(self) -> list[int]:
        """The trained tokens of the last answer, with what ends it."""
        return [label for label in self.labels[self.answer :] if label != IGNORED]


def encode_rows(batch: Sequence[Formatted], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Encoded]:
    """Tokenise rows, all plain and all templated texts in one call each; the order is kept.

    End-of-sequence is trained, counted in `max_length` and never cut off a plain text. A templated text ends as its
    template ends it; it is closed with end-of-sequence only where the template ends no answer (`ended`), and the last
    one has no special token as its end.
    """
    check_tokenizer(tokenizer)
    texts = [text for row in batch for text in (row.values() if isinstance(row, Texts) else [row])]
    plain = _encode_texts([text for text in texts if not isinstance(text, Templated | TokenRow)], tokenizer, max_length)
    templated = _encode_texts([text for text in texts if isinstance(text, Templated)], tokenizer, max_length)

    def encode(row: Formatted) -> Encoded:
        if isinstance(row, TokenRow):
            return _cut(row, max_length)
        if isinstance(row, Texts):
            return _joined({name: encode(text) for name, text in row.items()})
        return next(templated if isinstance(row, Templated) else plain)

    return [encode(row) for row in batch]


def _encode_texts(
    rows: Sequence[list[Segment]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[Encoded]:
    """The rows, which are all templated or all plain, in tokens."""
    if not rows:
        return
    end_of_sequence, special = tokenizer.eos_token_id, set(tokenizer.all_special_ids)
    plain = not isinstance(rows[0], Templated)
    texts = ["".join(segment.text for segment in row) for row in rows]
    # verbose=False: no warning about texts above the tokenizer's own limit, since max_length decides
    made = tokenizer(texts, add_special_tokens=plain, return_attention_mask=False, verbose=False)
    for row, text, ids, whole in zip(rows, texts, made["input_ids"], made.encodings, strict=True):
        encoding: Encoding | Cut = whole
        if not plain and (cut := _cut_at_answers(row, text, whole, tokenizer)) is not None:
            ids, encoding = cut.ids, cut
        # tokens that end inside a trained stretch, and tokens that lie on both sides of its start or end
        spans: list[tuple[int, int]] = []
        astride: list[int] = []
        for stretch in trained_spans(row):
            ends = [_ending_after(boundary, len(text), encoding) for boundary in stretch]
            spans.append((ends[0], ends[1]))
            astride += [token for token, at in zip(ends, stretch, strict=True) if _straddles(token, at, encoding)]
        is_open = ids[-1:] != [end_of_sequence] if plain else _is_open(row, ids, special)
        length = len(ids) + is_open
        count = min(length, max_length)
        kept, labels = ids[:count], [IGNORED] * count
        for first, last in spans:
            labels[first:last] = kept[first:last]
        is_closed = plain or (is_open and count == length)
        if is_closed:
            kept[count - 1 :] = labels[count - 1 :] = [end_of_sequence]
        text_tokens = count - is_closed
        answer = next((first for first, last in reversed(spans) if first < min(last, text_tokens)), text_tokens)
        straddling = sum(token < text_tokens for token in astride)
        trained = count - labels.count(IGNORED)
        yield Encoded(kept, labels, length, trained, answer < text_tokens, straddling, answer)


class Cut:
    """The encoding of a text that was tokenised in pieces, as far as it is asked here."""

    def __init__(self, pieces: Sequence[tuple[int, "Encoding"]]) -> None:
        """Take the encodings of the pieces, each with the character of the text that it begins at."""
        self.pieces = [(begin, sum(len(one) for _, one in pieces[:n]), e) for n, (begin, e) in enumerate(pieces)]
        self.ids = [token for _, encoding in pieces for token in encoding.ids]
        self.offsets = [(begin + a, begin + b) for begin, encoding in pieces for a, b in encoding.offsets]

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self.ids)

    def char_to_token(self, at: int) -> int | None:
        """The token that this character is in."""
        begin, first, encoding = [piece for piece in self.pieces if piece[0] <= at][-1]
        token = encoding.char_to_token(at - begin)
        return None if token is None else first + token

    def token_to_chars(self, token: int) -> tuple[int, int] | None:
        """The characters of a token; None behind the last."""
        return self.offsets[token] if token < len(self) else None

    def token_to_sequence(self, token: int) -> int:
        """Every token is one of the text."""
        return 0


def _cut_at_answers(
    row: list[Segment], text: str, encoding: "Encoding", tokenizer: PreTrainedTokenizerBase
) -> Cut | None:
    """The text cut where a token lies on both sides of the begin of an answer; None where there is none.

    A server tokenises the question alone, so a model is never asked for the rest of such a token. A tokenizer that
    writes a space before each piece does not allow it.
    """
    starts = [start for start, _ in trained_spans(row)]
    cuts = [at for at in starts if _straddles(_ending_after(at, len(text), encoding), at, encoding)]
    if not cuts:
        return None
    bounds = [0, *cuts, len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(bounds)]
    made = tokenizer(pieces, add_special_tokens=False, return_attention_mask=False, verbose=False)
    found = Cut(list(zip(bounds, made.encodings, strict=False)))
    return found if tokenizer.decode(found.ids) == tokenizer.decode(encoding.ids) else None


def _is_open(row: list[Segment], ids: Sequence[int], special: Collection[int]) -> bool:
    """Whether a templated text ends in an answer that nothing ends."""
    return isinstance(row, Templated) and not row.ended and row[-1].trained and ids[-1] not in special


def _joined(texts: Mapping[str, Encoded]) -> Encoded:
    """The texts of one row, each as it is alone; the row is as long as the longest of them."""
    each = list(texts.values())
    return Encoded(
        input_ids=[token for part in each for token in part.input_ids],
        labels=[label for part in each for label in part.labels],
        length=max(part.length for part in each),
        trained=sum(part.trained for part in each),
        answered=all(part.answered for part in each),
        straddling=sum(part.straddling for part in each),
        answer=each[0].answer,
        texts={name: part.input_ids for name, part in texts.items()},
    )


def _cut(row: TokenRow, max_length: int) -> Encoded:
    """The row's tokens, at most `max_length` of them; the last answer is the last stretch of trained tokens."""
    ids, labels = row.input_ids[:max_length], row.labels[:max_length]
    trained = len(labels) - labels.count(IGNORED)
    end = max((place for place, label in enumerate(labels, start=1) if label != IGNORED), default=0)
    answer = max((place for place, label in enumerate(labels[:end], start=1) if label == IGNORED), default=0)
    return Encoded(ids, labels, len(row.input_ids), trained, trained > 0, 0, answer)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError for a tokenizer that cannot be used."""
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        raise UserError("model.tokenizer", f": {kind} does not tell which text a token spans; use a fast one")
    if not isinstance(tokenizer.eos_token_id, int):
        raise UserError("model.tokenizer", "has no end-of-sequence token; set model.special_tokens.eos_token")


def trained_spans(segments: list[Segment]) -> list[tuple[int, int]]:
    """Start and end of each trained stretch of the joined text, in characters; neighbouring segments are one."""
    spans: list[tuple[int, int]] = []
    position = 0
    for text, trained in segments:
        end = position + len(text)
        if trained and text:
            joins = bool(spans) and spans[-1][1] == position
            spans.append((spans.pop()[0] if joins else position, end))
        position = end
    return spans


def _ending_after(boundary: int, text_length: int, encoding: "Encoding | Cut") -> int:
    """The first token that ends after the boundary; tokens come in the order of the text."""
    token = encoding.char_to_token(boundary)
    if token is None and boundary < text_length:
        # a character without a token: stripped, or dropped by a normaliser
        token = next((number for number, (_, end) in enumerate(encoding.offsets) if end > boundary), None)
    # special tokens after the text belong to no sequence
    ends = (end for end in range(len(encoding), 0, -1) if encoding.token_to_sequence(end - 1) is not None)
    return next(ends, 0) if token is None else token


def _straddles(token: int, boundary: int, encoding: "Encoding | Cut") -> bool:
    """Whether this token, which ends after the boundary, starts before it."""
    characters = encoding.token_to_chars(token) if boundary else None
    return characters is not None and characters[0] < boundary < characters[1]
