"""Segments → token ids and labels: the joined text is tokenised once, and what ends in a trained segment trained.

That rule is right for a token that straddles the start of an answer, too: it is the first thing that the
model has to write. Counting the tokens of the prompt alone would train nothing of such an answer.
"""

from collections.abc import Sequence
from itertools import groupby
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


class Span(NamedTuple):
    """A trained stretch of the joined text, in characters."""

    start: int
    end: int


def encode(batch: Sequence[list[Segment]], tokenizer: "PreTrainedTokenizerBase", max_length: int) -> list[Encoded]:
    """Tokenise rows in one call; end-of-sequence is trained, counted in `max_length` and never cut off."""
    if not batch:
        return []
    end_of_sequence = check(tokenizer)
    texts = ["".join(segment.text for segment in segments) for segments in batch]
    # verbose: a text above the tokenizer's own limit is cut here, to max_length, and counted
    encoding = tokenizer(texts, add_special_tokens=True, return_attention_mask=False, verbose=False)
    rows = zip(batch, encoding["input_ids"], encoding.encodings, strict=True)
    return [_encode_row(row, ids, offsets, end_of_sequence, max_length) for row, ids, offsets in rows]


def check(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id of end-of-sequence; raises UserError for a tokenizer that cannot be used."""
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        raise UserError(f"model.tokenizer: {kind} does not tell which text a token spans; use a fast one")
    if not isinstance(tokenizer.eos_token_id, int):
        raise UserError("model.tokenizer has no end-of-sequence token; set model.special_tokens.eos_token")
    return tokenizer.eos_token_id


def _encode_row(
    segments: list[Segment], ids: list[int], encoding: "Encoding", end_of_sequence: int, max_length: int
) -> Encoded:
    spans = _trained_spans(segments)
    text_length = sum(len(segment.text) for segment in segments)
    stops = _token_stops(spans, text_length, encoding)
    length = len(ids) + (ids[-1:] != [end_of_sequence])
    kept = min(length, max_length) - 1
    labels: list[int] = []
    for first, last in stops:
        labels += [IGNORED] * (first - len(labels)) + ids[first:last]
    labels += [IGNORED] * (kept - len(labels))
    return Encoded(
        input_ids=[*ids[:kept], end_of_sequence],
        labels=[*labels[:kept], end_of_sequence],
        length=length,
        trained=sum(max(0, min(last, kept) - first) for first, last in stops) + 1,
        straddling=sum(
            _straddles(token, boundary, encoding)
            for span, stop in zip(spans, stops, strict=True)
            for boundary, token in zip(span, stop, strict=True)
            if 0 < boundary < text_length and token < kept
        ),
    )


def _trained_spans(segments: list[Segment]) -> list[Span]:
    """Where the joined text is trained; neighbours are one span and empty ones none."""
    spans, position = [], 0
    for trained, group in groupby((s for s in segments if s.text), key=lambda s: s.trained):
        end = position + sum(len(segment.text) for segment in group)
        if trained:
            spans.append(Span(position, end))
        position = end
    return spans


def _token_stops(spans: list[Span], text_length: int, encoding: "Encoding") -> list[tuple[int, int]]:
    """For each span the first token that ends inside it, and the first one that ends behind it."""
    trailing = 0
    if spans and spans[-1].end == text_length:
        # what the tokenizer puts behind the text spans no characters, and is not trained
        mask = encoding.special_tokens_mask
        trailing = next((n for n, special in enumerate(reversed(mask)) if not special), len(mask))
    last = len(encoding) - trailing
    return [
        (_ending_after(s.start, encoding), last if s.end == text_length else _ending_after(s.end, encoding))
        for s in spans
    ]


def _ending_after(character: int, encoding: "Encoding") -> int:
    """The first token that ends after this boundary; tokens lie in the order of the text."""
    token = encoding.char_to_token(character)
    if token is not None:
        return token
    # the character belongs to no token: stripped, or dropped by a normaliser
    return next((n for n, (_, end) in enumerate(encoding.offsets) if end > character), len(encoding))


def _straddles(token: int, boundary: int, encoding: "Encoding") -> bool:
    """Whether the first token that ends behind the boundary starts before it."""
    characters = encoding.token_to_chars(token)
    return characters is not None and characters[0] < boundary
