"""A Jinja file and a row → segments: the text of the template's `generation` blocks is trained."""

import secrets
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template, nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fmstune import files
from fmstune.data.tokens import RowProblem, Segment
from fmstune.errors import UserError

_MARK = f"\0{secrets.token_hex(16)}\0"
"""Stands at each end of trained text; it is random, so no row can hold it."""


def render_row(template_file: str, row: Mapping[str, Any]) -> list[Segment]:
    """The row's text in the template; raises RowProblem if the row lacks a column or the template fails."""
    template = load_template(template_file)
    try:
        # a column may be called `self`, which `render(**row)` could not take
        text = template.render(dict(row))
    except UndefinedError as err:
        columns = ", ".join(map(repr, row))
        raise RowProblem(f"{template_file}: {err.message}; the row's columns are {columns}") from err
    except SecurityError as err:
        raise RowProblem(f"{template_file}: {err.message}, which a template may not do") from err
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as err:
        raise RowProblem(f"{template_file}: the template fails on this row ({type(err).__name__}: {err})") from err
    return [Segment(piece, trained=number % 2 == 1) for number, piece in enumerate(text.split(_MARK)) if piece]


def load_template(template_file: str) -> Template:
    """The template, compiled once; raises UserError if it is not a template, or marks nothing as trained."""
    path = Path(files.resolve(template_file)).expanduser()
    try:
        facts = path.stat()
        return _compiled(path, path.absolute(), facts.st_mtime_ns, facts.st_size)
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "not UTF-8"
        raise UserError("data.format.template_file", f": {path} cannot be read ({reason}); name a Jinja file") from err


@lru_cache(maxsize=16)
def _compiled(path: Path, *version: Any) -> Template:
    """The template of one version of the file."""
    text = path.read_text(encoding="utf-8")
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, extensions=[Generation], trim_blocks=True, lstrip_blocks=True
    )
    try:
        parsed = environment.parse(text)
        template = environment.from_string(text)
    except TemplateSyntaxError as err:
        where = f"{path}:{err.lineno}"
        raise UserError("data.format.template_file", f": {where}: {err.message}; fix the template") from err
    if not any(call.name == "_mark" for call in parsed.find_all(nodes.ExtensionAttribute)):
        advice = "put the answer between {% generation %} and {% endgeneration %} (all of it, to train everything)"
        raise UserError("data.format.template_file", f": {path} marks nothing as trained; {advice}")
    return template


class Generation(Extension):
    """`{% generation %}`, with which transformers' chat templates mark the assistant's words, for templates of rows."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """`{% generation %}` … `{% endgeneration %}` as a call of `_mark`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Macro) -> str:
        return f"{_MARK}{caller().replace(_MARK, '')}{_MARK}"
