#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write the tables of the documents from the sources that they describe; with `--check`, fail where one is stale.

A table stands between `<!-- generated: NAME -->` and `<!-- end -->`, in README.md or in docs/.
"""

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from fmstune import fms_flags, plan, precision
from fmstune.fms_flags import Fate, Flag
from fmstune.help import GROUPS
from fmstune.training_names import OWNED, TRANSLATED, Translation

ROOT = Path(__file__).parents[1]
JOB = ROOT / "src" / "fmstune" / "job.py"
CONF = ROOT / "conf"
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
TYPES = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "None": "null",
    "Any": "see the meaning",
    "dict[str, Any]": "mapping",
    "list[str]": "list of texts",
}
YAML_WORDS = {"None": "null", "True": "true", "False": "false"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a table is stale")
    check = parser.parse_args().check
    stale = [path for path in documents() if renewed(path.read_text(encoding="utf-8")) != path.read_text("utf-8")]
    for path in stale:
        if not check:
            path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {'stale; run tools/make_docs.py' if check else 'renewed'}")
    return int(check and bool(stale))


def documents() -> list[Path]:
    """Every Markdown file that may hold a table."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def renewed(text: str) -> str:
    """The document with its tables made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", text)


def fields() -> str:
    """The fields of the job's dataclasses, with what stands under each."""
    tree = ast.parse(JOB.read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    rows = [row for row in _fields(classes["Job"], "", classes) if row[0] != ""]
    return _table(("field", "type", "when left out", "meaning"), rows)


def _fields(node: ast.ClassDef, prefix: str, classes: dict[str, ast.ClassDef]) -> Iterator[tuple[str, ...]]:
    for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign):
            continue
        name, annotation = f"{prefix}{ast.unparse(statement.target)}", ast.unparse(statement.annotation)
        if annotation in classes and not _choices(classes[annotation]):
            yield from _fields(classes[annotation], f"{name}.", classes)
            continue
        yield f"`{name}`", _type(annotation, classes), _default(statement.value), _doc(after)
        group = annotation.removesuffix(" | None")
        if group != annotation and group in classes and not _choices(classes[group]):
            yield from _fields(classes[group], f"{name}.", classes)


def _doc(statement: ast.stmt | None) -> str:
    """The text under a field."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return str(statement.value.value)
    return ""


def _type(annotation: str, classes: dict[str, ast.ClassDef]) -> str:
    if annotation in classes:
        return ", ".join(f"`{choice}`" for choice in _choices(classes[annotation]))
    parts = [part.strip() for part in annotation.split("|")]
    return " or ".join("mapping" if part in classes else TYPES[part] for part in parts)


def _choices(node: ast.ClassDef) -> list[str]:
    """The values of an Enum; none for another class."""
    if not any(ast.unparse(base) == "Enum" for base in node.bases):
        return []
    return [str(s.value.value) for s in node.body if isinstance(s, ast.Assign) and isinstance(s.value, ast.Constant)]


def _default(value: ast.expr | None) -> str:
    if value is None:
        return "required"
    if isinstance(value, ast.Call):
        return "`[]`" if ast.unparse(value).endswith("=list)") else "`{}`"
    if isinstance(value, ast.Attribute):
        return f"`{value.attr}`"
    written = ast.unparse(value)
    return f"`{YAML_WORDS.get(written, written)}`"


def groups() -> str:
    """Every group's choices, each with the first line of its file."""
    rows = [(f"`{group}={path.stem}`", _first_comment(path)) for group in GROUPS for path in _files(group)]
    return _table(("choice", "when to take it"), rows)


def models() -> str:
    """The shipped models, with what an adapter of theirs targets."""
    rows = []
    for path in _files("model"):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        place = "yours" if values["path"] == "???" else f"`{values['path']}`"
        targets = ", ".join(f"`{target}`" for target in values["lora_targets"] or ()) or "PEFT's own list"
        rows.append((f"`model={path.stem}`", place, targets, _first_comment(path)))
    return _table(("choice", "path", "LoRA targets", "what it is"), rows)


