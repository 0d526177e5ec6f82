"""A wrong command, the files that it finds, and the one message that comes back; and the check that all of it is so.

`…` in an expected message stands for words that are not fixed here. Several lines are several problems, reported
together. Every case ends with exit code 2, writes nothing to stdout, shows no traceback and leaves nothing behind.
"""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROW = '{"output": "question\\n### Response: answer"}\n'

ROWS = "data=text data.train=rows.jsonl"


class Case(NamedTuple):
    """One wrong command and the answer to it."""

    command: str
    says: tuple[str, ...]
    files: Mapping[str, str | bytes] = {}
    slow: bool = False
    """To answer it takes seconds."""


def case(command: str, *says: str, **files: str | bytes) -> Case:
    """A case; a file is named by a keyword, with `__` for the slash and `_jsonl` for its suffix."""
    suffixes = r"_(jsonl|json|csv|txt|yaml|bin|parquet|arrow|safetensors)$"
    named = {re.sub(suffixes, r".\1", name).replace("__", "/"): content for name, content in files.items()}
    return Case(command, says, named)


def write(files: Mapping[str, str | bytes], folder: Path) -> None:
    """Make the files that a command finds."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def content(folder: Path) -> list[str]:
    """All that is in the folder; of the cache, only what should not stay there."""
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return [name for name in found if not name.startswith("cache") or ".unfinished" in name]


BEFORE = (
    "fmstune: note: ",
    "fmstune: run folder ",
    "data tokenised: ",
    "data streamed; ",
    "the tokenizer had no pad token",
)
"""Lines of a command that was found to be wrong only when it had begun: notes, and its log."""


def assert_says(err: str, says: Sequence[str]) -> None:
    """The terminal shows these problems, in order, and nothing else but notes and the log before them."""
    assert "Traceback" not in err
    before, *rest = re.split(r"^fmstune: (?:error: |\d+ errors:\n)", err, flags=re.MULTILINE)
    assert all(line.startswith(BEFORE) for line in before.splitlines()), err
    assert len(rest) == 1, err
    found = re.split(r"^  \d+\. ", rest[0], flags=re.MULTILINE) if len(says) > 1 else ["", rest[0]]
    assert [text.strip() for text in found[1:]] == [Saying(text) for text in says], err


class Saying(str):
    """A message that equals what it says; `…` stands for anything."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        pattern = ".*".join(re.escape(part) for part in self.split("…"))
        return isinstance(other, str) and re.fullmatch(pattern, other, flags=re.DOTALL) is not None


def wrong_inputs(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """One test for each case, named by its command."""
    marks = {True: [pytest.mark.slow], False: []}
    return pytest.mark.parametrize(
        "wrong", [pytest.param(wrong, id=wrong.command[:70], marks=marks[wrong.slow]) for wrong in cases]
    )


def assert_answered(wrong: Case, fmstune: Callable[..., Any], folder: Path) -> None:
    """The command ends with the messages of the case, and leaves nothing in the folder."""
    write(wrong.files, folder)
    before = content(folder)

    result = fmstune(*shlex.split(wrong.command))

    assert_says(result.err, wrong.says)
    assert result.code == 2
    assert result.out == ""
    assert content(folder) == before
