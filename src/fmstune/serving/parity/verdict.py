"""What training had and what serving gives → the first token that differs, and why: a pure function of both."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

TOLERANCE = {"float32": 2e-3, "float16": 3e-2, "bfloat16": 1.5e-1, "f16": 3e-2, "q8_0": 3e-1}
"""Root mean square by which log-probabilities of the answers' tokens may differ, in nats, by what serving computes in.

Measured with plain transformers on the shipped model and a tuned Llama of 30 layers (SmolLM2, 135M): 0.003 to 0.006 in
float16, 0.024 to 0.047 in bfloat16. Attention and batches of other libraries add to that. The same two in llama.cpp:
0.0004 and 0.005 from a file of f16, 0.009 and 0.11 from one of q8_0, where it rounds activations to 8 bits, too.
"""
OF_FILES = ("f16", "q8_0")
"""How a GGUF file stores matrices, where that is not what serving computes in."""
_PROBABLE = math.log(1e-4)
"""Tokens below this are left out of the comparison: of rare tokens, rounding changes the most and means the least."""


class Cause(StrEnum):
    """Why a model is served otherwise than it was trained."""

    template = "template"
    doubled = "first token doubled"
    cut = "prompt cut"
    end_missing = "end token missing"
    end_is_padding = "end token equal to padding"
    other_end = "other end token"
    base = "wrong base"
    adapter = "adapter not applied"
    precision = "precision"
    sampling = "sampling"


class Fault(NamedTuple):
    """The first token that differs, and why."""

    cause: Cause
    text: str


@dataclass(frozen=True)
class Trained:
    """A row as training had it; log-probabilities are in nats."""

    place: str
    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]
    log_probs: Sequence[float]
    """Of the answer, and of as many tokens before it as there are more of them."""
    greedy: Sequence[int]
    """The greedy answer, with the token that ends it."""
    margins: Sequence[float]
    """How much likelier each token of the greedy answer is than the second."""
    base_log_probs: Sequence[float] | None = None
    """Of the base without the adapter; None of a whole model."""


@dataclass(frozen=True)
class Served:
    """The same row as it is served; None is what serving does not tell."""

    prompt_ids: Sequence[int] | None = None
    prompt_text: str | None = None
    """What the prompt's tokens stand for in the vocabulary of serving."""
    prompt_count: int | None = None
    log_probs: Sequence[float] | None = None
    greedy: Sequence[int] | None = None
    greedy_text: str | None = None
    ended: bool | None = None
    """Whether the greedy answer was ended, and not cut at its limit."""


@dataclass(frozen=True)
class Ends:
    """What ends an answer: in training, and where serving says so."""

    trained: frozenset[int]
    padding: int | None
    served: frozenset[int] | None = None
    """None where only answers tell."""
    stops_at: Callable[[int], bool | None] = field(default=lambda token: None)
    """Asks serving whether it stops at a token; None where it cannot be asked."""


@dataclass(frozen=True)
class Compared:
    """All rows of both sides."""

    trained: Sequence[Trained]
    served: Sequence[Served]
    ends: Ends
    decode: Callable[[Sequence[int]], str]
    """Tokens → their text, special tokens included."""
    say: Callable[[Sequence[int]], str]
    """Tokens → their text, special tokens left out, as answers are sent."""
    dtype: str = "float32"
    """What serving computes in, or is meant to; of a GGUF file, how it stores matrices."""
    explain: Callable[[], Mapping[Cause, Sequence[Sequence[float]]]] = field(default=dict)
    """Log-probabilities under faults that are computed only where needed; under `precision`, of the
    coarsest rounding that is called so."""


def find_faults(compared: Compared) -> list[Fault]:
    """The faults, one a cause: prompts first, then weights; ends and answers where these are equal."""
    prompts = list(_first_of_each(_prompt_faults(compared)))
    weights = [one for one in [weight_fault(compared)] if one is not None]
    if any(fault.cause is Cause.base for fault in prompts):
        # another tokenizer, too: nothing else can be compared
        return prompts
    ends = [one for one in [_declared_end(compared)] if one is not None]
    answers = [] if prompts or weights or ends else list(_first_of_each(_answer_faults(compared)))
    return [*prompts, *weights, *ends, *answers]


def _first_of_each(faults: Iterator[Fault]) -> Iterator[Fault]:
    seen: set[Cause] = set()
    for fault in faults:
        if fault.cause not in seen:
            seen.add(fault.cause)
            yield fault


def _prompt_faults(compared: Compared) -> Iterator[Fault]:
    for row, served in zip(compared.trained, compared.served, strict=True):
        if served.prompt_ids is not None and list(served.prompt_ids) != list(row.prompt_ids):
            yield _differing_prompt(row, served, compared.decode)
        elif served.prompt_ids is None and served.prompt_count not in (None, len(row.prompt_ids)):
            yield _counted_prompt(row, served)


