"""Whether rows that are packed, or share a beginning, see others: the model's own log-probabilities, with and alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, pairwise
from typing import Any, ClassVar, NamedTuple

import torch

from fmstune.data.prefix_sharing.layout import lay_out
from fmstune.errors import Problem, UserError
from fmstune.training.collate import DOCUMENTS, PADDING, TARGETS, SharingCollator

COUNT = 4
"""Documents that are compared, in two rows."""
TOKENS = 64
"""Tokens of a document at most: one that sees another does so from its first token on."""
TOLERANCE: Mapping[torch.dtype, float] = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.05}
"""Nats a token by which rounding alone may move a document, by the dtype that is computed in."""

_INSTEAD = (
    "set training.packing, training.eval_packing and training.padding_free to false "
    "(training.train_sampling_strategy=group_by_length keeps padding low)"
)


class Words(NamedTuple):
    """How an audit speaks of what it compares."""

    field: str
    subject: str
    rows: str
    compared: str
    """What is compared with itself alone."""
    they: str
    fault: str
    change: str


PACKS = Words(
    field="training.packing",
    subject="packing",
    rows="packed rows",
    compared="documents packed",
    they="the documents",
    fault="packed documents see each other",
    change=_INSTEAD,
)
SHARES = Words(
    field="data.prefix_sharing",
    subject="prefix sharing",
    rows="rows that share their beginnings",
    compared="rows that share",
    they="they",
    fault="rows that share their beginnings are others",
    change="set it to false",
)

Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]


@dataclass(frozen=True)
class Audit:
    """How far packing moves the log-probabilities of documents; all in nats, as the mean over a document's tokens."""

    documents: int
    difference: float
    """Packed against alone, of the document that moves most."""
    mixed_difference: float
    """The difference if the documents saw each other, which shows how large one would be in this model."""
    tolerance: float
    words: ClassVar[Words] = PACKS

    @property
    def apart(self) -> bool:
        """Whether the documents do not see each other."""
        return self.difference <= self.tolerance

    @property
    def conclusive(self) -> bool:
        """Whether it would have shown if they did."""
        return self.mixed_difference > self.tolerance

    def line(self) -> str:
        """For the terminal."""
        doubt = "" if self.conclusive else ", which is too little to tell"
        return (
            f"{self.words.subject}: {self.documents} {self.words.compared} and alone differ by {self.difference:.1e} "
            f"nats a token (limit {self.tolerance:g}; {self.mixed_difference:.1e} if they saw each other{doubt})"
        )

    def apart_problems(self) -> Iterator[Problem]:
        """Yield a problem where the documents see each other."""
        if not self.apart:
            by = f"{self.difference:.2g} nats a token when {self.words.they} stand alone (limit {self.tolerance:g})"
            text = f"{self.words.fault} in this model: their log-probabilities differ by {by}"
            yield Problem(self.words.field, f": {text}; {self.words.change}")


class SharingAudit(Audit):
    """How far sharing their beginnings moves the log-probabilities of rows."""

    words = SHARES


