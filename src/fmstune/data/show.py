"""The views of `show-data`: the first rows with their trained tokens marked, and sums; or all rows as JSON."""

import json
import re
import textwrap
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from fmstune.data.chat_template import answer_ends
from fmstune.data.dataset import Prepared
from fmstune.data.mixing import mixture_lines
from fmstune.data.prefix_sharing.tree import BatchTree, Node
from fmstune.data.tokens import IGNORED, PreTrainedTokenizerBase, Segment
from fmstune.files import render_template, write_aside
from fmstune.tables import count_of, numbers

if TYPE_CHECKING:
    from datasets import Dataset

BAR = 40
"""Characters of the longest bar."""
BARS = 10
TREE = "One batch as a tree"
MOST_DEPTH = 12
"""Levels of a tree that are indented; deeper ones are indented as the last of them."""
VISIBLE = {code: chr(0x2400 + code) for code in range(32)} | {ord("\t"): "→", ord("\n"): "↵\n"}
"""Unicode has a picture for each control character."""

PLAIN = {True: "⟦{}⟧", False: "{}"}
COLOR = {True: "\x1b[1;32m{}\x1b[0m", False: "\x1b[2m{}\x1b[0m"}
"""The print of trained (True) and masked (False) text."""

LEGEND = (Segment("trained", True), Segment("·masked", False))
WHITE_SPACE = "↵ is a line break, · a space, → a tab"


class ShownRow(NamedTuple):
    """One row as both views show it."""

    title: str
    runs: list[Segment]
    """Its text, white space visible."""


class SplitSums(NamedTuple):
    """The sums of one split as both views show them."""

    title: str
    lines: list[str]
    """The ledger, rows that lose their end, rows that train where to stop."""
    lengths: Mapping[int, int]
    """Rows by their number of tokens."""


class Bin(NamedTuple):
    """A bar of the histogram: rows of `first` to `last` tokens."""

    first: int
    last: int
    rows: int


class ShownNode(NamedTuple):
    """One segment of a batch whose rows share their beginnings."""

    depth: int
    title: str
    runs: list[Segment]


class ShownTree(NamedTuple):
    """Such a batch as both views show it."""

    title: str
    nodes: list[ShownNode]


def render_rows(
    prepared: Prepared, tokenizer: PreTrainedTokenizerBase, rows: int = 3, *, color: bool, tree: ShownTree | None = None
) -> str:
    """The first rows as the model gets them and a batch that shares, then the sums of each split."""
    paint = COLOR if color else PLAIN
    shown = [f"{row.title}\n{_painted(row.runs, paint)}" for row in first_rows(prepared, tokenizer, rows)]
    sums = ["\n".join([s.title, *s.lines, *histogram(s.lengths)]) for s in split_sums(prepared, tokenizer)]
    if tree is not None:
        shown.append("\n".join([f"{TREE}: {tree.title}", *(_indented(node, paint) for node in tree.nodes)]))
    return "\n\n".join([f"{_painted(LEGEND, paint)}; {WHITE_SPACE}", *shown, *sums])


def _indented(node: ShownNode, paint: Mapping[bool, str]) -> str:
    """A node under its parent; of very deep ones, the lines would have no room."""
    text = f"─ {node.title}\n{_painted(node.runs, paint)}".replace("\n", "\n  ")
    return textwrap.indent(text, "  " * min(node.depth, MOST_DEPTH), lambda _: True)


def write_rows_page(
    prepared: Prepared,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    *,
    title: str,
    rows: int,
    tree: ShownTree | None = None,
) -> None:
    """Write a page that needs nothing else (no script, font or request); the file appears when it is complete."""
    text = rows_page(title, list(first_rows(prepared, tokenizer, rows)), list(split_sums(prepared, tokenizer)), tree)
    with written_aside(path) as file:
        file.write(text)


def rows_page(title: str, rows: Sequence[ShownRow], sums: Sequence[SplitSums], tree: ShownTree | None = None) -> str:
    """The whole page; the text of rows and names is escaped."""
    return render_template(
        Path(__file__).with_name("show.html.jinja"),
        title=title,
        legend=LEGEND,
        white_space=WHITE_SPACE,
        rows=rows,
        tree=tree,
        tree_head=TREE,
        most_depth=MOST_DEPTH,
        sums=sums,
        bins=bins,
    )


