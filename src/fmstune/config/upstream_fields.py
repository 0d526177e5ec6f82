"""The fields of other libraries' configuration classes, read from their sources and not imported.

Importing TRL costs seconds; its syntax tree costs milliseconds. So `training.<any SFTConfig field>` and
`peft.<any field of a PEFT configuration>` are known by name, type and choices before anything heavy is loaded.
"""

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fmstune.errors import UserError

SFT_CONFIG = "trl.SFTConfig"
"""The class whose fields `training` takes."""

_BASES_OF_TRL = (("trl", "trainer/base_config.py"), ("transformers", "training_args.py"))
_ENUM_SOURCES = (
    ("transformers", "trainer_utils.py"),
    ("transformers", "training_args.py"),
    ("transformers", "debug_utils.py"),
)
_PRIMITIVES: Mapping[str, type] = {"int": int, "float": float, "bool": bool, "str": str}


@dataclass(frozen=True)
class Field:
    """One field: the primitive types it takes (none: anything goes), if null is one, and its choices, if listed."""

    name: str
    primitives: tuple[type, ...]
    optional: bool
    choices: tuple[str, ...] = ()


@cache
def fields_of(target: str) -> Mapping[str, Field]:
    """The fields of the configuration class `target`, its bases included (`trl.SFTConfig`, `peft.XConfig`)."""
    classes = _classes(target)
    name = target.rpartition(".")[2]
    if name not in classes:
        package = target.partition(".")[0]
        raise UserError("", f"{target}: the installed {package} has no configuration class {name!r}")
    enums = _enums(target)
    found: dict[str, Field] = {}
    for class_node in _ancestors(name, classes):
        for statement in class_node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                if statement.target.id.startswith("_") or _is_not_init(statement.value):
                    continue
                found.setdefault(statement.target.id, _field(statement, enums))
    return found


def defaults_in_source(target: str) -> dict[str, Any]:
    """The literal default of each field of the class `target`, its bases left out."""
    node = _classes(target)[target.rpartition(".")[2]]
    fields = fields_of(target)
    return {
        statement.target.id: ast.literal_eval(statement.value)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value
        if statement.target.id in fields
    }


def has_class(target: str) -> bool:
    """Whether the installed package defines the configuration class that `target` names."""
    return target.rpartition(".")[2] in _classes(target)


