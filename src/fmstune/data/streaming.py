"""Training rows that are read while the model trains, with the memory of a few batches."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from fmstune.config.job import Data
from fmstune.data.ledger import Ledger
from fmstune.data.locate import local_files
from fmstune.data.read import RowProblems
from fmstune.data.splits import SAMPLE, TRAIN, Recipe
from fmstune.data.tokenized import Part, cache_schema, record_batch, tokenize_batches
from fmstune.errors import UserError, raise_if_any

if TYPE_CHECKING:
    from datasets import IterableDataset


def sample_stream(recipe: Recipe) -> Part:
    """The first rows of a source, in memory, with their ledger; raises UserError with all their problems."""
    from datasets import Dataset

    ledger, problems, schema = Ledger(), RowProblems(), cache_schema(recipe, TRAIN)
    batches = tokenize_batches(recipe.sample().rows(), recipe, ledger, problems)
    made = Dataset(pa.Table.from_batches([record_batch(batch, schema) for batch in batches], schema=schema))
    raise_if_any(problems.first())
    if not len(made):
        raise UserError(recipe.field, "\n".join([f": no row is left of the first {SAMPLE:,}", *ledger.lines()]))
    return Part(recipe.name, made, ledger, cached=False)


@dataclass(frozen=True)
class Stream:
    """The rows of one source, read from the first to the last in each pass."""

    recipe: Recipe
    ledger: Ledger
    """The counts of all rows that were read, in all passes."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Stream":
        """Itself: `datasets` copies what it iterates over, and the ledger must stay the one that the run reads."""
        return self


def _one_pass(stream: Stream) -> Iterator[dict[str, list[int]]]:
    """Yield the rows; raises UserError at the end of a batch with all its problems."""
    problems = RowProblems()
    for batch in tokenize_batches(stream.recipe.rows(), stream.recipe, stream.ledger, problems):
        raise_if_any(problems.first())
        for _, row in batch:
            yield {"input_ids": row.input_ids, "labels": row.labels, **row.texts}
    raise_if_any(problems.first())


def streamed_dataset(streams: Sequence[Stream], data: Data, seed: int) -> "IterableDataset":
    """The rows of all sources, mixed by their weights where they have some, and shuffled in a buffer."""
    from datasets import Features, IterableDataset, concatenate_datasets, interleave_datasets

    recipe = streams[0].recipe
    columns = cache_schema(recipe, TRAIN).empty_table().select(["input_ids", "labels", *recipe.texts]).schema
    features = Features.from_arrow_schema(columns)
    parts = [IterableDataset.from_generator(_one_pass, features, gen_kwargs={"stream": stream}) for stream in streams]
    given = [w for w in (stream.recipe.source.weight for stream in streams) if w is not None]
    if given:
        shares = [weight / sum(given) for weight in given]
        mixed = interleave_datasets(parts, shares, seed=seed, stopping_strategy=data.stopping_strategy.value)
    else:
        mixed = concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    # `datasets` would still put the sources themselves in another order
    return mixed if data.buffer_size == 1 else mixed.shuffle(seed=seed, buffer_size=data.buffer_size)


def hash_listing(recipe: Recipe) -> str:
    """A hash of the names, sizes and times of the files, since their content is not read before the run."""
    digest = hashlib.sha256()
    for path in local_files(recipe.source.path, recipe.field):
        facts = path.stat()
        digest.update(f"{path.name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return f"listing:{digest.hexdigest()}"
