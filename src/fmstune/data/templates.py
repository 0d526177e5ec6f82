"""A Jinja file and a row → segments: the text of the template's `generation` blocks is trained."""

import re
import secrets
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined, Template, nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fmstune import files
from fmstune.data.tokens import RowProblem, Segment
from fmstune.errors import UserError


class RowTemplate(NamedTuple):
    """A compiled template, and the random words around its trained text, which no row can hold."""

    template: Template
    begin: str
    end: str


def render_row(template_file: str, row: Mapping[str, Any]) -> list[Segment]:
    """The row's text in the template; raises RowProblem if the row lacks a column or the template fails.

    Raises UserError if the file is not a template, or marks nothing as trained.
    """
    compiled = load_template(template_file)
    try:
        # a column may be called `self`, which `render(**row)` could not take
        text = compiled.template.render(dict(row))
    except UndefinedError as err:
        columns = ", ".join(map(repr, row))
        raise RowProblem(f"{template_file}: {err.message}; the row's columns are {columns}") from err
    except SecurityError as err:
        raise RowProblem(f"{template_file}: {err.message}, which a template may not do") from err
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as err:
        raise RowProblem(f"{template_file}: the template fails on this row ({type(err).__name__}: {err})") from err
    return _segments(text, compiled)


def _segments(text: str, compiled: RowTemplate) -> list[Segment]:
    """The text, divided at the words around trained text."""
    pieces = re.split(f"({re.escape(compiled.begin)}|{re.escape(compiled.end)})", text)
    found: list[Segment] = []
    trained = False
    for piece in pieces:
        if piece in (compiled.begin, compiled.end):
            trained = piece == compiled.begin
        elif piece:
            found.append(Segment(piece, trained))
    return found


def load_template(template_file: str) -> RowTemplate:
    """The template, compiled once; raises UserError if it is not a template, or marks nothing as trained."""
    path = Path(files.resolve(template_file)).expanduser()
    try:
        facts = path.stat()
        return _compiled(path, path.absolute(), facts.st_mtime_ns, facts.st_size)
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "not UTF-8"
        raise UserError("data.format.template_file", f": {path} cannot be read ({reason}); name a Jinja file") from err


@lru_cache(maxsize=16)
def _compiled(path: Path, *version: Any) -> RowTemplate:
    """The template of one version of the file."""
    text = path.read_text(encoding="utf-8")
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, extensions=[_Generation], trim_blocks=True, lstrip_blocks=True
    )
    words = [f"\0{secrets.token_hex(16)}\0" for _ in range(2)]
    environment.extend(trained_begin=words[0], trained_end=words[1])
    try:
        parsed = environment.parse(text)
        template = environment.from_string(text)
    except TemplateSyntaxError as err:
        where = f"{path}:{err.lineno}"
        raise UserError("data.format.template_file", f": {where}: {err.message}; fix the template") from err
    if not any(isinstance(node.call, nodes.Call) and _marks(node.call) for node in parsed.find_all(nodes.CallBlock)):
        raise UserError(
            "data.format.template_file",
            f": {path} marks nothing as trained; "
            "put the answer between {% generation %} and {% endgeneration %} (all of it, to train everything)",
        )
    return RowTemplate(template, *words)


def _marks(call: nodes.Call) -> bool:
    return isinstance(call.node, nodes.ExtensionAttribute) and call.node.name == "_mark"


class _Generation(Extension):
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
        extended: Any = self.environment
        return f"{extended.trained_begin}{caller()}{extended.trained_end}"
