"""The flags of a command, from the dataclass of their values: a field's type parses, the line under it is the help."""

import argparse
import ast
import inspect
import os
import re
import types
import typing
from collections.abc import Container, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from functools import cache
from typing import Annotated, Any, NamedTuple, TypeVar

from fmstune.config.upstream_fields import field_of
from fmstune.errors import Problem, UserError

PLACES = ("PLACE", "FILE", "DIR")
"""Metavars of files and folders, in which `~` is the user's own."""
POSITIONAL = "a word without a flag"
NOT_TYPED = "filled in by the parent process"
"""Marks a field in `Annotated` that is not a flag."""
Request = TypeVar("Request")
"""Any dataclass."""


class As(NamedTuple):
    """How a flag is typed, if its name and its type do not say so; a mark for `Annotated`."""

    metavar: str = ""
    flags: tuple[str, ...] = ()
    commas: bool = False  # one word holds several values with commas between
    alone: str | None = None  # the value of the flag without one


@dataclass(frozen=True)
class Flag:
    """One field of a request as it is typed."""

    field: str
    spellings: tuple[str, ...]  # the usual one first
    metavar: str
    kind: type
    choices: tuple[str, ...]
    repeated: bool
    commas: bool
    alone: str | None
    default: Any

    def value(self, given: Any) -> Any:
        """The field's value, from what the parser or a JSON file holds."""
        if self.commas and isinstance(given, str):
            given = [part.strip() for part in given.split(",")]
        return tuple(map(self._one, given)) if isinstance(given, list) else self._one(given)

    def _one(self, given: Any) -> Any:
        if self.metavar in PLACES and isinstance(given, str):
            if re.search("[\ud800-\udfff]", given):
                # no library of Rust opens it
                raise UserError(self.spellings[0], f"must be a path in UTF-8, got {given!r}")
            # a shell does so in `--model ~/run`, and not in `--model=~/run`
            return os.path.expanduser(given)
        if isinstance(given, str):
            given = _as_text(given, self.spellings[0])
        return self.kind(given) if given is not None and issubclass(self.kind, Enum) else given


def _as_text(given: str, flag: str) -> str:
    """The word as text, also where the locale could not decode it; raises UserError for bytes that are not UTF-8."""
    try:
        return os.fsencode(given).decode() if re.search("[\udc80-\udcff]", given) else given
    except UnicodeError:
        raise UserError(flag, f"must be text in UTF-8, got {given!r}") from None


def flags_of(request: type) -> list[Flag]:
    """The fields of a request that are flags, in their order."""
    hints = typing.get_type_hints(request, include_extras=True)
    found = ((field, *_kind_and_marks(hints[field.name])) for field in fields(request))
    return [_flag(field, kind, marks) for field, kind, marks in found if not {POSITIONAL, NOT_TYPED} & {*marks}]


def _kind_and_marks(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The first type of an annotation, and what `Annotated` adds to it."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return _kind_and_marks(typing.get_args(hint)[0])
    if typing.get_origin(hint) is Annotated:
        kind, marks = _kind_and_marks(hint.__origin__)
        return kind, (*marks, *hint.__metadata__)
    return hint, ()


def _flag(field: Any, kind: Any, marks: tuple[Any, ...]) -> Flag:
    several = typing.get_origin(kind) is tuple
    kind = typing.get_args(kind)[0] if several else kind
    choices = field_of(field.name, kind).choices
    kind = str if typing.get_origin(kind) is typing.Literal else kind
    typed = next((mark for mark in marks if isinstance(mark, As)), As())
    usual = {int: "N", float: "X", bool: ""}.get(kind, "|".join(choices) or field.name.rpartition("_")[2].upper())
    spellings, metavar = typed.flags or (f"--{field.name}",), typed.metavar or usual
    repeated = several and not typed.commas
    return Flag(field.name, spellings, metavar, kind, choices, repeated, typed.commas, typed.alone, field.default)


def add_flags(parser: argparse.ArgumentParser, request: type, only: Container[str] | None = None) -> None:
    """Let the parser read the flags of a request; a flag that is not given sets nothing."""
    for flag in flags_of(request):
        how: dict[str, Any] = {"action": "store_true"}
        if flag.kind is not bool:
            how = {"type": str if flag.choices else flag.kind, "choices": flag.choices or None}
            how["action"] = "append" if flag.repeated else "store"
            how |= {"nargs": "?", "const": flag.alone} if flag.alone else {}
        if only is None or flag.field in only:
            parser.add_argument(*flag.spellings, dest=flag.field, default=argparse.SUPPRESS, **how)


def spellings(request: type, only: Container[str] | None = None) -> list[str]:
    """The usual spelling of each flag that the help describes."""
    described = field_docs(request)
    wanted = (flag for flag in flags_of(request) if only is None or flag.field in only)
    return [flag.spellings[0] for flag in wanted if flag.field in described]


def missing_flags(request: type, given: Container[str]) -> Iterator[Problem]:
    """Yield a problem for each flag that must be given and is not, with the words of its help."""
    for flag in flags_of(request):
        if flag.default is MISSING and flag.field not in given:
            doc = field_docs(request)[flag.field]
            yield Problem(flag.spellings[0], f"must be given: {doc[0].lower()}{doc[1:].removesuffix('.')}")


def make_request(request: type[Request], given: Mapping[str, Any]) -> Request:
    """The request whose fields have these values, as a parser or a JSON file holds them."""
    flags = {flag.field: flag for flag in flags_of(request)}
    return request(**{name: flags[name].value(value) if name in flags else value for name, value in given.items()})


def words_of(request: Any) -> list[str]:
    """The flags that give an equal request."""
    found: list[str] = []
    for flag in flags_of(type(request)):
        value, name = getattr(request, flag.field), flag.spellings[0]
        if value is True:
            found.append(name)
        elif value != flag.default:
            found += [f"{name}={one}" for one in (value if isinstance(value, tuple) else (value,))]
    return found


@cache
def field_docs(request: type) -> Mapping[str, str]:
    """The line under each field, those of base classes included."""
    docs: dict[str, str] = {}
    for base in reversed(request.__mro__[:-1]):
        (node,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(node, ast.ClassDef)
        for field, doc in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
                docs[ast.unparse(field.target)] = str(doc.value.value)
    return docs


def flag_lines(request: type) -> list[str]:
    """A line of help for each flag: its spellings, its help, its default."""
    docs = field_docs(request)
    rows = []
    for flag in (flag for flag in flags_of(request) if flag.field in docs):
        value = flag.default.value if isinstance(flag.default, Enum) else flag.default
        default = f" ({value})" if isinstance(value, int | float | str) and value not in (False, "") else ""
        usage = f"{', '.join(sorted(flag.spellings, key=len))} {flag.metavar}".rstrip()
        rows.append((usage, docs[flag.field].removesuffix(".") + default))
    width = max((len(usage) for usage, _ in rows), default=0)
    return [f"{usage:<{width}}  {doc}" for usage, doc in rows]
