"""Files → rows → segments → tokens, once: written as Arrow into a cache by content, and mapped from there."""

import hashlib
import json
import logging
import random
import sys
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import accumulate, islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
from tqdm import tqdm

from fmstune import cache, format_loading, formats, rows, tokens
from fmstune.errors import UserError, raise_if_any
from fmstune.format_loading import Format
from fmstune.formats import RowProblem, Segment, TemplateMissing
from fmstune.job import Data, OverLength, Untrainable
from fmstune.ledger import Fate, Ledger
from fmstune.rows import Contents, Problems, Row
from fmstune.tokens import Encoded

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

BATCH = 1000
"""Rows that are tokenised, and lie in memory, at a time."""
CODE = tuple(Path(__file__).with_name(f"{name}.py") for name in ("rows", "formats", "format_loading", "tokens", "data"))
"""What the tokens depend on: a change in one of these makes a new cache entry."""
INTEGERS = pa.list_(pa.int32())
TRAINED = pa.schema({"input_ids": INTEGERS, "labels": INTEGERS})
HELD_OUT = pa.schema(
    {
        "input_ids": INTEGERS,
        "labels": INTEGERS,
        "prompt": pa.string(),
        "answer": pa.string(),
        "prompt_ids": INTEGERS,
        "answer_ids": INTEGERS,
    }
)
"""Held-out rows keep their text, and where it was divided in tokens, so that answers can be generated and compared."""


@dataclass(frozen=True)
class Prepared:
    """Tokenised rows, mapped from the cache, and what became of the rows that they were made of."""

    train: "Dataset"
    ledger: Ledger
    held_out: "Dataset | None"
    held_out_ledger: Ledger | None
    train_hash: str
    """SHA-256 of the training files (`rows.Contents.hash`)."""
    held_out_hash: str | None
    """The same of `data.eval`; None where there is none."""
    cached: bool
    """Whether it had been made before."""


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

    def add(self, segments: list[Segment]) -> None:
        """Count a row that would be trained."""
        length = sum(len(segment.text) for segment in segments)
        self.rows += 1
        self.characters_total += length
        self.characters_trained += sum(len(segment.text) for segment in segments if segment.trained)
        self.characters_longest = max(self.characters_longest, length)


class Formatted(NamedTuple):
    """A row, its place in the split counted from 1, and its segments."""

    number: int
    row: Row
    segments: list[Segment]


class Tokenised(NamedTuple):
    """A row that is trained."""

    segments: list[Segment]
    encoded: Encoded


class Recipe(NamedTuple):
    """What turns rows into tokens."""

    data: Data
    format: Format
    tokenizer: "PreTrainedTokenizerBase"


def prepare(data: Data, tokenizer: "PreTrainedTokenizerBase", seed: int) -> Prepared:
    """Tokenise what is trained and what is held out, or map what the same content gave before.

    Raises one UserError with everything that is wrong with the data.
    """
    tokens.check(tokenizer)
    recipe = Recipe(data, format_loading.load(data.format), tokenizer)
    contents = _contents(data)
    entry = cache.place() / "tokenized" / _key(recipe, seed, contents)
    found = _open(entry)
    if found is None:
        _make(entry, recipe, seed, {name: content.hash for name, content in contents.items()})
        made = _open(entry)
        if made is None:
            raise UserError(f"the cache entry {entry} went away while it was used; start again")
        found = replace(made, cached=False)
    log.info(_summary(found))
    return found


def scan(data: Data, seed: int) -> Scan:
    """Read and format all rows, and raise what is wrong with them; `seed` only says which are held out."""
    format = format_loading.load(data.format)
    _contents(data)
    problems: list[str] = []
    counts = {"train": Count(), "held_out": Count()}
    for name, split in _splits(data, seed).items():
        found = Problems()
        try:
            for formatted in _formatted(split, format, data, counts[name].ledger, found):
                counts[name].add(formatted.segments)
        except UserError as err:
            problems += err.problems
        problems += found.messages()
    raise_if_any(problems)
    train = counts["train"]
    return Scan(
        rows=train.rows,
        rows_dropped=train.ledger.rows_dropped,
        rows_with_several_templates=train.ledger.rows_with_several_templates,
        held_out_rows=counts["held_out"].rows,
        characters_total=train.characters_total,
        characters_trained=train.characters_trained,
        characters_longest=train.characters_longest,
    )


