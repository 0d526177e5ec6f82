"""The rows of one source → tokens in Arrow files: written once as an entry of the cache, and mapped."""

import gc
import hashlib
import json
import logging
import sys
import tempfile
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
from tqdm import tqdm

from fmstune import cache
from fmstune.config.choices import OverLength, Untrainable
from fmstune.data import tokens
from fmstune.data.format_loading import source_files
from fmstune.data.ledger import Ledger
from fmstune.data.read import Contents, RowProblems
from fmstune.data.splits import HELD_OUT, TRAIN, FormattedRow, Placed, Recipe, draws_held_out, format_rows, split_rows
from fmstune.data.tokens import Encoded
from fmstune.errors import Problem, UserError, collect_problems, raise_if_any

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

BATCH = 1000
"""Rows that are tokenised in one call."""
AHEAD = 2
"""Batches that threads tokenise while an earlier one is written; the tokenizer releases Python's lock."""
OBJECTS = 20_000
"""Objects that are made before the garbage collector looks at the young ones; Python 3.11 waits for 700."""
_CHAT = "messages template_inputs chat_template reasoning chat"
_MODULES = f"locate read formats templates {_CHAT} format_loading tokens ledger splits tokenized"
CODE = tuple(Path(__file__).with_name(f"{name}.py") for name in _MODULES.split())
"""The modules that tokens and ledgers depend on: a change in one of these makes a new cache entry."""
INTEGERS = pa.list_(pa.int32())
IDENTITY = ("source", "number")
"""Columns that name a training row: the number of its source, from 0, and its own in the source, from 1."""
TRAINED = pa.schema({"input_ids": INTEGERS, "labels": INTEGERS, "number": pa.int32(), "fingerprint": pa.int64()})
"""`number` is the row's place in its source, counted from 1; equal tokens have equal fingerprints."""
HELD_OUT_TOO = pa.schema([*TRAINED, pa.field("prompt_ids", INTEGERS), pa.field("answer_ids", INTEGERS)])
"""Held-out rows are also divided into prompt and answer, so that the last answers can be generated and compared."""


def cache_schema(recipe: Recipe, split: str) -> pa.Schema:
    """The columns of a split in the cache."""
    fields = HELD_OUT_TOO if split == HELD_OUT else TRAINED
    return pa.schema([*fields, *(pa.field(name, INTEGERS) for name in recipe.texts)])


class Numbered(NamedTuple):
    """A row in tokens, and the number in its source of the row that it was made of, from 1."""

    number: int
    encoded: Encoded


@dataclass(frozen=True)
class Part:
    """The tokenised rows of one source, mapped, and the counts of the rows that they were made of."""

    name: str
    """The source's; "" for the only one."""
    rows: "Dataset"
    ledger: Ledger
    cached: bool
    """Whether an earlier run made it."""
    key: str = ""
    """Name of the cache entry, a hash of all that the tokens depend on; "" for streamed rows."""


def tokenize_source(recipe: Recipe, seed: int, contents: Contents) -> dict[str, Part]:
    """The source's rows by split, tokenised now or by an earlier run; raises UserError with all their problems."""
    entry = cache.place() / "tokenized" / cache_key(recipe, seed, contents)
    found = _open(entry, recipe.name, cached=True)
    if found is None:
        _make(entry, recipe, seed, contents)
        found = _open(entry, recipe.name, cached=False)
    if found is None:
        raise UserError("", f"the cache entry {entry} was removed while it was used; start again")
    return found


