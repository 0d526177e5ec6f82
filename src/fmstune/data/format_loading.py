"""`data.format` → the function that it names, its settings bound; and the check of what that function returns."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from fmstune import files
from fmstune.data import formats
from fmstune.data.tokens import Formatted, PreTrainedTokenizerBase, RowProblem, Rows, Segment, Texts, TokenRow
from fmstune.errors import Problem, UserError, did_you_mean, in_words, raise_if_any

Format = Callable[[Mapping[str, Any]], Any]


def load_format(
    format: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None = None, *, asking: bool = False
) -> Format:
    """The function that `data.format` names, its settings bound; raises UserError when the two do not fit.

    A function with a parameter `tokenizer` is given this one, and one with a parameter `asking` whether rows may lack
    their answer, since a model is asked.
    """
    function, settings = _bound(format)
    takes = list(inspect.signature(function).parameters)[1:]
    given = {"tokenizer": tokenizer, "asking": asking}
    return partial(function, **settings, **{name: value for name, value in given.items() if name in takes})


def question_row(format: Mapping[str, Any], text: str) -> dict[str, Any] | None:
    """The row that asks this text in the format, as its `asked_with` says; None where the format does not say."""
    function, settings = _bound(format)
    make = vars(function).get("question_row")
    return None if make is None else make(text, **settings)


def _bound(format: Mapping[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    function = _function(format.get("_target_"))
    settings = {name: value for name, value in format.items() if name != "_target_"}
    raise_if_any(_misfits(function, settings))
    return function, settings


def format_row(format: Format, values: Mapping[str, Any]) -> Formatted | Rows:
    """The row as the format returns it, checked: the format may be a user's, and not every string can be tokenised."""
    made: Formatted | Rows = format(values)
    if not isinstance(made, TokenRow):
        for text in made.values() if isinstance(made, Texts) else made if isinstance(made, Rows) else [made]:
            _check_segments(text)
    return made


def _check_segments(made: Any) -> None:
    """Raise RowProblem for anything but the segments of a text, and for text that cannot be tokenised."""
    if not isinstance(made, list) or not all(isinstance(segment, Segment) for segment in made):
        raise RowProblem(f"the format must return a list of fmstune.data.formats.Segment, found {made!r:.80}")
    try:
        for segment in made:
            segment.text.encode()
    except UnicodeEncodeError as err:
        half = f"\\u{ord(err.object[err.start]):04x}"
        raise RowProblem(f"the text holds half a character ({half}, a lone surrogate); remove it") from err


def source_files(format: Mapping[str, Any]) -> list[Path]:
    """The files that the format's settings name, and the Python files of its package; fmstune's own are left out."""
    found: list[Path] = []
    for name, value in format.items():
        # a text such as a response template may be longer than a path can be, or hold what no path holds
        if name != "_target_" and isinstance(value, str) and 0 < len(value) < 1024 and not {"\0", "\n"} & set(value):
            path = files.user_path(files.resolve(value))
            found += [path] if path.is_file() else []
    function = _function(format.get("_target_"))
    top = function.__module__.partition(".")[0]
    if top == "fmstune":
        return found
    if (folders := vars(sys.modules[top]).get("__path__")) is not None:
        return [*found, *sorted(path for folder in folders for path in Path(folder).rglob("*.py") if path.is_file())]
    file = inspect.getsourcefile(function)
    return [*found, Path(file)] if file else found


def _function(target: Any) -> Callable[..., Any]:
    """A public function that the named module defines: functions that it only imports may do anything with a row."""
    module_name, _, name = target.rpartition(".") if isinstance(target, str) else ("", "", "")
    if not module_name:
        raise UserError("data.format._target_", f"must be like fmstune.data.formats.text, found {target!r}")
    try:
        module = importlib.import_module(module_name)
    except ImportError as err:
        raise UserError("data.format._target_", f": cannot import {module_name} ({err})") from err
    functions = {key: one for key, one in vars(module).items() if inspect.isfunction(one) and not key.startswith("_")}
    known = [key for key, one in functions.items() if one.__module__ == module_name]
    if module_name.partition(".")[0] == "fmstune":
        known = [key for key in known if module is formats and key in formats.FORMATS]
    function = vars(module).get(name)
    if name not in known or not inspect.isfunction(function):
        raise UserError("data.format._target_", f": {_no_format(module_name, name, function, known)}")
    first = next(iter(inspect.signature(function).parameters.values()), None)
    if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        raise UserError("data.format._target_", f": {target} must take the row as its first argument")
    return function


def _wanted(annotation: Any, value: Any) -> str | None:
    """What a setting must be, in words; None where the value is that, or the function does not say."""
    if annotation in (str, str | None):
        return None if isinstance(value, annotation) else "a string"
    if annotation == Mapping[str, Any] | None:
        return None if value is None or isinstance(value, Mapping) else "a mapping of names to values"
    if annotation is bool:
        return None if isinstance(value, bool) else "true or false"
    choices = get_args(annotation) if get_origin(annotation) is Literal else (value,)
    return None if value in choices else f"one of {', '.join(map(str, choices))}"


def _no_format(module: str, name: str, found: object, known: Sequence[str]) -> str:
    """The problem of a name that is not one of the known formats."""
    if not inspect.isfunction(found):
        return f"{module} has no function {name!r}{did_you_mean(name, known)}"
    if module.partition(".")[0] == "fmstune":
        return f"{module}.{name} is not a format; the formats of fmstune.data.formats are {', '.join(formats.FORMATS)}"
    if name.startswith("_"):
        return f"{module}.{name} is private; name a public function"
    return f"{module} only imports {name!r}; name the module that defines it, {found.__module__}.{found.__name__}"


def _misfits(function: Callable[..., Any], settings: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each setting that the function does not take, or needs and is not given."""
    name = function.__name__
    row, *parameters = inspect.signature(function).parameters.values()
    parameters = [p for p in parameters if p.name not in ("tokenizer", "asking")]
    takes = {p.name: p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for setting, value in settings.items():
        if setting not in takes:
            if not takes_any or setting == row.name:
                yield Problem(f"data.format.{setting}", f": {name} has no such setting{did_you_mean(setting, takes)}")
        elif (wanted := _wanted(takes[setting].annotation, value)) is not None:
            yield Problem(f"data.format.{setting}", f"must be {wanted}, found {in_words(value)}")
    for setting, parameter in takes.items():
        if parameter.default is parameter.empty and setting not in settings:
            yield Problem(f"data.format.{setting}", f"is missing; {name} needs it")