def show_tree(tree: BatchTree, tokenizer: PreTrainedTokenizerBase) -> ShownTree:
    """A batch whose rows share their beginnings, as a reader sees it; rows have their numbers among all rows."""
    nodes = []
    for node in tree.nodes:
        trained = [rows > 0 for rows in node.trained_by]
        text = marked_text(node.before, node.tokens, trained, tokenizer)
        runs = [Segment(visible(run.text), run.trained) for run in text]
        nodes.append(ShownNode(node.depth, _node_title(node), runs))
    return ShownTree(tree.title, nodes)


def _node_title(node: Node) -> str:
    """Which rows it is computed for, and what that saves."""
    trained = sum(rows > 0 for rows in node.trained_by)
    some = sum(0 < rows < len(node.rows) for rows in node.trained_by)
    parts = [count_of(node.length, "token"), f"{trained:,} trained{f' ({some:,} not by all rows)' if some else ''}"]
    named = numbers([row + 1 for row in node.rows])
    if len(node.rows) == 1:
        return f"row {named}: {', '.join(parts)}"
    parts.append(f"{count_of(node.saved, 'position')} saved")
    if node.ends:
        one = len(node.ends) == 1
        parts.append(f"row{'' if one else 's'} {numbers([row + 1 for row in node.ends])} end{'s' if one else ''} here")
    return f"{len(node.rows):,} rows ({named}): {', '.join(parts)}"


def first_rows(prepared: Prepared, tokenizer: PreTrainedTokenizerBase, rows: int) -> Iterator[ShownRow]:
    """The first training rows of each source."""
    for part in prepared.sources:
        for number in range(min(rows, len(part.rows))):
            row = part.rows[number]
            trained = sum(label != IGNORED for label in row["labels"])
            name = f"{part.name} row {number + 1}".strip()
            title = f"{name}: {len(row['input_ids']):,} tokens, {trained:,} trained"
            yield ShownRow(title, [Segment(visible(run.text), run.trained) for run in mask_runs(row, tokenizer)])


def split_sums(prepared: Prepared, tokenizer: PreTrainedTokenizerBase) -> Iterator[SplitSums]:
    """The sums of the training rows and of the held-out rows, by source, and of their mixture."""
    train = "training rows" if prepared.streamed is None else "the first training rows"
    for title, parts in ((train, prepared.sources), ("held-out rows", prepared.held_out)):
        for part in parts:
            ledger = part.ledger
            cut = ledger.rows_truncated / ledger.rows_trained
            lines = [
                *ledger.lines(),
                f"cut     {ledger.rows_truncated:,} of {ledger.rows_trained:,} rows lose their end ({cut:.1%})",
                stop_line(part.rows, tokenizer),
            ]
            yield SplitSums(f"{title} of {part.name}" if part.name else title, lines, ledger.lengths)
    if len(prepared.mixture) > 1:
        yield SplitSums("mixture", mixture_lines(prepared.mixture), {})
    if prepared.shared:
        yield SplitSums("rows of both", [f"note    {note}" for note in prepared.notes()], {})