def _make(entry: Path, recipe: Recipe, seed: int, contents: Contents) -> None:
    """Write the entry aside and rename it, so that no process sees half of an entry."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".unfinished-") as aside:
            made = Path(aside) / "entry"
            made.mkdir()
            _write_entry(made, recipe, seed)
            # the entry's name says which bytes its tokens are of
            raise_if_any(contents.changes())
            cache.publish(made, entry, usable=lambda there: _open(there, "", cached=True) is not None)
    except OSError as err:
        place = f"the cache {cache.place()} ({err.strerror or err})"
        raise UserError("", f"cannot write to {place}; set FMSTUNE_CACHE to a folder where you can write") from err


def _write_entry(made: Path, recipe: Recipe, seed: int) -> None:
    problems: list[Problem] = []
    ledgers: dict[str, Ledger] = {}
    for split, rows in split_rows(recipe, seed).items():
        words = f"tokenising {recipe.field} ({split})"
        shown = tqdm(rows, desc=words, unit=" rows", delay=2, disable=not sys.stderr.isatty())
        with collect_problems(problems):
            ledgers[split] = _write_split(shown, made / f"{split}.arrow", recipe)
    raise_if_any(problems)
    raise_if_any(
        Problem(recipe.field, "\n".join([f": no row is left in the {split} split", *ledger.lines()]))
        for split, ledger in ledgers.items()
        if ledger.rows_trained == 0
    )
    facts = {
        "ledgers": {name: asdict(ledger) for name, ledger in ledgers.items()},
        "bytes": {name: (made / f"{name}.arrow").stat().st_size for name in ledgers},
    }
    (made / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def _write_split(split: Iterable[Placed], path: Path, recipe: Recipe) -> Ledger:
    """Tokenise a split in batches; raises all its problems at the end."""
    ledger, problems, schema = Ledger(), RowProblems(), cache_schema(recipe, path.stem)
    with ExitStack() as stack, pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        # rows are made and dropped in great numbers, without cycles: collecting would take a fifth of the time
        stack.callback(gc.set_threshold, *gc.get_threshold())
        gc.set_threshold(OBJECTS, *gc.get_threshold()[1:])
        for batch in tokenize_batches(split, recipe, ledger, problems, ahead=AHEAD):
            writer.write_batch(record_batch(batch, schema))
    raise_if_any(problems.first())
    return ledger


def tokenize_batches(
    split: Iterable[Placed], recipe: Recipe, ledger: Ledger, problems: RowProblems, *, ahead: int = 0
) -> Iterator[list[Numbered]]:
    """The trained rows in batches, each with its number; threads tokenise `ahead` more, and the ledger counts all."""
    formatted = format_rows(split, recipe, ledger, problems)
    waiting: deque[tuple[list[FormattedRow], Future[list[Encoded]]]] = deque()
    with ThreadPoolExecutor(max(1, ahead)) as pool:
        for batch in iter(lambda: list(islice(formatted, BATCH)), []):
            rows = [row.formatted for row in batch]
            made = pool.submit(tokens.encode_rows, rows, recipe.tokenizer, recipe.data.max_length)
            waiting.append((batch, made))
            if len(waiting) > ahead:
                done, made = waiting.popleft()
                yield _trainable(done, made.result(), recipe, ledger, problems)
        for done, made in waiting:
            yield _trainable(done, made.result(), recipe, ledger, problems)


def _trainable(
    batch: list[FormattedRow], encodings: list[Encoded], recipe: Recipe, ledger: Ledger, problems: RowProblems
) -> list[Numbered]:
    """The rows of a batch that are trained; the others are counted, and are problems unless they may be dropped."""
    kept: list[Numbered] = []
    data = recipe.data
    for (number, row, _), encoded in zip(batch, encodings, strict=True):
        if tuple(encoded.texts) != recipe.texts:
            found, wanted = (" and ".join(names) or "one text" for names in (encoded.texts, recipe.texts))
            problems.add_row(row, f"the format returns {found}, and the objective reads {wanted}")
        ledger.add_length(encoded.length, number)
        if encoded.length > data.max_length and data.over_length is not OverLength.truncate:
            ledger.rows_too_long += 1
            if data.over_length is OverLength.error:
                long = f"more than data.max_length={data.max_length} tokens"
                problems.add_row(row, f"{long}; raise it, or set data.over_length to truncate or drop")
        elif not encoded.answered:
            ledger.rows_without_answer += 1
            if data.untrainable is Untrainable.error:
                cut = f"data.max_length={data.max_length} leaves no token of the answer"
                problems.add_row(row, f"{cut}; raise it, or set data.untrainable=drop")
        else:
            ledger.add_trained(encoded)
            kept.append(Numbered(number, encoded))
    return kept


def record_batch(kept: Sequence[Numbered], schema: pa.Schema) -> pa.RecordBatch:
    """The columns of rows that are trained."""
    rows = [one.encoded for one in kept]
    columns = {
        "number": pa.array([one.number for one in kept], pa.int32()),
        "fingerprint": pa.array([fingerprint(row.input_ids) for row in rows], pa.int64()),
    }
    for name in set(schema.names) - columns.keys():
        is_text = name not in HELD_OUT_TOO.names
        columns[name] = _lists([row.texts.get(name, []) if is_text else getattr(row, name) for row in rows])
    return pa.record_batch(columns, schema=schema)


def fingerprint(ids: list[int]) -> int:
    """64 bits of a hash of the ids: equal for equal rows, and by chance for one pair in 10^19."""
    return int.from_bytes(hashlib.blake2b(array("i", ids).tobytes(), digest_size=8).digest(), "little", signed=True)


def _lists(lists: list[list[int]]) -> pa.Array:
    """The lists as one Arrow column, by way of flat buffers: `pa.array` takes seven times as long."""
    values = array("i")
    for numbers in lists:
        values.fromlist(numbers)
    offsets = array("i", accumulate(map(len, lists), initial=0))
    buffers = [pa.Array.from_buffers(pa.int32(), len(a), [None, pa.py_buffer(a)]) for a in (offsets, values)]
    return pa.ListArray.from_arrays(*buffers)


def _open(entry: Path, name: str, *, cached: bool) -> dict[str, Part] | None:
    """The entry, mapped; None if it does not exist or, with a warning, if it cannot be used."""
    if not entry.exists():
        return None
    from datasets import Dataset  # a second to import, and a scan or the cache's size need none

    parts: dict[str, Part] = {}
    try:
        facts = json.loads((entry / "facts.json").read_text(encoding="utf-8"))
        for split, values in facts["ledgers"].items():
            # from JSON, whose keys are strings
            values["lengths"] = {int(length): count for length, count in values["lengths"].items()}
            file = entry / f"{split}.arrow"
            if file.stat().st_size != facts["bytes"][split]:
                raise ValueError(f"{file.name} is not as it was written")
            parts[split] = Part(name, Dataset.from_file(str(file)), Ledger(**values), cached, entry.name)
        return parts
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as err:
        log.warning("cache entry %s is made again (%s: %s)", entry, type(err).__name__, err)
        return None


def cache_key(recipe: Recipe, seed: int, contents: Contents) -> str:
    """The name of the entry: a hash of all that the tokens depend on."""
    data, source, tokenizer = recipe.data, recipe.source, recipe.tokenizer
    assert tokenizer is not None
    code = [*CODE, *source_files(source.format or {})]
    facts = {
        "rows": contents.identity,
        "format": source.format,
        "code": [hashlib.sha256(path.read_bytes()).hexdigest() for path in code],
        "class": type(tokenizer).__name__,
        "library": version("tokenizers"),
        # a call sets these two, and ours sets them to nothing
        "backend": json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None},
        "end_of_sequence": tokenizer.eos_token_id,
        "split_special_tokens": tokenizer.split_special_tokens,
        "chat_template": tokenizer.chat_template,
        "length": (data.max_length, data.over_length.value, data.untrainable.value, source.max_rows),
        "split": cache_schema(recipe, TRAIN if recipe.trains else HELD_OUT).names,
        "drawn": (data.eval_fraction, seed) if recipe.trains and draws_held_out(data) else None,
    }
    if recipe.quarantined:
        facts["quarantined"] = sorted(recipe.quarantined)
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
