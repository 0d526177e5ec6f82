"""The job's data → the tokenised rows of an epoch and the held-out rows; of several sources their mixture."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fmstune.config.choices import Overlap
from fmstune.config.job import Data, sources
from fmstune.data.format_loading import load_format
from fmstune.data.ledger import Ledger
from fmstune.data.mixing import Share, Shared, chosen_rows, find_overlap, mixture_lines, mixture_shares, without_overlap
from fmstune.data.read import Contents, hash_contents
from fmstune.data.splits import HELD_OUT, TRAIN, Recipe, draws_held_out, read_quarantine
from fmstune.data.streaming import Stream, hash_listing, sample_stream, streamed_dataset
from fmstune.data.tokenized import IDENTITY, Part, cache_key, tokenize_source
from fmstune.data.tokens import PreTrainedTokenizerBase, check_tokenizer
from fmstune.errors import Problem, UserError, collect_problems, raise_if_any
from fmstune.files import user_path

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """The tokenised rows of a job, and the counts of the rows that they were made of."""

    train: "Dataset | IterableDataset"
    """`input_ids` and `labels` of the rows of an epoch, and of rows that are not streamed `IDENTITY`."""
    sources: tuple[Part, ...]
    """The training rows of each source; of a streamed source, the first ones."""
    held_out: tuple[Part, ...]
    """The sets of held-out rows."""
    mixture: tuple[Share, ...]
    """The rows of each source in an epoch; empty for streamed rows."""
    shared: tuple[Shared, ...]
    """Training rows that are also held out."""
    streamed: Mapping[str, Ledger] | None = None
    """The ledger of each source's rows that were read so far in training; None if all were read before."""
    identity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The fields of `lock.json` about data: `data_hashes`, `data_rows` and `tokens`, each by the field of a source."""
    seconds: float = 0.0
    """The time that preparing took."""

    @property
    def cached(self) -> bool:
        """Whether an earlier run made all of them."""
        return self.streamed is None and all(part.cached for part in (*self.sources, *self.held_out))

    @property
    def epoch_tokens(self) -> int:
        """Tokens of an epoch; where rows of a source are repeated or left out, their mean counts."""
        taken = {share.name: share.taken / share.rows for share in self.mixture}
        return sum(round(part.ledger.tokens_total * taken.get(part.name, 1)) for part in self.sources)

    @property
    def ledger(self) -> Ledger:
        """The ledger of the training rows of all sources; of a streamed source, of the first ones."""
        return Ledger.total([part.ledger for part in self.sources])

    def lines(self) -> list[str]:
        """The ledgers of the training rows as they are printed, and the mixture."""
        found = []
        for part in self.sources:
            title = part.name
            if self.streamed is not None:
                title = f"the first {part.ledger.rows_read:,} rows{' of ' if title else ''}{title}"
            found += [*([title] if title else []), *part.ledger.lines()]
        return [*found, "mixture", *mixture_lines(self.mixture)] if len(self.mixture) > 1 else found

    def notes(self) -> list[str]:
        """A sentence about each pair of sources with rows in common, which may be a mistake."""
        return [f"{shared.message()}; data.overlap=drop leaves them out of training" for shared in self.shared]


def prepare_data(data: Data, tokenizer: PreTrainedTokenizerBase, seed: int, texts: Sequence[str] = ()) -> Prepared:
    """Tokenise the training and the held-out rows, or map what an earlier run made of the same content.

    `texts` are the columns for texts of their own. Raises one UserError with all problems of the data.
    """
    check_tokenizer(tokenizer)
    recipes = load_recipes(data, tokenizer, texts)
    contents = hash_sources(recipes)
    made = _tokenize(recipes, seed, contents)
    train = [parts[TRAIN] for parts in made.values() if TRAIN in parts]
    held_out = [parts[HELD_OUT] for parts in made.values() if HELD_OUT in parts]
    found = replace(
        (_streamed if data.streaming else _mixed)(recipes, train, held_out, seed),
        identity={
            "data_hashes": _hashes(recipes, contents),
            "data_rows": {field: sum(p.ledger.rows_read for p in parts.values()) for field, parts in made.items()},
            "tokens": {field: part.key for field, parts in made.items() for part in parts.values() if part.key},
        },
    )
    log.info(_summary(found))
    return found


def data_identity(
    data: Data, tokenizer: PreTrainedTokenizerBase | None, seed: int, texts: Sequence[str] = ()
) -> dict[str, dict[str, str]]:
    """The `data_hashes` and, with a tokenizer, the `tokens` that `prepare_data` would give."""
    recipes = load_recipes(data, tokenizer, texts)
    contents = hash_sources(recipes)
    keyed = [recipe for recipe in recipes if tokenizer is not None and not recipe.streamed]
    return {
        "data_hashes": _hashes(recipes, contents),
        "tokens": {recipe.field: cache_key(recipe, seed, contents[recipe.field]) for recipe in keyed},
    }


def prepare_held_out(data: Data, tokenizer: PreTrainedTokenizerBase, seed: int) -> tuple[Part, ...]:
    """The held-out rows alone, as `prepare_data` has them; raises UserError with all their problems."""
    check_tokenizer(tokenizer)
    recipes = [recipe for recipe in load_recipes(data, tokenizer) if recipe.trains == draws_held_out(data)]
    return tuple(parts[HELD_OUT] for parts in _tokenize(recipes, seed, hash_sources(recipes)).values())


def load_recipes(data: Data, tokenizer: PreTrainedTokenizerBase | None, texts: Sequence[str] = ()) -> list[Recipe]:
    """A recipe for each source, those to train on first; raises UserError with all problems of the formats."""
    recipes: list[Recipe] = []
    problems: list[Problem] = []
    quarantined: dict[str, frozenset[int]] = {}
    with collect_problems(problems):
        quarantined = read_quarantine(data)
    for part in ("train", "eval"):
        for name, source in sources(data, part).items():
            field = f"data.{part}.{name}" if name else f"data.{part}"
            try:
                format = load_format(source.format or {}, tokenizer)
                left_out = quarantined.get(name, frozenset()) if part == TRAIN else frozenset()
                recipes.append(Recipe(source, field, data, format, tokenizer, tuple(texts), left_out))
            except UserError as err:
                named = f"{field}.format" if source.format != data.format else "data.format"
                problems += [problem.moved("data.format", named) for problem in err.problems]
    raise_if_any(problems)
    return recipes


def hash_sources(recipes: Sequence[Recipe]) -> dict[str, Contents]:
    """The contents of each source that is not streamed, by field; raises UserError for one that is also held out."""
    contents: dict[str, Contents] = {}
    problems: list[Problem] = []
    read_first = [recipe for recipe in recipes if not recipe.streamed]
    for recipe in read_first:
        with collect_problems(problems):
            contents[recipe.field] = hash_contents(recipe.source.path, recipe.field)
    raise_if_any(problems)
    trained = {contents[recipe.field].identity: recipe.field for recipe in read_first if recipe.trains}
    advice = "name other rows, or set data.eval=null and data.eval_fraction to hold some out"
    raise_if_any(
        Problem(recipe.field, f"holds the same rows as {trained[contents[recipe.field].identity]}; {advice}")
        for recipe in read_first
        if not recipe.trains and contents[recipe.field].identity in trained
    )
    return contents


def _hashes(recipes: Sequence[Recipe], contents: Mapping[str, Contents]) -> dict[str, str]:
    hashes = {r.field: hash_listing(r) if r.streamed else contents[r.field].hash for r in recipes}
    if (place := recipes[0].data.quarantine) is not None:
        hashes["data.quarantine"] = hashlib.sha256(user_path(place).read_bytes()).hexdigest()
    return hashes


def _tokenize(recipes: Sequence[Recipe], seed: int, contents: Mapping[str, Contents]) -> dict[str, dict[str, Part]]:
    """The parts of each source by field and split; of streamed sources, the first rows."""
    made: dict[str, dict[str, Part]] = {}
    problems: list[Problem] = []
    for recipe in recipes:
        with collect_problems(problems):
            if recipe.streamed:
                made[recipe.field] = {TRAIN: sample_stream(recipe)}
            else:
                made[recipe.field] = tokenize_source(recipe, seed, contents[recipe.field])
    raise_if_any(problems)
    return made


def _mixed(recipes: Sequence[Recipe], train: Sequence[Part], held_out: Sequence[Part], seed: int) -> Prepared:
    """The rows of an epoch: all rows, or with weights the rows that the weights choose."""
    from datasets import concatenate_datasets

    data = recipes[0].data
    shared = find_overlap(train, held_out)
    train = [_with_source(part, number) for number, part in enumerate(train)]
    if shared and data.overlap is Overlap.error:
        raise UserError.of(Problem("data.overlap", f"=error: {one.message()}; remove them") for one in shared)
    if shared and data.overlap is Overlap.drop:
        train = [without_overlap(part, held_out) for part in train]
    weights = {recipe.name: recipe.source.weight for recipe in recipes if recipe.trains}
    mixture = mixture_shares({part.name: len(part.rows) for part in train}, weights, data.stopping_strategy)
    taken = [
        part.rows if share.taken == share.rows else part.rows.select(chosen_rows(share, seed))
        for part, share in zip(train, mixture, strict=True)
    ]
    epoch = concatenate_datasets(taken) if len(taken) > 1 else taken[0]
    columns = ["input_ids", "labels", *IDENTITY, *recipes[0].texts]
    return Prepared(epoch.select_columns(columns), tuple(train), tuple(held_out), mixture, shared)


def _with_source(part: Part, number: int) -> Part:
    """The part with the number of its source as a column."""
    named = part.rows.add_column(IDENTITY[0], np.full(len(part.rows), number, np.int16))
    return replace(part, rows=named)


def _streamed(recipes: Sequence[Recipe], train: Sequence[Part], held_out: Sequence[Part], seed: int) -> Prepared:
    streams = {recipe.name: Stream(recipe, Ledger()) for recipe in recipes if recipe.streamed}
    rows = streamed_dataset(list(streams.values()), recipes[0].data, seed)
    ledgers = {name: stream.ledger for name, stream in streams.items()}
    return Prepared(rows, tuple(train), tuple(held_out), (), find_overlap(train, held_out), ledgers)


def _summary(found: Prepared) -> str:
    made = "mapped from the cache" if found.cached else "tokenised"
    how = made if found.streamed is None else "streamed; of the first rows"
    ledger, count = found.ledger, sum(len(part.rows) for part in found.held_out)
    held_out = f", {count:,} rows held out" if found.held_out else ""
    return (
        f"data {how}: {ledger.rows_trained:,} rows, {ledger.tokens_total:,} tokens, "
        f"{ledger.tokens_trained:,} trained, {ledger.rows_dropped:,} rows dropped{held_out}"
    )
