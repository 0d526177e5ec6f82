"""The fields of other libraries' configuration classes, read from their sources: importing TRL would take seconds."""

import ast
import importlib.util
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from fmstune.errors import UserError

SFT_CONFIG = "trl.SFTConfig"
"""The class whose fields `training` takes."""
_TYPES = {"int": int, "float": float, "bool": bool, "str": str} | {
    name: getattr(typing, name) for name in ("Optional", "Union", "Literal")
}
"""Names of an annotation that is checked; with any other, every value is taken."""


@dataclass(frozen=True)
class Field:
    """One field: the primitive types it takes (none: anything goes), if null is one, and its choices, if listed."""

    name: str
    primitives: tuple[type, ...]
    optional: bool
    choices: tuple[str, ...] = ()
    items: tuple[type, ...] = ()
    """What a list holds, where all of it is one kind of plain value; nothing: any value goes."""
    words: tuple[str, ...] = ()
    """Words that stand for a value which fmstune finds, in addition to what the class takes."""


def field_of(name: str, hint: Any, listed: Sequence[str] = ()) -> Field:
    """The field with this annotation, and with choices that are listed elsewhere."""
    kinds, choices, optional = list[type](), [*listed], False
    for part in _parts(hint):
        if typing.get_origin(part) is typing.Literal:
            choices += [value for value in typing.get_args(part) if isinstance(value, str)]
            kinds += [bool for value in typing.get_args(part) if isinstance(value, bool)]
        elif isinstance(part, type) and issubclass(part, Enum):
            choices += [member.value for member in part]
        elif (kind := typing.get_origin(part) or part) in (int, float, bool, str, list, dict):
            kinds.append(kind)
        elif part is type(None):
            optional = True
        else:
            return Field(name, (), True)
    # `SchedulerType | str` means the values of the enum; a pattern such as "pissa_niter_[n]" leaves the text open
    closed = tuple(choices) if not any("[" in choice for choice in choices) else ()
    primitives = tuple(kind for kind in kinds if not (closed and kind is str))
    return Field(name, (*primitives, str) if choices else primitives, optional, closed, _items(hint))


def _parts(hint: Any) -> tuple[Any, ...]:
    """What a union is made of; of another annotation, itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _items(hint: Any) -> tuple[type, ...]:
    """What the lists of an annotation hold, such as `str` of `list[str] | None`."""
    lists = [part for part in _parts(hint) if (typing.get_origin(part) or part) is list]
    held = [item for part in lists for item in typing.get_args(part) or (None,)]
    return tuple(held) if all(item in (int, float, str) for item in held) else ()


@cache
def fields_of(target: str) -> Mapping[str, Field]:
    """The fields of the configuration class `target`, its bases included (`trl.SFTConfig`, `peft.XConfig`)."""
    package, _, name = target.rpartition(".")
    if not has_class(target):
        raise UserError("", f"{target}: the installed {package} has no configuration class {name!r}")
    found, enums = dict[str, Field](), _enums(target)
    for node in _ancestors(name, _classes(target)):
        for field, statement in _annotated(node):
            arguments = _arguments(statement.value)
            if not field.startswith("_") and getattr(arguments.get("init"), "value", True) is not False:
                found.setdefault(field, field_of(field, _hint(statement, enums), _choices(arguments.get("metadata"))))
    return found


def training_fields(config_class: str) -> Mapping[str, Field]:
    """The fields of the group `training`: those of the class, where the learning rate may also be `auto`."""
    fields, rate = fields_of(config_class), "learning_rate"
    return {**fields, rate: replace(fields[rate], words=("auto",))} if rate in fields else fields


def defaults_in_source(target: str) -> dict[str, Any]:
    """The literal default of each field of the class `target`, its bases left out."""
    fields, statements = fields_of(target), _annotated(_classes(target)[target.rpartition(".")[2]])
    return {name: ast.literal_eval(one.value) for name, one in statements if one.value and name in fields}


def has_class(target: str) -> bool:
    """Whether the installed package defines the configuration class that `target` names."""
    return target.rpartition(".")[2] in _classes(target)


def class_names(target: str) -> list[str]:
    """The classes that stand where `target` is looked for."""
    return list(_classes(target))


def package_folder(package: str) -> Path:
    """Where an installed package lies, found without importing it; raises UserError when it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError("", f"the package {package!r} is not installed in this environment")
    return Path(spec.origin).parent


