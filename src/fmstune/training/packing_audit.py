"""Whether packed documents see each other: the model's own log-probabilities, packed and alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, pairwise
from typing import Any

import torch

from fmstune.errors import Problem, UserError
from fmstune.training.collate import DOCUMENTS, PADDING

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
            f"packing: {self.documents} documents packed and alone differ by {self.difference:.1e} nats a token "
            f"(limit {self.tolerance:g}; {self.mixed_difference:.1e} if they saw each other{doubt})"
        )

    def packing_problems(self) -> Iterator[Problem]:
        """Yield a problem where the documents see each other."""
        if not self.apart:
            by = f"{self.difference:.2g} nats a token when the documents stand alone (limit {self.tolerance:g})"
            text = f"packed documents see each other in this model: their log-probabilities differ by {by}"
            yield Problem("training.packing", f": {text}; {_INSTEAD}")


def documents(batch: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the beginnings of `COUNT` documents of a batch; fewer are repeated, as all processes compute as often."""
    # one token alone has nothing to score
    found = [ids[:TOKENS] for ids in _all_documents(batch) if len(ids) > 1]
    if not found:
        text = ": the first batch holds no document of two tokens; set training.packing=false"
        raise UserError("training.packing", text)
    return list(islice(cycle(found), COUNT))


def _all_documents(batch: Mapping[str, Any]) -> Iterator[torch.Tensor]:
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


def _example(row: Sequence[torch.Tensor], *, packs: bool) -> dict[str, Any]:
    ids = torch.cat(list(row)).tolist()
    example = {"input_ids": ids, "labels": ids}
    return {**example, DOCUMENTS: [len(document) for document in row]} if packs else example


def _logits(model: torch.nn.Module, batch: Mapping[str, Any], device: torch.device) -> torch.Tensor:
    moved = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    try:
        logits: torch.Tensor = model(**moved, use_cache=False).logits
    except (TypeError, ValueError) as err:
        # such as transformers' layers with a state, which ask for a kernel that knows where documents end
        raise UserError("training.packing", f": the model refuses packed rows ({err}); {_INSTEAD}") from err
    # a prompt that is learnt comes before the row
    return logits[:, -batch["input_ids"].shape[1] :]


def _scores(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log-probability of each token but the first."""
    return logits[: len(ids) - 1].float().log_softmax(-1).gather(-1, ids[1:, None].to(logits.device))[:, 0]
