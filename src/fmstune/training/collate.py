"""Rows → batches with little padding: packed rows, rows of similar length, rows that share their beginnings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler
from transformers import TrainingArguments

from fmstune.data.prefix_sharing.grouping import find_groups, grouped_order, token_column
from fmstune.data.prefix_sharing.layout import LEAST_SAVED, lay_out, line_arguments
from fmstune.data.prefix_sharing.packs import DOCUMENTS as DOCUMENTS
from fmstune.data.tokenized import IDENTITY
from fmstune.data.tokens import IGNORED
from fmstune.errors import UserError
from fmstune.models.trl_internals import DataCollatorForLanguageModeling, pack_best_fit
from fmstune.tables import numbers
from fmstune.training.transformers_internals import LengthGroupedSampler

PADDING = "padding"
"""Key of a batch without a mask: how many of its positions hold no token. It is for counting, not for the model."""
TARGETS = "targets"
"""Key of a batch whose rows share beginnings: the positions that predict its labels, for the loss alone."""
WHOSE = "whose"
"""Keys of a batch of rows with `IDENTITY`: `whose` is for each of its labels the number of its document in the batch,
and `whose_rows` are the sources and numbers of the documents. They are for recording, not for the model."""
WHOSE_ROWS = "whose_rows"
Counts = np.ndarray[Any, np.dtype[np.int64]]
TOKENS_AT_A_TIME = 2**24
"""Tokens that are packed, and lie in memory, at a time, eight bytes each."""


def lengths(dataset: Dataset) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Tokens of each row, from the offsets of the Arrow column: no row is read."""
    column = dataset.select_columns(["input_ids"]).with_format("arrow")[:]["input_ids"]
    return np.asarray(pc.list_value_length(column), dtype=np.int32)


def pack(dataset: Dataset, max_length: int) -> Dataset:
    """Put whole documents together into rows of at most `max_length` tokens, best fit first (TRL's `bfd`).

    TRL packs 1000 rows at a time, and each time leaves a row half full: half a percent of the positions at 2048 tokens
    and 200 a document. Raises UserError when a document is cut or lost, which TRL would not say.
    """
    before = lengths(dataset)
    rows, arguments = _rows_at_a_time(before), {"max_length": max_length}
    packed = dataset.with_format("arrow").map(_pack_table, batched=True, batch_size=rows, fn_kwargs=arguments)
    packed = packed.with_format(None)
    documents = packed.select_columns([DOCUMENTS]).with_format("arrow")[:][DOCUMENTS]
    after = np.asarray(pc.list_flatten(documents), dtype=np.int32)
    if not np.array_equal(np.sort(before), np.sort(after)) or after.sum() != lengths(packed).sum():
        went_in = f"{len(before):,} documents of {before.sum():,} tokens went in"
        came_out = f"{len(after):,} of {after.sum():,} came out"
        limit = f"the longest has {before.max():,} tokens, and a row holds {max_length:,}"
        change = "set data.max_length, or training.packing=false"
        raise UserError("training.packing", f": {went_in} and {came_out}; {limit}: {change}")
    return packed


def pack_first(dataset: Dataset, max_length: int) -> pa.Table:
    """The labels of the rows that `pack` packs first, as it packs them: those of all rows, where they are not many."""
    labels = dataset.select_columns(["labels"]).with_format("arrow")
    return pack_best_fit(labels[: _rows_at_a_time(lengths(dataset))], max_length)


def row_sizes(dataset: Dataset, pack_length: int | None) -> tuple[Counts, Counts]:
    """The tokens of each row, or of each pack of the rows that are packed first, and those that are trained."""
    if pack_length is None:
        rows = dataset.select_columns(["labels"]).with_format("arrow")[:]
    else:
        rows = pack_first(dataset, pack_length)
    labels = rows["labels"]
    sizes = np.asarray(pc.list_value_length(labels))
    ends = np.cumsum(sizes)
    trained = np.concatenate([[0], np.cumsum(np.asarray(pc.list_flatten(labels)) != IGNORED)])
    return sizes, trained[ends] - trained[ends - sizes]


