"""Files → rows → segments → tokens, once; of several sources the mixture that an epoch is made of."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fmstune.config.job import Data, Overlap, sources
from fmstune.data import mixing, overlap, splits, streaming, tokenized, tokens
from fmstune.data import read as rows
from fmstune.data.format_loading import Format, load_format
from fmstune.data.ledger import Ledger
from fmstune.data.mixing import Share
from fmstune.data.overlap import Shared
from fmstune.data.read import Contents, Problems
from fmstune.data.splits import HELD_OUT, TRAIN, Place
from fmstune.data.streaming import Stream
from fmstune.data.tokenized import Part, Recipe
from fmstune.data.tokens import Formatted, TokenRow
from fmstune.errors import Problem, UserError, raise_if_any

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN = 3.6
"""English text under Llama 2's tokenizer, roughly: 3.6 on the alpaca rows' kind of text. Marked as an estimate."""


@dataclass(frozen=True)
class Prepared:
    """Tokenised rows, and what became of the rows that they were made of."""

    train: "Dataset | IterableDataset"
    """`input_ids` and `labels` of the rows of an epoch."""
    sources: tuple[Part, ...]
    """The training rows of each source; of those that are streamed, the first ones."""
    held_out: tuple[Part, ...]
    """The sets of held-out rows; none where nothing is held out."""
    mixture: tuple[Share, ...]
    """What each source gives to an epoch; nothing where rows are streamed."""
    shared: tuple[Shared, ...]
    """Training rows that are held out, too."""
    hashes: Mapping[str, str]
    """SHA-256 of the files (`rows.Contents.hash`) by the field that names them."""
    streamed: Mapping[str, Ledger] | None = None
    """What became of the rows of each source that were read so far in training; None where all were read before."""
    rows_read: Mapping[str, int] = field(default_factory=dict)
    """Rows that were read, by field; of those that are streamed, the first ones."""
    tokens: Mapping[str, str] = field(default_factory=dict)
    """Name of the cache entry by field, a hash of all that its tokens depend on; streamed rows have none."""
    seconds: float = 0.0
    """What reading and tokenising them took; little where they were cached."""

    @property
    def cached(self) -> bool:
        """Whether all of it had been made before."""
        return self.streamed is None and all(part.cached for part in (*self.sources, *self.held_out))

    @property
    def epoch_tokens(self) -> int:
        """Tokens of an epoch; where rows of a source come again or are left out, their mean counts."""
        taken = {share.name: share.taken / share.rows for share in self.mixture}
        return sum(round(part.ledger.tokens_total * taken.get(part.name, 1)) for part in self.sources)

    @property
    def ledger(self) -> Ledger:
        """What became of the training rows of all sources; of those that are streamed, of the first ones."""
        return Ledger.total([part.ledger for part in self.sources])

    def lines(self) -> list[str]:
        """The ledgers of the training rows as they are printed, with the mixture and what was found beside."""
        found = []
        for part in self.sources:
            title = f"{part.name}" if part.name else ""
            if self.streamed is not None:
                title = f"the first {part.ledger.rows_read:,} rows{' of ' if title else ''}{title}"
            found += [*([title] if title else []), *part.ledger.lines()]
        if len(self.mixture) > 1:
            found += ["mixture", *mixing.lines(self.mixture)]
        return found

    def notes(self) -> Iterator[str]:
        """What works but may not be meant."""
        for shared in self.shared:
            yield f"{overlap.message(shared)}; data.overlap=drop leaves them out of training"


@dataclass(frozen=True)
class Scan:
    """What can be said without a tokenizer; characters are those of the `rows`, which would be trained."""

    rows: int
    rows_dropped: int
    rows_with_several_templates: int
    held_out_rows: int
    characters_total: int
    characters_trained: int
    characters_longest: int


@dataclass
class Count:
    """What a scan counts of one split."""

    ledger: Ledger = field(default_factory=Ledger)
    rows: int = 0
    characters_total: int = 0
    characters_trained: int = 0
    characters_longest: int = 0

    def add(self, formatted: Formatted) -> None:
        """Count a row that would be trained."""
        length, trained = _characters(formatted)
        self.rows += 1
        self.characters_total += length
        self.characters_trained += trained
        self.characters_longest = max(self.characters_longest, length)


def _characters(formatted: Formatted) -> tuple[int, int]:
    """Characters of a row, and how many of them are trained; a token counts as it usually has."""
    if isinstance(formatted, TokenRow):
        trained = sum(label != tokens.IGNORED for label in formatted.labels)
        return round(len(formatted.labels) * CHARACTERS_PER_TOKEN), round(trained * CHARACTERS_PER_TOKEN)
    return sum(len(s.text) for s in formatted), sum(len(s.text) for s in formatted if s.trained)


def prepare(data: Data, tokenizer: "PreTrainedTokenizerBase", seed: int) -> Prepared:
    """Tokenise what is trained and what is held out, or map what the same content gave before.

    Raises one UserError with everything that is wrong with the data.
    """
    tokens.check_tokenizer(tokenizer)
    recipes = [Recipe(place, data, format, tokenizer) for place, format in formats(data, tokenizer)]
    streamed = [recipe for recipe in recipes if data.streaming and recipe.place.trains]
    contents = _contents([recipe.place for recipe in recipes if recipe not in streamed])
    made: dict[str, list[Part]] = {TRAIN: [], HELD_OUT: []}
    found_of: dict[str, list[Part]] = {}
    problems: list[Problem] = []
    for recipe in recipes:
        name, field = _name(recipe.place), recipe.place.field
        try:
            if recipe in streamed:
                parts = {TRAIN: streaming.sample(recipe, name)}
            else:
                parts = tokenized.parts(recipe, name, seed, contents[field])
            found_of[field] = list(parts.values())
            for split, part in parts.items():
                made[split].append(part)
        except UserError as err:
            problems += err.problems
    raise_if_any(problems)
    hashes = {field: content.hash for field, content in contents.items()}
    if streamed:
        hashes |= {recipe.place.field: streaming.listing(recipe.place) for recipe in streamed}
        found = _streamed(data, streamed, made, hashes, seed)
    else:
        found = _mixed(data, made, hashes, seed)
    log.info(_summary(found))
    return dataclasses.replace(
        found,
        rows_read={field: sum(part.ledger.rows_read for part in parts) for field, parts in found_of.items()},
        tokens={field: parts[0].key for field, parts in found_of.items() if parts[0].key},
    )


def identity(data: Data, tokenizer: "PreTrainedTokenizerBase | None", seed: int) -> dict[str, dict[str, str]]:
    """What `prepare` would find, without making it: `data_hashes`, and the name of the `tokens`, by field.

    Without a tokenizer, nothing can be said of the tokens.
    """
    found = formats(data, tokenizer)
    streamed = [place for place, _ in found if data.streaming and place.trains]
    contents = _contents([place for place, _ in found if place not in streamed])
    hashes = {field: content.hash for field, content in contents.items()}
    hashes |= {place.field: streaming.listing(place) for place in streamed}
    keys: dict[str, str] = {}
    if tokenizer is not None:
        recipes = [Recipe(place, data, format, tokenizer) for place, format in found if place not in streamed]
        keys = {recipe.place.field: tokenized.key(recipe, seed, contents[recipe.place.field]) for recipe in recipes}
    return {"data_hashes": hashes, "tokens": keys}


def held_out(data: Data, tokenizer: "PreTrainedTokenizerBase", seed: int) -> tuple[Part, ...]:
    """The held-out rows alone, as `prepare` has them; raises UserError with everything that is wrong with them."""
    tokens.check_tokenizer(tokenizer)
    wanted = [place for place in places(data) if place.trains == splits.draws(data)]
    contents = _contents(wanted)
    found: list[Part] = []
    problems: list[Problem] = []
    for place, format in formats(data, tokenizer):
        if place in wanted:
            try:
                made = tokenized.parts(
                    Recipe(place, data, format, tokenizer), _name(place), seed, contents[place.field]
                )
                found.append(made[HELD_OUT])
            except UserError as err:
                problems += err.problems
    raise_if_any(problems)
    return tuple(found)


def formats(data: Data, tokenizer: "PreTrainedTokenizerBase | None") -> list[tuple[Place, Format]]:
    """Each source with its format; raises UserError with all that is wrong with the formats."""
    found: list[tuple[Place, Format]] = []
    problems: list[Problem] = []
    for place in places(data):
        try:
            found.append((place, load_format(place.source.format or {}, tokenizer)))
        except UserError as err:
            field = f"{place.field}.format" if place.source.format != data.format else "data.format"
            problems += [problem.moved("data.format", field) for problem in err.problems]
    raise_if_any(problems)
    return found


def places(data: Data) -> list[Place]:
    """All sources of the job with the fields that name them, those to train on first."""
    return [
        Place(source, f"data.{part}.{name}" if name else f"data.{part}")
        for part in ("train", "eval")
        for name, source in sources(data, part).items()
    ]


def _name(place: Place) -> str:
    return ".".join(place.field.split(".")[2:])


def _mixed(data: Data, made: Mapping[str, list[Part]], hashes: Mapping[str, str], seed: int) -> Prepared:
    """The rows of an epoch: of one source all, of several those that the weights ask for."""
    from datasets import concatenate_datasets

    train, held_out = made[TRAIN], made[HELD_OUT]
    shared = overlap.find(train, held_out)
    if shared and data.overlap is Overlap.error:
        raise UserError.of(Problem("data.overlap", f"=error: {overlap.message(one)}; remove them") for one in shared)
    if shared and data.overlap is Overlap.drop:
        train = [_without(part, held_out) for part in train]
    weights = {name: source.weight for name, source in sources(data, TRAIN).items()}
    mixture = mixing.shares({part.name: len(part.rows) for part in train}, weights, data.stopping_strategy)
    taken = []
    for part, share in zip(train, mixture, strict=True):
        whole = share.taken == share.rows
        taken.append(part.rows if whole else part.rows.select(mixing.chosen(share, seed)))
    epoch = concatenate_datasets(taken) if len(taken) > 1 else taken[0]
    return Prepared(
        train=epoch.select_columns(["input_ids", "labels"]),
        sources=tuple(train),
        held_out=tuple(held_out),
        mixture=mixture,
        shared=shared,
        hashes=hashes,
    )


def _without(part: Part, held_out: list[Part]) -> Part:
    """The source without the rows that are held out, which its ledger counts."""
    kept, held_out_too = overlap.divided(part, held_out)
    if not len(kept):
        raise UserError("data.overlap", f"=drop leaves no row of {part.name or 'data.train'}: all are held out, too")
    ledger = part.ledger.without(part.rows.select(held_out_too)["labels"])
    return dataclasses.replace(part, rows=part.rows.select(kept), ledger=ledger)


def _streamed(
    data: Data, recipes: list[Recipe], made: Mapping[str, list[Part]], hashes: Mapping[str, str], seed: int
) -> Prepared:
    streams = {_name(recipe.place): Stream(recipe, Ledger()) for recipe in recipes}
    return Prepared(
        train=streaming.dataset(list(streams.values()), data, seed),
        sources=tuple(made[TRAIN]),
        held_out=tuple(made[HELD_OUT]),
        mixture=(),
        shared=overlap.find(made[TRAIN], made[HELD_OUT]),
        hashes=hashes,
        streamed={name: stream.ledger for name, stream in streams.items()},
    )


def scan(data: Data, seed: int) -> Scan:
    """Read and format all rows, and raise what is wrong with them; `seed` only says which are held out.

    Of sources that are streamed, only the first rows are read.
    """
    problems: list[Problem] = []
    counts = {TRAIN: Count(), HELD_OUT: Count()}
    found_formats = formats(data, None)
    _contents([place for place, _ in found_formats if not (data.streaming and place.trains)])
    for place, format in found_formats:
        found = Problems()
        limited = place
        if data.streaming and place.trains:
            limit = min(streaming.SAMPLE, place.source.max_rows or streaming.SAMPLE)
            limited = place._replace(source=dataclasses.replace(place.source, max_rows=limit))
        try:
            for name, split in splits.splits(limited, data, seed).items():
                for row in splits.formatted(split, place, format, data, counts[name].ledger, found):
                    counts[name].add(row.formatted)
        except UserError as err:
            problems += err.problems
        problems += found.first()
    raise_if_any(problems)
    train = counts[TRAIN]
    return Scan(
        rows=train.rows,
        rows_dropped=train.ledger.rows_dropped,
        rows_with_several_templates=train.ledger.rows_with_several_templates,
        held_out_rows=counts[HELD_OUT].rows,
        characters_total=train.characters_total,
        characters_trained=train.characters_trained,
        characters_longest=train.characters_longest,
    )


def _contents(found: list[Place]) -> dict[str, Contents]:
    """What each source's files hold; raises UserError where one is trained and held out."""
    contents: dict[str, Contents] = {}
    problems: list[Problem] = []
    for place in found:
        try:
            contents[place.field] = rows.contents(place.source.path, place.field)
        except UserError as err:
            problems += err.problems
    raise_if_any(problems)
    trained = {contents[place.field]: place.field for place in found if place.trains}
    raise_if_any(
        Problem(
            place.field,
            f"holds the same rows as {trained[contents[place.field]]}; name other rows, "
            "or set data.eval=null and data.eval_fraction to hold some out",
        )
        for place in found
        if not place.trains and contents[place.field] in trained
    )
    return contents


def _summary(found: Prepared) -> str:
    if found.streamed is not None:
        how = "streamed; of the first rows"
    else:
        how = "mapped from the cache" if found.cached else "tokenised"
    ledger = found.ledger
    count = sum(len(part.rows) for part in found.held_out)
    held_out = f", {count:,} rows held out" if found.held_out else ""
    return (
        f"data {how}: {ledger.rows_trained:,} rows, {ledger.tokens_total:,} tokens, "
        f"{ledger.tokens_trained:,} trained, {ledger.rows_dropped:,} rows dropped{held_out}"
    )