def _differing_prompt(row: Trained, served: Served, decode: Callable[[Sequence[int]], str]) -> Fault:
    was, now = list(row.prompt_ids), list(served.prompt_ids or ())
    at = first_difference(was, now)
    where = (
        f"{row.place}: token {at + 1} of the prompt is {_token(now, at, decode)}, {_token(was, at, decode)} in training"
    )
    if now[:1] == was[:1] and now[1:] == was:
        return Fault(Cause.doubled, f"{where}; the text holds its first token already, so add no special tokens to it")
    if len(now) < len(was) and (now == was[len(was) - len(now) :] or now == was[: len(now)] or _beheaded(was, now)):
        counts = f"{len(now):,} of {len(was):,} tokens are left"
        return Fault(Cause.cut, f"{where} ({counts}); raise the length that serving takes (vLLM: --max-model-len)")
    if served.prompt_text is not None and served.prompt_text == decode(was):
        return Fault(Cause.base, f"{where}; the text is the same, so the tokenizer is that of another model")
    return Fault(Cause.template, f"{where}; serve with the chat template or format that the run saved")


def _beheaded(was: list[int], now: list[int]) -> bool:
    """Whether the middle of the prompt is gone, and its first token is left."""
    return len(now) > 1 and now[0] == was[0] and now[1:] == was[len(was) - len(now) + 1 :]


def _counted_prompt(row: Trained, served: Served) -> Fault:
    assert served.prompt_count is not None
    more = served.prompt_count - len(row.prompt_ids)
    text = f"{row.place}: the prompt has {served.prompt_count:,} tokens, {len(row.prompt_ids):,} in training"
    text += "; serving does not tell them, so which token differs first is not known"
    # one more is nearly always a special token; many fewer, a limit
    return Fault(Cause.doubled if more == 1 else Cause.cut if more < -1 else Cause.template, text)


