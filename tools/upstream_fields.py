# SPDX-License-Identifier: Apache-2.0
"""What the libraries say of the fields of their configuration classes, read from their sources, as rows of a table."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from fmstune.config import upstream_fields
from fmstune.config.renamed_fields import OWNED, TRANSLATED

ROOT = Path(__file__).parents[1]
TYPES = {int: "whole number", float: "number", bool: "true or false", str: "text", dict: "mapping"}
YAML_WORDS = {"None": "null", "True": "true", "False": "false", "list": "[]", "dict": "{}"}
OF_EVERY_ADAPTER = ("PeftConfig", "PeftConfigMixin")
"""Bases whose fields PEFT and fmstune fill in."""
DECIDED = {
    "bf16": "by [precision](../check.md#precision)",
    "fp16": "by [precision](../check.md#precision)",
    "tf32": "by [precision](../check.md#precision)",
    "logging_nan_inf_filter": "`false`",
    "dataloader_pin_memory": "`true` on a CUDA device",
}
"""Defaults that `fmstune.training.arguments` sets in place of TRL's, beside those of `training/default.yaml`."""


class Said(NamedTuple):
    """What a class says of one field."""

    default: str
    meaning: str


def training() -> Iterator[tuple[str, ...]]:
    """Every field of `trl.SFTConfig` that the training group takes, by name; defaults are those of a job."""
    said = _said(upstream_fields.SFT_CONFIG)
    shipped = yaml.safe_load((ROOT / "conf" / "training" / "default.yaml").read_text(encoding="utf-8"))
    _compare_with_train(shipped)
    shipped["learning_rate"] = "the method's usual rate"
    for name, field in sorted(upstream_fields.fields_of(upstream_fields.SFT_CONFIG).items()):
        if name in OWNED or name in TRANSLATED:
            continue
        default = DECIDED.get(name, f"`{_yaml(shipped[name])}`" if name in shipped else said[name].default)
        yield f"`training.{name}`", _type(field), default, said[name].meaning


def peft(target: str) -> Iterator[tuple[str, ...]]:
    """The fields of a configuration class of PEFT; defaults are those of the class."""
    said = _said(target)
    for name, field in sorted(upstream_fields.fields_of(target).items()):
        if name in said:
            yield f"`peft.{name}`", _type(field), *said[name]


def _compare_with_train(shipped: Mapping[str, object]) -> None:
    """Raise where `training_arguments` sets other fields than this page says."""
    tree = ast.parse((ROOT / "src" / "fmstune" / "training" / "arguments.py").read_text(encoding="utf-8"))
    function = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "training_arguments")
    sets = [n.value for n in function.body if isinstance(n, ast.Assign) and isinstance(n.value, ast.Dict)]
    names = {key.value for one in sets for key in one.keys if isinstance(key, ast.Constant)}
    if missing := names ^ {*DECIDED, *(names & {*OWNED, *shipped})}:
        raise ValueError(f"training_arguments and DECIDED differ in {', '.join(sorted(map(str, missing)))}")


def _said(target: str) -> dict[str, Said]:
    """The default and the first sentence of the help of each field, nearest class first."""
    classes = upstream_fields._classes(target)
    found: dict[str, Said] = {}
    for node in upstream_fields._ancestors(target.rpartition(".")[2], classes):
        for statement in node.body if node.name not in OF_EVERY_ADAPTER else ():
            if isinstance(statement, ast.AnnAssign):
                found.setdefault(ast.unparse(statement.target), _of(statement.value))
    return found


def _of(value: ast.expr | None) -> Said:
    if not isinstance(value, ast.Call):
        return Said(_default(value), "")
    words = {keyword.arg: keyword.value for keyword in value.keywords}
    metadata = words.get("metadata")
    keys = metadata.keys if isinstance(metadata, ast.Dict) else []
    texts = metadata.values if isinstance(metadata, ast.Dict) else []
    named = {key.value: text for key, text in zip(keys, texts, strict=True) if isinstance(key, ast.Constant)}
    return Said(_default(words.get("default", words.get("default_factory"))), _first_sentence(_text(named.get("help"))))


def _text(node: ast.expr | None) -> str:
    """The text of a constant, of pieces that are added up, and of what an f-string begins with."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    return ""


def _first_sentence(text: str) -> str:
    """The first sentence as a cell of a table."""
    plain = re.sub(r"</?a\b[^>]*>", "", text)
    # their links lead into their own documents
    plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", " ".join(plain.split()))
    sentence = re.split(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)\s", plain, maxsplit=1)[0].replace("%%", "%")
    # of what is no code
    return "".join(
        part if number % 2 else re.sub(r"([<*_])", r"\\\1", part)
        for number, part in enumerate(re.split(r"(`[^`]*`)", sentence))
    )


def _default(value: ast.expr | None) -> str:
    if value is None:
        return "required"
    # a member of an enumeration by its name; a name is one that is bound elsewhere in their source
    written = value.attr if isinstance(value, ast.Attribute) else ast.unparse(value)
    return f"`{YAML_WORDS.get(written, written)}`"


def _yaml(value: object) -> str:
    """A value as YAML has it, in one line."""
    return str(yaml.safe_dump(value, default_flow_style=True)).removesuffix("\n").removesuffix("\n...")


def _type(field: upstream_fields.Field) -> str:
    if not field.primitives:
        return "see the meaning"
    # next to a mapping, text is the JSON of one
    without = str if field.choices or dict in field.primitives else None
    kinds = [TYPES[kind] for kind in field.primitives if kind is not without]
    kinds += [", ".join(f"`{choice}`" for choice in field.choices)] if field.choices else []
    return " or ".join([*kinds, *(["null"] if field.optional else [])])