def _contents(data: Data) -> dict[str, Contents]:
    """What each split's files hold; raises UserError where both hold the same, since memory would pass for skill."""
    sources = {"train": ("data.train", data.train)}
    if data.eval is not None:
        sources["held_out"] = ("data.eval", data.eval)
    found: dict[str, Contents] = {}
    problems: list[str] = []
    for name, (key, source) in sources.items():
        try:
            found[name] = rows.contents(source, key)
        except UserError as err:
            problems += err.problems
    raise_if_any(problems)
    if data.eval is not None and found["train"] == found["held_out"]:
        raise UserError(
            "data.eval holds the same rows as data.train; name other rows, "
            "or set data.eval=null and data.eval_fraction to hold some out"
        )
    return found


def held_out_numbers(count: int, eval_fraction: float, seed: int) -> frozenset[int]:
    """Which of so many rows are held out, counted from 0 in reading order: exactly the rounded share.

    Only count, share and seed decide, so the same file gives the same split anywhere; rows that are
    dropped later are missing from the split that they fell into.
    """
    share = round(eval_fraction * count)
    if not 0 < share < count:
        raise UserError(
            f"data.eval_fraction={eval_fraction:g} holds {share} of {count} rows out, "
            "and both splits need one; change it or set data.eval"
        )
    return frozenset(random.Random(seed).sample(range(count), share))


def _splits(data: Data, seed: int) -> dict[str, Iterable[Row]]:
    """The rows to train on and to hold out; files are read again for each, so that memory stays flat."""

    def train() -> Iterator[Row]:
        return rows.read(data.train, "data.train", data.max_rows)

    if data.eval is not None:
        return {"train": train(), "held_out": rows.read(data.eval, "data.eval")}
    if data.eval_fraction == 0:
        return {"train": train()}
    chosen = held_out_numbers(sum(1 for _ in train()), data.eval_fraction, seed)
    return {
        "train": (row for number, row in enumerate(train()) if number not in chosen),
        "held_out": (row for number, row in enumerate(train()) if number in chosen),
    }


def _formatted(
    split: Iterable[Row], format: Format, data: Data, ledger: Ledger, problems: Problems
) -> Iterator[Formatted]:
    """The rows that have an answer; the others are counted, and are problems unless they may be dropped."""
    strict = data.untrainable is Untrainable.error
    template = data.format.get("response_template")
    for row in split:
        ledger.rows_read += 1
        try:
            segments = _segments(row, format)
        except TemplateMissing as err:
            ledger.rows_without_template += 1
            if strict:
                problems.add(f"{err}; mend it, set data.response_template or data.untrainable=drop", row)
        except RowProblem as err:
            problems.add(str(err), row)
        else:
            ledger.rows_formatted += 1
            if template and formats.repeats_template(segments, template):
                ledger.rows_with_several_templates += 1
            if formats.has_answer(segments):
                yield Formatted(ledger.rows_read, row, segments)
                continue
            ledger.rows_without_answer += 1
            if strict:
                problems.add("the answer is empty; mend it, or set data.untrainable=drop", row)


def _segments(row: Row, format: Format) -> list[Segment]:
    try:
        return format_loading.segments(format, row.values)
    except RowProblem:
        raise
    except Exception as err:
        err.add_note(f"while formatting {row.file}, row {row.number}")
        raise


