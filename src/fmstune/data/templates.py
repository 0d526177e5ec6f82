"""A Jinja file and a row → segments, `generation` blocks trained; and the limits of every template, chat's too."""

import os
import resource
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from jinja2 import Environment, StrictUndefined, Template, nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fmstune import files
from fmstune.data.tokens import RowProblem, Segment
from fmstune.errors import UserError, in_words

_MARK = f"\0{secrets.token_hex(16)}\0"
"""Stands at each end of trained text; it is random, so no row can hold it."""


SECONDS = 5.0
"""Of the processor, for one rendering; a long conversation takes a hundredth of a second."""
BYTES = 2 * 2**30
"""That one rendering may add to the memory of the process."""
CHARACTERS = 2**24
"""That one rendering may write: some million tokens."""
_TICK = 0.05
"""Seconds of the processor between two looks at the limits."""
_TOO_LARGE = f"it needs more than {BYTES / 2**30:g} GiB of memory"
_TOO_DEEP = "it calls itself without an end, or is nested too deeply"
_reached = Counter[str]()
"""How often each template has reached a limit: it has less time then, as it may do so for each of a million rows."""
names: dict[str, str] = {}
"""The file that a chat template was read from, by its text, for messages; tokenizers keep the text alone."""
_MOST = 100
"""Times after which a template is not tried again."""


class LimitReached(TemplateError):
    """A template that needs more than the limits allow; the message is the end of a sentence about it."""


class _Stopped(BaseException):
    """Raised in the template by the timer; a BaseException, as Jinja rewrites and templates' filters catch others."""


class limited:
    """Render or compile a template within limits of time, memory and depth; raises LimitReached.

    A template may come with a stranger's model.

    The timer is that of the process's own processor time, so that a busy machine stops nothing. Only the main thread
    can be interrupted: elsewhere there are the limits of memory and depth alone.
    """

    def __init__(self, template: str) -> None:
        self._template = template

    def __enter__(self) -> None:
        if (before := _reached[self._template]) >= _MOST:
            raise LimitReached("it has reached the limits too often")
        size, resident = _bytes_in_use()
        self._limits = _limit_address_space(size + 2 * BYTES) if size else None
        self._timed = threading.current_thread() is threading.main_thread()
        if self._timed:
            self._end, self._most = time.process_time() + SECONDS / (1 + 10 * before), resident + BYTES
            self._handler = signal.signal(signal.SIGVTALRM, self._look)
            signal.setitimer(signal.ITIMER_VIRTUAL, _TICK, _TICK)

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        if self._timed:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, self._handler)
        if self._limits is not None:
            resource.setrlimit(resource.RLIMIT_AS, self._limits)
        # Python itself nests twenty loops at most
        whys = ((_Stopped, str(err)), (MemoryError, _TOO_LARGE), ((RecursionError, SyntaxError), _TOO_DEEP))
        if (why := next((why for kinds, why in whys if isinstance(err, kinds)), None)) is not None:
            _reached[self._template] += 1
            raise LimitReached(why) from None

    def _look(self, _number: int, _frame: FrameType | None) -> None:
        if time.process_time() > self._end:
            raise _Stopped(f"it takes more than {SECONDS:g} seconds")
        if _bytes_in_use()[1] > self._most:
            raise _Stopped(_TOO_LARGE)


def bounded(text: str) -> str:
    """The text that a template wrote; raises LimitReached where it is longer than any row can be."""
    if len(text) > CHARACTERS:
        raise LimitReached(f"it writes more than {CHARACTERS:,} characters")
    return text


def check_template(text: Any) -> None:
    """Raise LimitReached for a template that is not text, or that no limit can stop: a power is one operation."""
    if not isinstance(text, str):
        raise LimitReached(f"it must be text, found {in_words(text)}")
    _check_operators(text)


@lru_cache(maxsize=16)
def _check_operators(text: str) -> None:
    before = ""
    for _, kind, value in Environment().lex(text):
        # `**` after a bracket or a comma hands on named arguments
        if kind == "operator" and value == "**" and before not in ("(", ","):
            raise LimitReached("it uses ** (powers), which fmstune does not calculate in templates")
        before = before if kind == "whitespace" else value


def _bytes_in_use() -> tuple[int, int]:
    """The size of this process, and how much of it is in memory; 0 where the system does not say (Linux does)."""
    if (file := _statm(os.getpid())) is None:
        return 0, 0
    size, resident, *_ = os.pread(file, 100, 0).split()
    return int(size) * resource.getpagesize(), int(resident) * resource.getpagesize()


@lru_cache(maxsize=1)
def _statm(_process: int) -> int | None:
    """The open file of this process's sizes: opening it for each row would take most of the time."""
    try:
        return os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return None


def _limit_address_space(size: int) -> tuple[int, int] | None:
    """Let one operation fail that would take all memory; the limits to go back to, or None if they are lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if any(limit != resource.RLIM_INFINITY and limit <= size for limit in (soft, hard)):
        return None
    resource.setrlimit(resource.RLIMIT_AS, (size, hard))
    return soft, hard


def render_row(template_file: str, row: Mapping[str, Any]) -> list[Segment]:
    """The row's text in the template; raises RowProblem if the row lacks a column or the template fails."""
    template = load_template(template_file)
    try:
        with limited(template_file):
            # a column may be called `self`, which `render(**row)` could not take
            text = bounded(template.render(dict(row)))
    except LimitReached as err:
        raise RowProblem(f"{template_file}: the template is stopped, as {err}") from err
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
    path = files.user_path(files.resolve(template_file))
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
        check_template(text)
        with limited(str(path)):
            parsed = environment.parse(text)
            template = environment.from_string(text)
    except LimitReached as err:
        raise UserError("data.format.template_file", f": {path}: {err}; simplify the template") from err
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