def methods() -> str:
    """The shipped methods, each with its usual rate."""
    rows = []
    for path in _files("peft"):
        rate = yaml.safe_load((CONF / "training_for" / "peft" / path.name).read_text(encoding="utf-8"))
        rows.append((f"`peft={path.stem}`", f"{rate['learning_rate']:g}", _first_comment(path)))
    return _table(("choice", "usual rate", "what it is"), rows)


def choices() -> str:
    """One line a group."""
    return _table(("group", "choices"), [(f"`{g}`", ", ".join(f"`{p.stem}`" for p in _files(g))) for g in GROUPS])


def _files(group: str) -> list[Path]:
    return sorted((CONF / group).glob("*.yaml"))


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line[2:] for line in lines if line.startswith("# ") and not line.startswith("# @package"))


def names() -> str:
    """Names of the early tool, and of training arguments that another group owns."""
    renamed = [(f"`{old}`", f"`training.{new.name}`{_values(new)}") for old, new in TRANSLATED.items()]
    owned = [(f"`{name}`", where) for name, where in OWNED.items()]
    return _table(("name", "today"), [*renamed, *owned])


def _values(translation: Translation) -> str:
    """How true and false are written today, where that changed."""
    try:
        on, off = translation.value(True), translation.value(False)
    except ValueError:
        return ""
    return "" if on is True else f" (true is `{on}`, false is `{off}`)"


def early_flags(flags: Mapping[str, Flag]) -> str:
    """What became of each flag: of those that moved, and of the others."""
    moved = [
        (f"`--{name}`", _today(flag), _early(flag), flag.why) for name, flag in flags.items() if flag.fate is Fate.moved
    ]
    others = [
        (f"`--{name}`", flag.fate.value, "", flag.why) for name, flag in flags.items() if flag.fate is not Fate.moved
    ]
    return _table(("early flag", "today", "written out when left out", "what to know"), [*moved, *others])


def _today(flag: Flag) -> str:
    values = ", ".join(f"{old} is `{new}`" if new else f"{old} sets nothing" for old, new in flag.values.items())
    return f"`{flag.field}`" + (f" ({values})" if values else "")


def _early(flag: Flag) -> str:
    if flag.early is None:
        return ""
    return "`" + ("[" + ", ".join(flag.early) + "]" if isinstance(flag.early, tuple) else flag.early) + "`"


def precisions() -> str:
    """The table of the module's docstring."""
    text = inspect.getdoc(precision) or ""
    rows = [re.split(r" {2,}", line.strip(), maxsplit=1) for line in text.splitlines() if line.startswith("    ")]
    return _table(("where", "`model.dtype=auto` means"), [tuple(row) for row in rows])


def memory() -> str:
    """How each part of the plan is computed, in the words of the code."""
    parts: dict[str, Callable[..., object]] = {
        "quantised weights": plan.quantised_bytes,
        "autocast": plan._autocast_copies,
        "optimizer": plan.optimizer_bytes,
        "activations": plan.activation_bytes,
        "masks": plan.attention_mask_bytes,
        "logits": plan.logit_bytes,
        "steps": plan.steps,
        "rows": plan.row_count,
    }
    return "\n\n".join(f"**{part}.** {_paragraph(function)}" for part, function in parts.items())


def _paragraph(function: Callable[..., object]) -> str:
    return " ".join((inspect.getdoc(function) or "").split())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


TABLES: dict[str, Callable[[], str]] = {
    "fields": fields,
    "groups": groups,
    "choices": choices,
    "models": models,
    "methods": methods,
    "names": names,
    "precision": precisions,
    "memory": memory,
    "early_tuning": lambda: early_flags(fms_flags.TUNING),
    "early_launch": lambda: early_flags(fms_flags.LAUNCH),
    "early_torchrun": lambda: early_flags(fms_flags.TORCHRUN),
    "early_inference": lambda: early_flags(fms_flags.INFERENCE),
    "early_harness": lambda: early_flags(fms_flags.HARNESS),
}
"""Each generated part by the name in its marker."""


if __name__ == "__main__":
    sys.exit(main())