def write_rows_json(prepared: Prepared, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """All training rows in file order as one JSON array; the file appears when it is complete."""
    with written_aside(path) as file:
        for number, (source, row) in enumerate((part.name, row) for part in prepared.sources for row in part.rows):
            values = {"input_ids": row["input_ids"], "labels": row["labels"]} | ({"source": source} if source else {})
            trained = [label for label in row["labels"] if label != IGNORED]
            values |= {"trained_text": tokenizer.decode(trained, skip_special_tokens=False)}
            file.write(("[\n" if number == 0 else ",\n") + json.dumps(values, ensure_ascii=False))
        file.write("\n]\n")


@contextmanager
def written_aside(path: Path) -> Iterator[TextIO]:
    """A file that takes the place of `path` when all is written."""
    # half of a surrogate pair cannot be written in UTF-8; it is written as its number
    with write_aside(path) as aside, aside.open("w", encoding="utf-8", errors="xmlcharrefreplace") as file:
        yield file


def mask_runs(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    """The row's text, divided where training changes to masking and back.

    Each run is the text that its tokens add to the text before them: decoded alone, it would lose its first space.
    """
    return marked_text((), row["input_ids"], [label != IGNORED for label in row["labels"]], tokenizer)


def marked_text(
    context: Sequence[int], tokens: Sequence[int], trained: Sequence[bool], tokenizer: PreTrainedTokenizerBase
) -> list[Segment]:
    """The text that these tokens add to that of the tokens before them, in runs that are trained or not."""
    ids, end, found = [*context, *tokens], len(context), list[Segment]()
    before = str(tokenizer.decode(ids[:end], skip_special_tokens=False)) if context else ""
    for is_trained, same in groupby(trained):
        end += len(list(same))
        text = str(tokenizer.decode(ids[:end], skip_special_tokens=False))
        known = before
        if not text.startswith(before):
            # a character that the tokens before have begun is of these
            known = before.rstrip("\ufffd")
            found = [run._replace(text=run.text.rstrip("\ufffd")) for run in found]
        found.append(Segment(text[len(known) :], is_trained))
        before = text
    return found


def stop_line(rows: "Dataset", tokenizer: PreTrainedTokenizerBase) -> str:
    """What the rows train as their end, which is where `fmstune generate` stops, and how many of them do."""
    of, ends = f"of {len(rows):,} rows train", answer_ends(tokenizer)
    stops = {tokenizer.eos_token_id, *tokenizer.all_special_ids, *(end.token for end in ends if end.token is not None)}
    counted = trained_ends(rows, stops)
    for end in (one for one in ends if one.token is None and not counted):
        # a text is at most as many tokens as it has bytes
        last = len(end.text.encode())
        tails = ([label for label in row[-last:] if label != IGNORED] for row in rows["labels"])
        if count := sum(str(tokenizer.decode(tail)).endswith(end.decoded) for tail in tails):
            advice = f"model.special_tokens.extra_special_tokens=['{end.text}'] makes it one token"
            return f"stop    {count:,} {of} {end.text} as their last tokens; {advice}"
    most = counted.most_common(1)[0][0] if counted else tokenizer.eos_token_id
    return f"stop    {counted[most]:,} {of} {tokenizer.convert_ids_to_tokens(most)} ({most}) as their last token"


def trained_ends(dataset: "Dataset", special: Collection[int]) -> Counter[int]:
    """The special tokens that rows train as their last one, so that the model learns to stop, and how often."""
    return Counter(
        labels[-1]
        for batch in dataset.select_columns("labels").iter(batch_size=1000)
        for labels in batch["labels"]
        if labels and labels[-1] in special
    )


def bins(lengths: Mapping[int, int]) -> list[Bin]:
    """Rows by their number of tokens, in ranges of equal width from the shortest to the longest."""
    if not lengths:
        return []
    width = -(-max(lengths) // BARS)
    rows = Counter[int]()
    for length, count in lengths.items():
        rows[(length - 1) // width] += count
    return [Bin(n * width + 1, (n + 1) * width, rows[n]) for n in range(min(rows), max(rows) + 1)]


def histogram(lengths: Mapping[int, int]) -> list[str]:
    """The bins as text bars."""
    found = bins(lengths)
    most, digits = max((b.rows for b in found), default=0), len(f"{-(-max(lengths, default=0) // BARS) * BARS:,}")
    return [
        f"{b.first:>{digits},} to {b.last:>{digits},} tokens  {'█' * -(-b.rows * BAR // most):<{BAR}} {b.rows:,}"
        for b in found
    ]


def _painted(runs: Sequence[Segment], paint: Mapping[bool, str]) -> str:
    return "".join(paint[run.trained].format(run.text) for run in runs)


def visible(text: str) -> str:
    """The text with spaces at its ends, line breaks, tabs and control characters as characters that are seen."""
    return re.sub(r"^ +| +\Z", lambda spaces: "·" * len(spaces[0]), text).translate(VISIBLE)