def _make(entry: Path, recipe: Recipe, seed: int, hashes: dict[str, str]) -> None:
    """Write the entry aside and rename it, so that nobody sees half of one."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".unfinished-") as aside:
            made = Path(aside) / "entry"
            made.mkdir()
            _write_entry(made, recipe, seed, hashes)
            cache.publish(made, entry, usable=lambda there: _open(there) is not None)
    except OSError as err:
        raise UserError(
            f"cannot write to the cache {cache.place()} ({err.strerror or err}); "
            "set FMSTUNE_CACHE to a folder where you can write"
        ) from err


def _write_entry(made: Path, recipe: Recipe, seed: int, hashes: dict[str, str]) -> None:
    problems: list[str] = []
    ledgers: dict[str, Ledger] = {}
    for name, split in _splits(recipe.data, seed).items():
        shown = tqdm(split, desc=f"tokenising {name}", unit=" rows", delay=2, disable=not sys.stderr.isatty())
        try:
            ledgers[name] = _write_split(shown, made / f"{name}.arrow", recipe)
        except UserError as err:
            problems += err.problems
    raise_if_any(problems)
    for name, ledger in ledgers.items():
        if ledger.rows_trained == 0:
            raise UserError("\n".join([f"data: no row is left in the {name} split", *ledger.lines()]))
    facts = {
        "ledgers": {name: asdict(ledger) for name, ledger in ledgers.items()},
        "bytes": {name: (made / f"{name}.arrow").stat().st_size for name in ledgers},
        "hashes": hashes,
    }
    (made / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def _write_split(split: Iterable[Row], path: Path, recipe: Recipe) -> Ledger:
    """Tokenise a split in batches; raises all its problems at the end."""
    ledger, problems = Ledger(), Problems()
    schema = HELD_OUT if path.stem == "held_out" else TRAINED
    formatted = _formatted(split, recipe.format, recipe.data, ledger, problems)
    unreadable: tuple[str, ...] = ()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        try:
            while batch := list(islice(formatted, BATCH)):
                kept = _tokenise(batch, recipe, ledger, problems)
                writer.write_batch(_record_batch(kept, schema))
        except UserError as err:
            unreadable = err.problems
    raise_if_any([*unreadable, *problems.messages()])
    return ledger


def _tokenise(batch: list[Formatted], recipe: Recipe, ledger: Ledger, problems: Problems) -> list[Tokenised]:
    """The rows that are trained; all are counted."""
    data, kept = recipe.data, []
    encodings = tokens.encode([f.segments for f in batch], recipe.tokenizer, data.max_length)
    for formatted, encoded in zip(batch, encodings, strict=True):
        fate = _fate(encoded, data)
        ledger.add(encoded, fate, formatted.number)
        if fate is Fate.too_long and data.over_length is OverLength.error:
            long = f"more than data.max_length={data.max_length} tokens"
            problems.add(f"{long}; raise it, or set data.over_length to truncate or drop", formatted.row)
        elif fate is Fate.without_answer and data.untrainable is Untrainable.error:
            cut = f"data.max_length={data.max_length} leaves no token of the answer"
            problems.add(f"{cut}; raise it, or set data.untrainable=drop", formatted.row)
        elif fate in (Fate.trained, Fate.truncated):
            kept.append(Tokenised(formatted.segments, encoded))
    return kept


def _fate(encoded: Encoded, data: Data) -> Fate:
    too_long = encoded.length > data.max_length
    if too_long and data.over_length is not OverLength.truncate:
        return Fate.too_long
    if encoded.trained == 1:
        return Fate.without_answer
    return Fate.truncated if too_long else Fate.trained


def _record_batch(kept: list[Tokenised], schema: pa.Schema) -> pa.RecordBatch:
    columns = {
        "input_ids": _lists([row.encoded.input_ids for row in kept]),
        "labels": _lists([row.encoded.labels for row in kept]),
    }
    if "prompt" in schema.names:
        columns["prompt"] = pa.array([_prompt(row.segments) for row in kept], pa.string())
        columns["answer"] = pa.array(["".join(s.text for s in row.segments if s.trained) for row in kept], pa.string())
        columns["prompt_ids"] = _lists([row.encoded.prompt_ids for row in kept])
        columns["answer_ids"] = _lists([row.encoded.answer_ids for row in kept])
    return pa.record_batch(columns, schema=schema)


def _lists(lists: list[list[int]]) -> pa.Array:
    """The lists as one Arrow column, by way of flat buffers: `pa.array` takes seven times as long."""
    values = array("i")
    for numbers in lists:
        values.fromlist(numbers)
    offsets = array("i", accumulate(map(len, lists), initial=0))
    buffers = [pa.Array.from_buffers(pa.int32(), len(a), [None, pa.py_buffer(a)]) for a in (offsets, values)]
    return pa.ListArray.from_arrays(*buffers)


def _prompt(segments: list[Segment]) -> str:
    """What is given before the first answer."""
    return "".join(segment.text for segment in takewhile(lambda segment: not segment.trained, segments))


def _open(entry: Path) -> Prepared | None:
    """The entry, mapped; None when it is not there or, with a word in the log, when it cannot be used."""
    if not entry.exists():
        return None
    try:
        facts = json.loads((entry / "facts.json").read_text(encoding="utf-8"))
        ledgers = {name: _ledger(values) for name, values in facts["ledgers"].items()}
        datasets = {name: _map(entry / f"{name}.arrow", facts["bytes"][name]) for name in ledgers}
        return Prepared(
            train=datasets["train"],
            ledger=ledgers["train"],
            held_out=datasets.get("held_out"),
            held_out_ledger=ledgers.get("held_out"),
            train_hash=facts["hashes"]["train"],
            held_out_hash=facts["hashes"].get("held_out"),
            cached=True,
        )
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as err:
        log.warning("cache entry %s is made again (%s: %s)", entry, type(err).__name__, err)
        return None


def _map(path: Path, size: int) -> "Dataset":
    from datasets import Dataset  # a second to import, and a scan or the cache's size need none

    if path.stat().st_size != size:
        raise ValueError(f"{path.name} is not as it was written")
    return Dataset.from_file(str(path))


def _ledger(values: dict[str, Any]) -> Ledger:
    """From JSON, whose keys are strings."""
    return Ledger(**values | {"lengths": {int(length): count for length, count in values["lengths"].items()}})


def _key(recipe: Recipe, seed: int, contents: dict[str, Contents]) -> str:
    """The name of the entry: a hash of all that the tokens depend on."""
    data = recipe.data
    own = format_loading.source_files(data.format)
    draws = data.eval is None and data.eval_fraction > 0
    facts = {
        "rows": contents,
        "format": data.format,
        "code": [hashlib.sha256(path.read_bytes()).hexdigest() for path in CODE],
        "own_code": [hashlib.sha256(path.read_bytes()).hexdigest() for path in own],
        "tokenizer": _tokenizer_facts(recipe.tokenizer),
        "length": (data.max_length, data.over_length.value, data.untrainable.value, data.max_rows),
        "drawn": (data.eval_fraction, seed) if draws else None,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _tokenizer_facts(tokenizer: Any) -> dict[str, Any]:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    return {
        "class": type(tokenizer).__name__,
        "library": version("tokenizers"),
        # a call sets these two, and ours sets them to nothing
        "backend": backend | {"truncation": None, "padding": None},
        "end_of_sequence": tokenizer.eos_token_id,
        "split_special_tokens": tokenizer.split_special_tokens,
    }


def _summary(found: Prepared) -> str:
    how = "mapped from the cache" if found.cached else "tokenised"
    ledger = found.ledger
    held_out = f", {len(found.held_out):,} rows held out" if found.held_out is not None else ""
    return (
        f"data {how}: {ledger.rows_trained:,} rows, {ledger.tokens_total:,} tokens, "
        f"{ledger.tokens_trained:,} trained, {ledger.rows_dropped:,} rows dropped{held_out}"
    )
