"""A flag is declared once, as a field: parsed, described and completed from there."""

import argparse
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from fmstune.config.flags import (
    NOT_TYPED,
    POSITIONAL,
    As,
    add_flags,
    flag_lines,
    flags_of,
    make_request,
    missing_flags,
    spellings,
    words_of,
)
from fmstune.config.requests import Generation, Harness, Verb
from fmstune.errors import UserError


class Kind(Enum):
    small = "small"
    large = "large"


@dataclass(frozen=True, kw_only=True)
class Base:
    model: Annotated[str, As("PLACE")]
    """A model."""


@dataclass(frozen=True, kw_only=True)
class Asked(Base):
    folder: Annotated[str, POSITIONAL] = ""
    job: Annotated[dict[str, Any] | None, NOT_TYPED] = None
    rows: int = 3
    """How many rows."""
    where: Annotated[Path | None, As("FILE", ("--from", "-f"))] = None
    """Another file."""
    kind: Kind = Kind.small
    """Which kind."""
    way: Literal["up", "down"] | None = None
    """Which way."""
    stop: tuple[str, ...] = ()
    """Where to stop."""
    names: Annotated[tuple[str, ...], As("A,B", commas=True)] = ()
    """Names."""
    quiet: bool = False
    """Say nothing."""
    secret: bool = False


def parsed(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser, Asked)
    return vars(parser.parse_args(words))


def test_what_is_not_typed_has_the_default_of_its_field() -> None:
    assert parsed("--model", "m") == {"model": "m"}
    assert make_request(Asked, parsed("--model", "m")) == Asked(model="m")


def test_each_type_is_read_as_its_field_has_it() -> None:
    words = ("--model=m", "--rows", "5", "-f", "x", "--kind", "large", "--way=up", "--stop", "a", "--stop", "b")
    asked = make_request(Asked, parsed(*words, "--names", "a, b", "--quiet"))
    assert asked == Asked(
        model="m", rows=5, where=Path("x"), kind=Kind.large, way="up", stop=("a", "b"), names=("a", "b"), quiet=True
    )


@pytest.mark.parametrize("words", [("--rows", "x"), ("--kind", "huge"), ("--way", "left")])
def test_a_wrong_value_is_refused(words: tuple[str, str]) -> None:
    with pytest.raises(argparse.ArgumentError):
        parsed(*words)


def test_the_words_of_a_request_make_an_equal_one() -> None:
    asked = Asked(model="m", rows=5, where=Path("x"), stop=("a", "b"), quiet=True)
    assert words_of(asked) == ["--model=m", "--rows=5", "--from=x", "--stop=a", "--stop=b", "--quiet"]
    assert make_request(Asked, parsed(*words_of(asked))) == asked


def test_the_help_is_the_line_under_the_field_with_the_default() -> None:
    assert flag_lines(Asked) == [
        "--model PLACE       A model",
        "--rows N            How many rows (3)",
        "-f, --from FILE     Another file",
        "--kind small|large  Which kind (small)",
        "--way up|down       Which way",
        "--stop STOP         Where to stop",
        "--names A,B         Names",
        "--quiet             Say nothing",
    ]


def test_only_what_the_help_describes_is_suggested() -> None:
    assert "--secret" not in spellings(Asked) and "--quiet" in spellings(Asked)


def test_a_flag_without_a_default_must_be_given() -> None:
    assert [str(problem) for problem in missing_flags(Asked, {})] == ["--model must be given: a model"]
    assert list(missing_flags(Asked, {"model"})) == []


@pytest.mark.parametrize("request_class", [*(verb.options for verb in Verb), Harness])
def test_every_flag_of_every_verb_has_a_help(request_class: type) -> None:
    assert len(spellings(request_class)) == len(flags_of(request_class)) <= len(fields(request_class))


def test_a_word_that_the_locale_could_not_decode_is_text_where_it_is_utf_8() -> None:
    undecoded = "Grüße".encode().decode("ascii", "surrogateescape")
    assert make_request(Generation, {"model": "m", "text": undecoded}).text == "Grüße"
    with pytest.raises(UserError, match=r"--text must be text in UTF-8, got 'a\\udcff'"):
        make_request(Generation, {"model": "m", "text": "a\udcff"})