def _rows_at_a_time(lengths: np.ndarray[Any, np.dtype[np.int32]]) -> int:
    return max(1000, TOKENS_AT_A_TIME // max(int(lengths.mean()), 1))


def _pack_table(rows: pa.Table, max_length: int) -> pa.Table:
    """The packed rows; a column of `IDENTITY` becomes a list with a value for each document."""
    rows = rows.combine_chunks()
    named = [name for name in IDENTITY if name in rows.column_names]
    if not named:
        return pack_best_fit(rows, max_length)
    # TRL packs lists of one length, so each token carries the number of its row; that of a document is at its first
    tokens = rows["input_ids"].chunks[0]
    offsets = np.asarray(tokens.offsets)
    numbers = np.repeat(np.arange(-1, len(rows), dtype=np.int32), np.diff(offsets, prepend=0))
    whose = type(tokens).from_arrays(tokens.offsets, pa.array(numbers))
    packed = pack_best_fit(rows.drop_columns(named).append_column(WHOSE, whose), max_length)
    documents = packed[DOCUMENTS].combine_chunks()
    ends = np.cumsum(pc.list_flatten(documents))
    first = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    taken = pc.take(pc.list_flatten(packed[WHOSE].combine_chunks()), pa.array(first))
    packed = packed.drop_columns([WHOSE])
    for name in named:
        values = pc.take(rows[name].combine_chunks(), taken)
        packed = packed.append_column(name, type(documents).from_arrays(documents.offsets, values))
    return packed


def fill_up(rows: Dataset, args: TrainingArguments) -> Dataset:
    """Return the rows and, behind them, so many with nothing to learn that the last batch of each process is full.

    accelerate 1.15 would fill it with the first rows, which then count twice (data_loader.py, `BatchSamplerShard`).
    One process takes a batch that is not full, unless it is told to leave it out.
    """
    whole = args.world_size > 1 or args.dataloader_drop_last
    if not (missing := -len(rows) % (args.eval_batch_size * args.world_size if whole else 1)):
        return rows
    filler = rows[0]
    filler["input_ids"] = filler["input_ids"][:2]
    filler["labels"] = [IGNORED] * len(filler["input_ids"])
    if DOCUMENTS in filler:
        filler[DOCUMENTS] = [len(filler["input_ids"])]
        filler |= {name: filler[name][:1] for name in IDENTITY if name in filler}
    return concatenate_datasets([rows, Dataset.from_list([filler] * missing, features=rows.features)])


class Whose(NamedTuple):
    """Whose labels those of a batch are."""

    documents: torch.Tensor
    """For each label the number of its document in the batch; of padding, that of any."""
    rows: torch.Tensor
    """Source and number of each document."""


def without_whose(batch: Mapping[str, Any]) -> tuple[dict[str, Any], Whose | None]:
    """Return the batch for the model, and whose its labels are, where its rows have `IDENTITY`."""
    rest = {key: value for key, value in batch.items() if key not in (WHOSE, WHOSE_ROWS)}
    return rest, Whose(batch[WHOSE], batch[WHOSE_ROWS]) if WHOSE in batch else None


def _whose(documents: Sequence[Mapping[str, Any]], rows: Sequence[Sequence[int]], width: int) -> dict[str, Any]:
    """The keys of a batch whose rows hold so many labels of each document, one after the other."""
    if IDENTITY[0] not in documents[0]:
        return {}
    # in numpy: torch's calls for each of many short rows would cost two percent of a step of a tiny model
    found, first = np.empty((len(rows), width), dtype=np.int32), 0
    for line, labels in zip(found, rows, strict=True):
        numbers = np.repeat(np.arange(first, first + len(labels), dtype=np.int32), labels)
        first += len(labels)
        line[: len(numbers)], line[len(numbers) :] = numbers, first - 1
    names = np.array([[document[name] for name in IDENTITY] for document in documents], dtype=np.int64)
    return {WHOSE: torch.from_numpy(found), WHOSE_ROWS: torch.from_numpy(names)}


@dataclass
class Collator(DataCollatorForLanguageModeling):
    """Packed rows as a batch in which documents do not see each other, and other rows as TRL has them.

    A model without a mask finds the documents by their positions, which begin at 0 with each (transformers 5.23,
    masking_utils.py, `find_packed_sequence_indices`). TRL lays all rows of a batch end to end. That is right for
    kernels that are told where documents end. Others compute the scores of all pairs of positions, so there the rows
    stay rows: of a batch of 16, a sixteenth of the scores.
    """

    flat: bool = False
    """Lay the rows end to end (see `reads_document_ends`)."""
    segments: bool = False
    """Say where documents begin and end, for the attention `varlen`."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch; where it has no mask, `PADDING` says how many of its positions hold no token."""
        packed = DOCUMENTS in examples[0]
        documents = list(_documents(examples))
        each = [example.get(DOCUMENTS, [len(example["input_ids"])]) for example in examples]
        if self.segments and (packed or self.padding_free):
            documents.sort(key=lambda document: len(document["input_ids"]))
            batch, each = self._line(documents), [[len(document["input_ids"]) for document in documents]]
        elif packed and not self.flat:
            batch = self._rows(examples)
        else:
            on_one_line = packed or self.padding_free
            batch = self._collator(padding_free=on_one_line)(examples)
            each = [[length for lengths in each for length in lengths]] if on_one_line else each
        batch |= _whose(documents, each, batch["input_ids"].shape[1])
        if "attention_mask" not in batch:
            batch[PADDING] = batch["input_ids"].numel() - sum(len(example["input_ids"]) for example in examples)
        return batch

    def _collator(self, *, padding_free: bool) -> DataCollatorForLanguageModeling:
        return DataCollatorForLanguageModeling(
            pad_token_id=self.pad_token_id, padding_free=padding_free, pad_to_multiple_of=self.pad_to_multiple_of
        )

    def _line(self, documents: list[dict[str, Any]]) -> dict[str, Any]:
        """Documents end to end; they come by their length, as those of one length are computed together.

        Padding at the end is a segment of its own, with nothing to learn.
        """
        batch: dict[str, Any] = self._collator(padding_free=True)(documents)
        lengths = [len(document["input_ids"]) for document in documents]
        padding = batch["input_ids"].numel() - sum(lengths)
        return {**batch, **segments([*lengths, padding] if padding else lengths)}

    def _rows(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One row each, filled up at the end; there every position is a document of its own, with nothing to learn."""
        width = max(len(example["input_ids"]) for example in examples)
        if self.pad_to_multiple_of is not None:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        shape = (len(examples), width)
        batch = {
            "input_ids": torch.full(shape, self.pad_token_id),
            "labels": torch.full(shape, -100),
            "position_ids": torch.zeros(shape, dtype=torch.int64),
        }
        for number, example in enumerate(examples):
            row = slice(0, len(example["input_ids"]))
            batch["input_ids"][number, row] = torch.tensor(example["input_ids"])
            batch["labels"][number, row] = torch.tensor(example["labels"])
            batch["position_ids"][number, row] = torch.cat([torch.arange(n) for n in example[DOCUMENTS]])
        # the first token of a document is not predicted from the last of the one before
        batch["labels"][batch["position_ids"] == 0] = -100
        return batch


def _documents(examples: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The documents of packed rows, and rows that are not packed; each with its `IDENTITY`, where it has one."""
    for example in examples:
        packed = DOCUMENTS in example
        ends = np.cumsum([0, *(example[DOCUMENTS] if packed else [len(example["input_ids"])])]).tolist()
        for number, (begin, end) in enumerate(pairwise(ends)):
            named = {name: example[name][number] if packed else example[name] for name in IDENTITY if name in example}
            yield {**named, **{key: example[key][begin:end] for key in ("input_ids", "labels") if key in example}}


def segments(lengths: Sequence[int]) -> dict[str, Any]:
    """Where segments of these lengths begin and end on one line, by the names that models hand to their attention."""
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    longest = max(lengths)
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


@dataclass(frozen=True)
class SharingCollator:
    """Rows, packed or not, as one line on which a shared beginning stands once (see `prefix_sharing.layout`).

    `labels` are those of the rows end to end, after one that none predicts, so that Trainer counts what the rows
    train; `TARGETS` are the positions of the line that predict them. `PADDING` is below zero: positions were saved.
    """

    least_saved: int = LEAST_SAVED
    """Positions that a shared segment saves at least."""

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch; the arguments of the model are those of the attention `varlen`."""
        documents = list(_documents(examples))
        layout = lay_out(documents, self.least_saved)
        line = line_arguments(layout, documents)
        arrays = {name: torch.from_numpy(value) for name, value in line.items() if isinstance(value, np.ndarray)}
        shift_labels, targets = arrays.pop("shift_labels"), arrays.pop("targets")
        for name in ("input_ids", "position_ids"):
            arrays[name] = arrays[name][None]
        labels = torch.cat([torch.tensor([IGNORED]), shift_labels[targets]])[None]
        counts = {name: value for name, value in line.items() if isinstance(value, int)}
        if layout.depth() == 1:
            # rows that share nothing attend to the line itself
            del arrays["key_index"]
        saved = layout.positions - layout.tokens
        trained = [sum(label != IGNORED for label in document["labels"][1:]) for document in documents]
        # the first label is that of no row
        trained[0] += 1
        whose = _whose(documents, [trained], labels.shape[1])
        return {**arrays, **counts, **whose, "labels": labels, TARGETS: targets, PADDING: saved}


class PrefixGrouped(Sampler[int]):
    """Rows that begin alike in the same batches, in an order that seed and epoch decide."""

    def __init__(self, dataset: Dataset, batch_size: int, seed: int) -> None:
        self._groups, self._rows = find_groups(*token_column(dataset)), len(dataset)
        self._batch_size, self._seed, self._epoch = batch_size, seed, 0

    def __len__(self) -> int:
        return self._rows

    def set_epoch(self, epoch: int) -> None:
        """The epoch that comes next; accelerate and Trainer call this."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        seed = (self._seed, self._epoch)
        return iter(grouped_order(self._groups, self._rows, self._batch_size, seed).tolist())


class LengthGrouped(LengthGroupedSampler):
    """Rows of similar length together, in an order that seed and epoch decide, not the global random state."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        super().__init__(batch_size, lengths=list(lengths), generator=torch.Generator())
        self._seed, self._epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch that comes next; accelerate and Trainer call this."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self._seed + self._epoch)
        return iter(super().__iter__())


def grouped_sampler(rows: Any, args: TrainingArguments, *, shares: bool) -> Sampler[int] | None:
    """Return the sampler that brings together rows that begin alike or are of similar length; None where none does."""
    seed = args.seed if args.data_seed is None else args.data_seed
    if shares and args.train_sampling_strategy == "random" and DOCUMENTS not in rows.column_names:
        return PrefixGrouped(rows, args.train_batch_size, seed)
    if args.train_sampling_strategy != "group_by_length" or not isinstance(rows, Dataset):
        return None
    batch = args.train_batch_size * args.gradient_accumulation_steps
    return LengthGrouped(lengths(rows).tolist(), batch, seed)


def rows_with_tokens(dataset: Any, ids: torch.Tensor) -> str:
    """Which training rows a batch holds, from 0; found by their tokens, as their numbers do not reach the model."""
    if not isinstance(dataset, Dataset):
        return "streamed rows"
    wanted, rows = ids.tolist(), enumerate(dataset["input_ids"])
    found = [number for number, row in rows if any(given[: len(row)] == row for given in wanted)]
    return f"training rows {numbers(found)}" if found else "rows unknown"