def first_difference(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The place of the first token that differs; the length of the shorter where it begins the longer."""
    return next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if len({*pair}) > 1), min(len(one), len(other))
    )


def _token(ids: Sequence[int], at: int, decode: Callable[[Sequence[int]], str]) -> str:
    return f"{decode([ids[at]])!r} ({ids[at]})" if at < len(ids) else "not there"


def weight_fault(compared: Compared) -> Fault | None:
    """Why the answers' log-probabilities differ; None where they do not, or are not known."""
    pairs = [(row, one.log_probs or row.log_probs) for row, one in zip(compared.trained, compared.served, strict=True)]
    if not any(one.log_probs for one in compared.served):
        return None
    trained, served = [row.log_probs for row, _ in pairs], [found for _, found in pairs]
    size, tolerance = distance(trained, served), TOLERANCE[compared.dtype]
    base = [row.base_log_probs for row, _ in pairs if row.base_log_probs is not None]
    # an adapter that moves less than rounding does is told by which of the two is nearer
    without = bool(base) and distance(base, served) < min(size / 2, max(tolerance, size / 8))
    if without:
        text = f"log-probabilities are those of the base ({distance(base, served):.1e} nats from it, {size:.1e} from "
        return Fault(Cause.adapter, _where(pairs, text + "the tuned model)", compared))
    if size <= tolerance:
        return None
    allowed = f"root mean square; tolerance {tolerance:.0e} for {compared.dtype}"
    by = f"log-probabilities differ by {size:.1e} nats ({allowed})"
    guesses = compared.explain()
    known = {cause: distance(found, served) for cause, found in guesses.items() if cause is not Cause.precision}
    if (near := known.get(Cause.end_is_padding, math.inf)) < size / 4:
        text = (
            f"{by}, and by {near:.1e} where the end token is masked as padding is; mask padding by place, not by token"
        )
        return Fault(Cause.end_is_padding, _where(pairs, text, compared))
    if (near := known.get(Cause.adapter, math.inf)) < size / 4:
        return Fault(Cause.adapter, _where(pairs, f"{by}, and by {near:.1e} from the model before tuning", compared))
    if Cause.precision in guesses and size <= distance(trained, guesses[Cause.precision]):
        change = "serve in the precision of the training, or pass --dtype with the one that is meant"
        if compared.dtype in OF_FILES:
            change = "write the file with more bits (--gguf_type f16)"
        return Fault(Cause.precision, _where(pairs, f"{by}, as rounding explains; {change}", compared))
    change = "neither rounding nor a missing adapter explains it: the weights are those of another model"
    return Fault(Cause.base, _where(pairs, f"{by}; {change}", compared))


def distance(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """Root mean square of the differences, where a token is probable on one side at least."""
    pairs = [pair for ours, theirs in zip(one, other, strict=True) for pair in zip(ours, theirs, strict=True)]
    squares = [(a - b) ** 2 for a, b in ((max(a, _PROBABLE), max(b, _PROBABLE)) for a, b in pairs)]
    return math.sqrt(sum(squares) / len(squares)) if squares else 0.0


def _where(pairs: Sequence[tuple[Trained, Sequence[float]]], text: str, compared: Compared) -> str:
    """The text behind the place of the first token whose log-probability differs by more than the tolerance."""
    for row, served in pairs:
        for at, (ours, theirs) in enumerate(zip(row.log_probs, served, strict=True)):
            if abs(ours - theirs) > TOLERANCE[compared.dtype]:
                read = len(row.log_probs) - len(row.answer_ids)
                ids = [*row.prompt_ids[len(row.prompt_ids) - read :], *row.answer_ids]
                in_prompt = f"{len(row.prompt_ids) - read + at + 1} of the prompt"
                number = f"{at + 1 - read} of the answer" if at >= read else in_prompt
                both = f"{theirs:.4g}, {ours:.4g} in training"
                return f"{row.place}: token {number}, {_token(ids, at, compared.decode)}, has {both}; {text}"
    return f"{pairs[0][0].place}: {text}"


def _trained_end(compared: Compared) -> tuple[Trained, int] | None:
    """The first row whose answer ends with a token that ends answers, and that token."""
    found = ((row, row.answer_ids[-1]) for row in compared.trained if row.answer_ids)
    return next((one for one in found if one[1] in compared.ends.trained), None)


def _declared_end(compared: Compared) -> Fault | None:
    """An end that serving does not declare, where it declares any."""
    known, end = compared.ends.served, _trained_end(compared)
    if known is None or end is None or end[1] in known:
        return None
    row, token = end
    padding = compared.ends.padding in known
    return _end_fault(row, token, len(row.answer_ids), padding, compared)


def _end_fault(row: Trained, token: int, at: int, padding: bool, compared: Compared) -> Fault:
    named = f"{compared.decode([token])!r} ({token})"
    where = f"{row.place}: token {at} of the answer, {named}, ends it in training, and serving goes on"
    change = f"name {token} in eos_token_id of generation_config.json, or as a stop token of each request"
    if padding:
        pad = compared.ends.padding
        how = "which is also padding" if pad == token else f"as it stops at padding ({pad})"
        return Fault(Cause.end_is_padding, f"{where}, {how}; {change}")
    return Fault(Cause.end_missing, f"{where}; {change}")


def _answer_faults(compared: Compared) -> Iterator[Fault]:
    """Greedy answers that differ though prompts and weights do not."""
    for row, served in zip(compared.trained, compared.served, strict=True):
        at = _first_answer_difference(row, served, compared)
        if at is None or _is_tie(row, at, compared.dtype):
            continue
        ends = bool(row.greedy) and row.greedy[-1] in compared.ends.trained
        if ends and at >= len(row.greedy) - 1:
            pad, token = compared.ends.padding, row.greedy[-1]
            padding = pad == token or (pad is not None and compared.ends.stops_at(pad) is True)
            yield _end_fault(row, token, len(row.greedy), padding, compared)
        elif served.ended and _is_begin(row, served, compared):
            text = f"{row.place}: serving ends the answer after {at:,} tokens, and in training "
            text += f"{_token(row.greedy, at, compared.decode)} follows; take a stop token or text away"
            yield Fault(Cause.other_end, text)
        else:
            text = f"{row.place}: token {at + 1} of the greedy answer is not {_token(row.greedy, at, compared.decode)}"
            text += (
                ", with equal prompts and log-probabilities; serving changes what is likely, such as by a repetition "
            )
            yield Fault(
                Cause.sampling, text + "penalty of generation_config.json: ask with temperature 0 and no penalty"
            )


def _first_answer_difference(row: Trained, served: Served, compared: Compared) -> int | None:
    """The place in training's greedy answer at which serving's differs; None where they are equal or not known."""
    if served.greedy is not None:
        at = first_difference(row.greedy, served.greedy)
        # serving may leave out the token that ends the answer
        whole = at == len(served.greedy) and at >= len(row.greedy) - 1 and served.ended is not False
        return None if at == len(row.greedy) == len(served.greedy) or (whole and _ends(row, compared)) else at
    if served.greedy_text is None:
        return None
    said = compared.say(row.greedy)
    if served.greedy_text == said and (served.ended is None or served.ended == _ends(row, compared)):
        return None
    if served.greedy_text.startswith(said):
        return len(row.greedy) - 1
    same = (at for at in range(len(row.greedy), -1, -1) if served.greedy_text.startswith(compared.say(row.greedy[:at])))
    return next(same, 0)


def _ends(row: Trained, compared: Compared) -> bool:
    return bool(row.greedy) and row.greedy[-1] in compared.ends.trained


def _is_begin(row: Trained, served: Served, compared: Compared) -> bool:
    text = served.greedy_text if served.greedy is None else compared.say(served.greedy)
    return compared.say(row.greedy).startswith(text or "")


def _is_tie(row: Trained, at: int, dtype: str) -> bool:
    """Whether training's own second choice was as good, so that rounding decides."""
    return at < len(row.margins) and row.margins[at] <= 4 * TOLERANCE[dtype]
