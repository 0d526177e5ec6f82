"""Segments → token ids and labels: tokenise the joined text once, train what ends in a trained segment.

That rule is right for a token that straddles the start of an answer, too: it is the first thing that the
model has to write. Counting the tokens of the prompt alone would train nothing of such an answer.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from fmstune.errors import UserError
from fmstune.formats import Segment

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that is only read; torch's cross-entropy leaves it out."""


class Encoded(NamedTuple):
    """A row in tokens, ended by end-of-sequence, at most `max_length` of them."""

    input_ids: list[int]
    labels: list[int]
    length: int
    """Tokens before cutting, end-of-sequence included."""
    trained: int
    """Trained tokens, end-of-sequence included: 1 when the answer has no token, or is cut away."""
    straddling: int
    """Tokens that lie on both sides of a boundary between read and trained text."""

    @property
    def prompt_ids(self) -> list[int]:
        """What stands before the first trained token: a token that straddles the start of the answer is not in it."""
        return self.input_ids[: next(n for n, label in enumerate(self.labels) if label != IGNORED)]

    @property
    def answer_ids(self) -> list[int]:
        """The trained tokens, of all answers, without the end-of-sequence that closes the row."""
        return [label for label in self.labels[:-1] if label != IGNORED]


class Span(NamedTuple):
    """A trained stretch of the joined text, in characters."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """The tokens that end inside a trained stretch: from `first` up to, and without, `last`."""

    first: int
    last: int
    first_straddles: bool
    """Whether `first` starts before the stretch."""
    last_straddles: bool
    """Whether `last` starts inside the stretch, though it ends behind it."""


def encode(batch: Sequence[list[Segment]], tokenizer: "PreTrainedTokenizerBase", max_length: int) -> list[Encoded]:
    """Tokenise rows in one call; end-of-sequence is trained, counted in `max_length` and never cut off."""
    if not batch:
        return []
    end_of_sequence = check(tokenizer)
    texts = ["".join(segment.text for segment in segments) for segments in batch]
    # verbose=False: that a text is above the tokenizer's own limit is no news, since max_length decides
    made = tokenizer(texts, add_special_tokens=True, return_attention_mask=False, verbose=False)
    rows = zip(batch, texts, made["input_ids"], made.encodings, strict=True)
    return [
        _encode_row(ids, _token_spans(segments, len(text), encoding), end_of_sequence, max_length)
        for segments, text, ids, encoding in rows
    ]


def check(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id of end-of-sequence; raises UserError for a tokenizer that cannot be used."""
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        raise UserError(f"model.tokenizer: {kind} does not tell which text a token spans; use a fast one")
    if not isinstance(tokenizer.eos_token_id, int):
        raise UserError("model.tokenizer has no end-of-sequence token; set model.special_tokens.eos_token")
    return tokenizer.eos_token_id


def _encode_row(ids: list[int], spans: list[TokenSpan], end_of_sequence: int, max_length: int) -> Encoded:
    length = len(ids) + (ids[-1:] != [end_of_sequence])
    kept = min(length, max_length) - 1
    labels: list[int] = []
    trained, straddling = 1, 0
    for first, last, first_straddles, last_straddles in spans:
        labels += [IGNORED] * (first - len(labels))
        labels += ids[first:last]
        trained += max(0, min(last, kept) - first)
        straddling += (first_straddles and first < kept) + (last_straddles and last < kept)
    labels += [IGNORED] * (kept - len(labels))
    return Encoded([*ids[:kept], end_of_sequence], [*labels[:kept], end_of_sequence], length, trained, straddling)


def _token_spans(segments: list[Segment], text_length: int, encoding: "Encoding") -> list[TokenSpan]:
    spans = []
    for start, end in trained_spans(segments):
        first = _ending_after(start, text_length, encoding)
        last = _ending_after(end, text_length, encoding)
        spans.append(TokenSpan(first, last, _straddles(first, start, encoding), _straddles(last, end, encoding)))
    return spans


def trained_spans(segments: list[Segment]) -> list[Span]:
    """Where the joined text is trained; neighbours are one span, and empty segments none."""
    spans: list[Span] = []
    position = 0
    for text, trained in segments:
        end = position + len(text)
        if trained and text:
            goes_on = bool(spans) and spans[-1].end == position
            spans.append(Span(spans.pop().start if goes_on else position, end))
        position = end
    return spans


def _ending_after(boundary: int, text_length: int, encoding: "Encoding") -> int:
    """The first token that ends after the boundary; tokens come in the order of the text."""
    token = encoding.char_to_token(boundary)
    if token is not None:
        return token
    if boundary < text_length:
        # a character without a token: stripped, or dropped by a normaliser
        for number, (_, end) in enumerate(encoding.offsets):
            if end > boundary:
                return number
    return len(encoding) - _behind_the_text(encoding)


def _behind_the_text(encoding: "Encoding") -> int:
    """How many special tokens the tokenizer put behind the text: they span no characters."""
    mask = encoding.special_tokens_mask
    return next((number for number, special in enumerate(reversed(mask)) if not special), len(mask))


def _straddles(token: int, boundary: int, encoding: "Encoding") -> bool:
    """Whether this token, which ends after the boundary, starts before it."""
    characters = encoding.token_to_chars(token) if boundary else None
    return characters is not None and characters[0] < boundary < characters[1]