def package_folder(package: str) -> Path:
    """Where an installed package lies, found without importing it; raises UserError when it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError("", f"the package {package!r} is not installed in this environment")
    return Path(spec.origin).parent


@cache
def _classes(target: str) -> Mapping[str, ast.ClassDef]:
    found: dict[str, ast.ClassDef] = {}
    for path in _source_files(target):
        for node in _parse(path).body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, node)
    return found


def _source_files(target: str) -> Iterator[Path]:
    package, _, name = target.rpartition(".")
    if package == "trl":
        files = sorted((package_folder("trl") / "trainer").glob("*_config.py"))
        yield from (file for file in files if f"class {name}(" in file.read_text(encoding="utf-8"))
        yield from (package_folder(package) / file for package, file in _BASES_OF_TRL)
        return
    if target.startswith("fmstune."):
        # a tracker: its module imports more than the parent needs
        _, *module, _ = target.split(".")
        file = package_folder("fmstune").joinpath(*module).with_suffix(".py")
        yield from [file] if file.is_file() else []
        return
    folder = package_folder("peft")
    files = sorted(folder.glob("tuners/*/config.py"))
    defining = [file for file in files if f"class {name}(" in file.read_text(encoding="utf-8")]
    yield from defining
    # a method may extend another one's configuration (AdaLoraConfig extends LoraConfig)
    yield from (folder / "config.py", *(f for f in files if f.parent.name in {"lora", "prompt_tuning"}))


@cache
def _parse(path: Path) -> ast.Module:
    """The classes of a file, without methods where they can be left out: these are nine tenths of the parsing."""
    text = path.read_text(encoding="utf-8")
    pieces = re.split(r"^(?=class |def |async def |@)", text, flags=re.MULTILINE)
    try:
        return ast.parse("".join(_without_methods(piece) for piece in pieces if piece.startswith("class ")))
    except SyntaxError:
        # a text in the source was cut that looks like source
        return ast.parse(text)


def _without_methods(class_text: str) -> str:
    """The class up to its first method, unless a field or a value may follow."""
    head, *rest = re.split(r"^(?=    (?:def |async def |@))", class_text, maxsplit=1, flags=re.MULTILINE)
    if not rest or re.search(r"^    [A-Za-z]\w* *(?:=|: *\S)", rest[0], flags=re.MULTILINE):
        return class_text
    return f"{head}    pass\n"


def _ancestors(name: str, classes: Mapping[str, ast.ClassDef]) -> Iterator[ast.ClassDef]:
    """The class and its bases, nearest first, as far as they are in the sources."""
    if name not in classes:
        return
    yield classes[name]
    for base in classes[name].bases:
        yield from _ancestors(ast.unparse(base).rpartition(".")[2], classes)


def _is_not_init(value: ast.expr | None) -> bool:
    """Whether this is `field(init=False, ...)`, which a caller cannot set."""
    if not isinstance(value, ast.Call):
        return False
    return any(k.arg == "init" and getattr(k.value, "value", True) is False for k in value.keywords)


def _field(statement: ast.AnnAssign, enums: Mapping[str, tuple[str, ...]]) -> Field:
    name = ast.unparse(statement.target)
    primitives: list[type] = []
    choices = list(_choices_in_metadata(statement.value))
    optional, open_ended = False, False
    for part in _union_parts(statement.annotation):
        text = ast.unparse(part)
        if text == "None":
            optional = True
        elif text in _PRIMITIVES:
            primitives.append(_PRIMITIVES[text])
        elif text in enums:
            choices += enums[text]
        elif isinstance(part, ast.Subscript) and text.startswith("Literal["):
            constants = part.slice.elts if isinstance(part.slice, ast.Tuple) else [part.slice]
            values = [c.value for c in constants if isinstance(c, ast.Constant)]
            choices += [value for value in values if isinstance(value, str)]
            primitives += [type(value) for value in values if isinstance(value, bool)]
        else:
            open_ended = True
    if open_ended:
        return Field(name, (), True)
    # `SchedulerType | str` means the values of the enum; a pattern such as "pissa_niter_[n]" leaves the text open
    listed = tuple(choices) if choices and not any("[" in choice for choice in choices) else ()
    kinds = tuple(kind for kind in primitives if not (listed and kind is str))
    return Field(name, (*kinds, str) if choices else kinds, optional, listed)


def _choices_in_metadata(value: ast.expr | None) -> Iterator[str]:
    """The strings of `field(metadata={"choices": [...]})`, as transformers' argument parser reads them."""
    if isinstance(value, ast.Call):
        for metadata in (k.value for k in value.keywords if k.arg == "metadata"):
            if isinstance(metadata, ast.Dict):
                for key, listed in zip(metadata.keys, metadata.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "choices" and isinstance(listed, ast.List):
                        yield from (str(ast.literal_eval(element)) for element in listed.elts)


def _union_parts(annotation: ast.expr) -> Iterator[ast.expr]:
    """`Optional[X]`, `Union[X, Y]` and `X | Y`, flattened."""
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        yield from _union_parts(annotation.left)
        yield from _union_parts(annotation.right)
    elif isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Optional":
        yield from _union_parts(annotation.slice)
        yield ast.Constant(None)
    elif isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Union":
        parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        for part in parts:
            yield from _union_parts(part)
    else:
        yield annotation


@cache
def _enums(target: str) -> Mapping[str, tuple[str, ...]]:
    """The string values of each enumeration that the fields of `target` may use."""
    files = {*_source_files(target)}
    if target.startswith("trl."):
        files |= {package_folder(package) / file for package, file in _ENUM_SOURCES}
    found: dict[str, tuple[str, ...]] = {}
    for file in files:
        for node in _parse(file).body:
            if isinstance(node, ast.ClassDef) and any("Enum" in ast.unparse(base) for base in node.bases):
                values = (s.value for s in node.body if isinstance(s, ast.Assign))
                found[node.name] = tuple(
                    value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)
                )
    return found