def documents(batch: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the beginnings of `COUNT` documents of a batch; fewer are repeated, as all processes compute as often."""
    # one token alone has nothing to score
    found = [ids[:TOKENS] for ids in _all_documents(batch) if len(ids) > 1]
    if not found:
        text = ": the first batch holds no document of two tokens; set training.packing=false"
        raise UserError("training.packing", text)
    return list(islice(cycle(found), COUNT))


def _all_documents(batch: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    if "key_index" in batch:
        # a segment sees its row up to its end
        ends = batch["cu_seq_lens_k"].tolist()
        yield from (batch["input_ids"][0][batch["key_index"][start:end]] for start, end in pairwise(ends))
        return
    if "attention_mask" in batch:
        yield from (ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True))
        return
    for ids, positions in zip(batch["input_ids"], batch["position_ids"], strict=True):
        starts = (positions == 0).nonzero().flatten().tolist()
        yield from (ids[start:end] for start, end in pairwise([*starts, len(ids)]))


def audit_packing(
    model: torch.nn.Module, found: Sequence[torch.Tensor], collate: Collate, *, packs: bool, tolerance: float
) -> Audit:
    """Compare packed documents with the same alone, without dropout; `packs` where `collate` takes packed rows."""
    # in the order in which a collator may lay them on one line
    found = sorted(found, key=len)
    rows = [list(found[:2]), list(found[2:])] if packs else [[ids] for ids in found]
    collated = collate([_example(row, packs=packs) for row in rows])
    packed = {key: value for key, value in collated.items() if key not in ("labels", PADDING)}
    lengths = [[len(ids) for ids in row] for row in ([found] if len(packed["input_ids"]) == 1 else rows)]
    device = found[0].device
    # one document a row, padded at its end, which no token sees
    padded = {"input_ids": torch.nn.utils.rnn.pad_sequence(list(found), batch_first=True)}
    was_training = model.training
    model.eval()
    with torch.no_grad():
        alone = [_scores(row, ids) for row, ids in zip(_logits(model, padded, device), found, strict=True)]
        differences = []
        for batch in (packed, {"input_ids": packed["input_ids"]}):
            logits = zip(_logits(model, batch, device), lengths, strict=True)
            parts = [part for row, sizes in logits for part in row[: sum(sizes)].split(sizes)]
            scores = [_scores(part, ids) for part, ids in zip(parts, found, strict=True)]
            moved = [(one - other).abs().mean().item() for one, other in zip(scores, alone, strict=True)]
            differences.append(max(moved))
    model.train(was_training)
    return Audit(len(found), differences[0], differences[1], tolerance)


def audit_sharing(model: torch.nn.Module, found: Sequence[torch.Tensor], *, tolerance: float) -> SharingAudit:
    """Compare rows that share beginnings with the same alone, without dropout; the tree is made of `found`."""
    first, second, third, last = found
    parted = torch.cat([first[: len(first) // 2], second])
    rows = [first, parted, torch.cat([parted[:-1], third]), last]
    examples = [_example([row], packs=False) for row in rows]
    places = [torch.from_numpy(of_row) for of_row in lay_out(examples, least_saved=1).places]
    collated = SharingCollator(least_saved=1)(examples)
    line = {key: value for key, value in collated.items() if key not in ("labels", TARGETS, PADDING)}
    device, was_training = first.device, model.training
    model.eval()
    with torch.no_grad():
        alone = [_scores(_logits(model, {"input_ids": row[None]}, device, SHARES)[0], row) for row in rows]
        differences = []
        for batch in (line, {"input_ids": line["input_ids"]}):
            logits = _logits(model, batch, device, SHARES)[0]
            scores = [_scores(logits[place.to(device)], row) for place, row in zip(places, rows, strict=True)]
            moved = [(one - other).abs().mean().item() for one, other in zip(scores, alone, strict=True)]
            differences.append(max(moved))
    model.train(was_training)
    return SharingAudit(len(rows), differences[0], differences[1], tolerance)


def _example(row: Sequence[torch.Tensor], *, packs: bool) -> dict[str, Any]:
    ids = torch.cat(list(row)).tolist()
    example = {"input_ids": ids, "labels": ids}
    return {**example, DOCUMENTS: [len(document) for document in row]} if packs else example


def _logits(
    model: torch.nn.Module, batch: Mapping[str, Any], device: torch.device, words: Words = PACKS
) -> torch.Tensor:
    moved = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    try:
        logits: torch.Tensor = model(**moved, use_cache=False).logits
    except (TypeError, ValueError) as err:
        # such as transformers' layers with a state, which ask for a kernel that knows where documents end
        raise UserError(words.field, f": the model refuses {words.rows} ({err}); {words.change}") from err
    # a prompt that is learnt comes before the row
    return logits[:, -batch["input_ids"].shape[1] :]


def _scores(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log-probability of each token but the first."""
    return logits[: len(ids) - 1].float().log_softmax(-1).gather(-1, ids[1:, None].to(logits.device))[:, 0]