@cache
def _classes(target: str) -> Mapping[str, ast.ClassDef]:
    nodes = [node for path in _source_files(target) for node in _parse(path).body if isinstance(node, ast.ClassDef)]
    return {node.name: node for node in reversed(nodes)}


def _source_files(target: str) -> list[Path]:
    package, _, name = target.rpartition(".")
    if package.startswith("fmstune."):  # a tracker: its module imports more than the parent needs
        file = package_folder("fmstune").joinpath(*package.split(".")[1:]).with_suffix(".py")
        return [file] if file.is_file() else []
    folder = package_folder(package)
    if package == "trl":
        files = folder.glob("trainer/*_config.py")
        bases = [folder / "trainer/base_config.py", package_folder("transformers") / "training_args.py"]
    else:
        # a method may extend another one's configuration (AdaLoraConfig extends LoraConfig)
        files, extended = folder.glob("tuners/*/config.py"), ("lora", "prompt_tuning")
        bases = [folder / "config.py", *(folder / "tuners" / base / "config.py" for base in extended)]
    return [*(file for file in sorted(files) if f"class {name}(" in file.read_text(encoding="utf-8")), *bases]


@cache
def _parse(path: Path) -> ast.Module:
    """The classes of a file, without methods where they can be left out: these are nine tenths of the parsing."""
    text = path.read_text(encoding="utf-8")
    pieces = re.split(r"^(?=class |def |async def |@)", text, flags=re.MULTILINE)
    try:
        return ast.parse("".join(_without_methods(piece) for piece in pieces if piece.startswith("class ")))
    except SyntaxError:  # a text in the source was cut that looks like source
        return ast.parse(text)


def _without_methods(class_text: str) -> str:
    """The class up to its first method, unless a field or a value may follow."""
    head, *rest = re.split(r"^(?=    (?:def |async def |@))", class_text, maxsplit=1, flags=re.MULTILINE)
    if not rest or re.search(r"^    [A-Za-z]\w* *(?:=|: *\S)", rest[0], flags=re.MULTILINE):
        return class_text
    return f"{head}    pass\n"


def _ancestors(name: str, classes: Mapping[str, ast.ClassDef]) -> Iterator[ast.ClassDef]:
    """The class and its bases, nearest first, as far as they are in the sources."""
    if name in classes:
        yield classes[name]
        for base in classes[name].bases:
            yield from _ancestors(ast.unparse(base).rpartition(".")[2], classes)


def _annotated(node: ast.ClassDef) -> Iterator[tuple[str, ast.AnnAssign]]:
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id, statement


def _arguments(value: ast.expr | None) -> Mapping[str | None, ast.expr]:
    """The arguments of `field(…)` by name."""
    return {keyword.arg: keyword.value for keyword in value.keywords} if isinstance(value, ast.Call) else {}


def _choices(metadata: ast.expr | None) -> list[str]:
    """The strings of `metadata={"choices": [...]}`, as transformers' argument parser reads them."""
    pairs = zip(metadata.keys, metadata.values, strict=True) if isinstance(metadata, ast.Dict) else ()
    listed = {key.value: value for key, value in pairs if isinstance(key, ast.Constant)}.get("choices")
    return [str(ast.literal_eval(element)) for element in listed.elts] if isinstance(listed, ast.List) else []


def _hint(statement: ast.AnnAssign, enums: Mapping[str, Any]) -> Any:
    text = ast.unparse(statement.annotation)
    # a mapping, or the JSON of one; other mappings are checked where their keys are
    mapping = {"dict": dict, "Any": Any} if re.match(r"dict(\[.*?\])? \| str\b", text) else {}
    try:
        return eval(text, {"__builtins__": {}}, {**_TYPES, **enums, **mapping})
    except (NameError, TypeError, AttributeError):
        return Any


@cache
def _enums(target: str) -> Mapping[str, Any]:
    """The string values, as a Literal, of each enumeration that the fields of `target` may use."""
    files = {*_source_files(target)}
    if target.startswith("trl."):
        sources = ("trainer_utils.py", "training_args.py", "debug_utils.py")
        files |= {package_folder("transformers") / file for file in sources}
    found: dict[str, Any] = {}
    for node in [node for file in files for node in _parse(file).body if isinstance(node, ast.ClassDef)]:
        if any("Enum" in ast.unparse(base) for base in node.bases):
            constants = (s.value for s in node.body if isinstance(s, ast.Assign) and isinstance(s.value, ast.Constant))
            values = tuple(constant.value for constant in constants if isinstance(constant.value, str))
            found[node.name] = typing.Literal[values]
    return found
