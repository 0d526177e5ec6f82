#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write the tables of the documents from the sources that they describe; with `--check`, fail where one is stale.

A table stands between `<!-- generated: NAME -->` and `<!-- end -->`, in README.md or in docs/.
"""

import argparse
import ast
import dataclasses
import functools
import html
import inspect
import itertools
import json
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import upstream_fields
from fmstune.checks import precision
from fmstune.checks.memory import (
    activation_bytes,
    attention_mask_bytes,
    autocast_copies,
    device_memory,
    logit_bytes,
    optimizer_bytes,
    quantised_bytes,
)
from fmstune.checks.memory_plan import count_steps
from fmstune.checks.plan_inputs import Rows, Sharing, Work, row_count
from fmstune.cli.help import GROUPS
from fmstune.config import choices as config_choices
from fmstune.config import freeze
from fmstune.config.compose import compose_job
from fmstune.config.defaults import usual_rate
from fmstune.config.groups import DEBUG, OPTIONAL, SEARCH, short_list
from fmstune.config.job import FULL, LORA, LORAPLUS_LR_RATIO
from fmstune.config.overrides import parse_overrides
from fmstune.config.renamed_fields import OWNED, TRANSLATED, USUAL_RATE, Translation
from fmstune.config.requests import Verb, summary
from fmstune.hardware import CARDS
from fmstune.migrate import flags as fms_flags
from fmstune.migrate.flags import Fate, Flag
from fmstune.tables import GIB

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "fmstune"
JOB = SOURCE / "config" / "job.py"
CONF = ROOT / "conf"
TRACKERS = SOURCE / "training" / "trackers"
DECISIONS = ROOT / "docs" / "decisions"
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
GPU = ROOT / "benchmarks" / "GPU.json"
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
TYPES = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "None": "null",
    "Any": "see the meaning",
    "dict[str, Any]": "mapping",
    "dict[str, dict[str, Any]]": "mapping",
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


def top() -> str:
    """The fields of the job that belong to no group."""
    rows = _fields(_classes()["Job"], "", _classes())
    return _field_table(row for row in rows if row[0].strip("`").partition(".")[0] not in GROUPS)


def group_fields(group: str) -> str:
    """The fields of a group's dataclass, or of the classes of other libraries that it stands for."""
    if group == "training":
        own = ("`training.resume`", "text or null", "`null`", "Folder of a checkpoint to go on from, or `auto`.")
        return _field_table(_by_name([own, *upstream_fields.training()]))
    if group == "peft":
        return "\n\n".join(map(_of_peft, dict.fromkeys(_targets().values())))
    if group == "tracking":
        return _field_table(row for path in sorted(TRACKERS.glob("*.py")) for row in _of_tracker(path))
    rows = list(_fields(_classes()[group.capitalize()], f"{group}.", _classes()))
    if group == "data":
        rows += _fields(_classes()["Source"], "data.train.NAME.", _classes())
    return _field_table(rows)


def _of_tracker(path: Path) -> Iterator[tuple[str, ...]]:
    """The settings of a tracker, by the name that its file in conf/ gives it; none for other modules."""
    classes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    for node in classes if (CONF / "tracking" / path.name).with_suffix(".yaml").is_file() else []:
        rows = _fields(node, f"tracking.{path.stem}.", {})
        yield from (row for row in rows if not row[0].startswith(f"`tracking.{path.stem}._"))


def _of_peft(target: str) -> str:
    """The fields of one configuration class, with the choices that take it."""
    choices = ", ".join(f"`peft={choice}`" for choice, one in _targets().items() if one == target)
    if target == FULL:
        return f"{choices} takes no fields."
    rows = list(upstream_fields.peft(target))
    if target == LORA:
        rows.append((f"`peft.{LORAPLUS_LR_RATIO}`", "number or null", "`null`", "LoRA+'s rate of B by that of A."))
    return f"### `{target}`\n\nOf {choices}.\n\n{_field_table(_by_name(rows))}"


def _by_name(rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return sorted(rows, key=lambda row: row[0].strip("`"))


def _targets() -> dict[str, str]:
    """The class of each choice of the peft group."""
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))["_target_"] for path in _files("peft")}


@functools.cache
def _classes() -> dict[str, ast.ClassDef]:
    tree = ast.parse(JOB.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _field_table(rows: Iterable[Sequence[str]]) -> str:
    # the site lays them out anew on a phone
    table = _table(("field", "type", "default", "meaning"), list(rows))
    return f'<div class="fields" markdown>\n\n{table}\n\n</div>'


def _fields(node: ast.ClassDef, prefix: str, classes: dict[str, ast.ClassDef]) -> Iterator[tuple[str, ...]]:
    for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign):
            continue
        name, annotation = f"{prefix}{ast.unparse(statement.target)}", ast.unparse(statement.annotation)
        if annotation in classes:
            yield from _fields(classes[annotation], f"{name}.", classes)
            continue
        if stands := re.search(r"'stands_as': '([^']+)'", ast.unparse(statement)):
            name = stands[1]
        yield f"`{name}`", _type(annotation, classes), _default(statement.value), _doc(after)
        group = annotation.removesuffix(" | None")
        if group != annotation and group in classes:
            yield from _fields(classes[group], f"{name}.", classes)


def _doc(statement: ast.stmt | None) -> str:
    """The text under a field."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return str(statement.value.value)
    return ""


def _type(annotation: str, classes: dict[str, ast.ClassDef]) -> str:
    if annotation.startswith("Literal["):
        return ", ".join(f"`{choice}`" for choice in re.findall(r"'([^']+)'", annotation))
    parts = [part.strip() for part in annotation.split("|")]
    return " or ".join("mapping" if part in classes else _words(part) or TYPES[part] for part in parts)


def _words(annotation: str) -> str:
    """The words of an enumeration; nothing for another annotation."""
    return ", ".join(f"`{member.value}`" for member in getattr(config_choices, annotation.removeprefix("choices."), ()))


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
    """What each group sets, with its choices and its page."""
    about = {
        "experiment": "Choices and values under one name.",
        "debug": "What is wrong with a job.",
        "search": "What a sweep tries.",
        **dict(_about_groups()),
    }
    rows = [(f"[`{group}`](groups/{group}.md)", about[group], _choices(group)) for group in GROUPS]
    return _table(("group", "what it says", "choices"), rows)


def _about_groups() -> Iterator[tuple[str, str]]:
    """The fields of the job, groups included, with what stands under each."""
    body = _classes()["Job"].body
    for statement, after in itertools.pairwise(body):
        if isinstance(statement, ast.AnnAssign):
            yield ast.unparse(statement.target), _doc(after)


def group_choices(group: str) -> str:
    """Every choice of a group: the first line of its file, and the file to unfold."""
    return "\n\n".join(_unfolded(group, path) for path in _files(group))


def _unfolded(group: str, path: Path) -> str:
    # what follows on the first comment
    values = path.read_text(encoding="utf-8").replace(f"# {_first_comment(path)}\n", "", 1)
    about = f"<code>{group}={path.stem}</code>: {html.escape(_first_comment(path), quote=False)}"
    return f"<details markdown>\n<summary>{about}</summary>\n\n```yaml\n{values}```\n\n</details>"


def models() -> str:
    """The shipped models, with what an adapter of theirs targets."""
    rows = []
    for path in _files("model"):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        values = values.get("model", values)
        place = "yours" if values["path"] == "???" else f"`{values['path']}`"
        targets = ", ".join(f"`{target}`" for target in values.get("lora_targets") or ()) or "PEFT's own list"
        rows.append((f"`model={path.stem}`", place, targets, _first_comment(path)))
    return _table(("choice", "path", "LoRA targets", "what it is"), rows)


def methods() -> str:
    """The shipped methods, each with its usual rate."""
    training = (CONF / "training" / "default.yaml").read_text(encoding="utf-8")
    (full,) = re.findall(r"learning_rate: \$\{usual_rate:.*,(\S+)\}", training)
    rows = []
    for path in _files("peft"):
        method = yaml.safe_load(path.read_text(encoding="utf-8"))
        rate = usual_rate(method["_target_"], method.get(USUAL_RATE), float(full))
        rows.append((f"`peft={path.stem}`", f"{rate:g}", _first_comment(path)))
    return _table(("choice", "usual rate", "what it is"), rows)


def choices() -> str:
    """One line a group."""
    return _table(("group", "choices"), [(f"`{group}`", _choices(group)) for group in GROUPS])


def _choices(group: str) -> str:
    return ", ".join(f"`{name}`" for name in short_list([path.stem for path in _files(group)]))


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
    """The table of the early tool's flags, moved ones first; flags with the same row share it."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, flag in sorted(flags.items(), key=lambda item: item[1].fate is not Fate.moved):
        today = _today(flag) if flag.fate is Fate.moved else flag.fate.value
        rows.setdefault((today, _early(flag), flag.why), []).append(f"`--{name}`")
    columns = ["today", "early default, written out", "what to know"]
    used = [place for place in range(3) if any(row[place] for row in rows)]
    table = _table(
        ("early flag", *(columns[place] for place in used)),
        [(", ".join(names), *(row[place] for place in used)) for row, names in rows.items()],
    )
    return f'<div class="flags" markdown>\n\n{table}\n\n</div>'


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
        "quantised weights": quantised_bytes,
        "autocast": autocast_copies,
        "optimizer": optimizer_bytes,
        "activations": activation_bytes,
        "masks": attention_mask_bytes,
        "logits": logit_bytes,
        "steps": count_steps,
        "rows": row_count,
    }
    return "\n\n".join(f"**{part}.** {_paragraph(function)}" for part, function in parts.items())


def _paragraph(function: Callable[..., object]) -> str:
    return " ".join((inspect.getdoc(function) or "").split())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def verbs() -> str:
    """The verbs, each with what `fmstune --help` says of it."""
    return _table(("verb", "does"), [(f"`{verb.value}`", summary(verb)) for verb in Verb])


def rooms() -> str:
    """Each room of src/fmstune with the sentence of its `__init__.py` and its modules; the imports go downwards."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(one["layers"] for one in contract["contracts"] if one["type"] == "layers")
    names = [name.strip() for layer in layers for name in layer.split(":")]
    folders = [SOURCE / name.removeprefix("fmstune.") for name in names]
    return _table(("room", "what it is for", "modules"), [_room(folder) for folder in folders if folder.is_dir()])


def _room(folder: Path) -> tuple[str, str, str]:
    about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    parts = [path for path in sorted(folder.rglob("*.py")) if path.name != "__init__.py"]
    modules = [str(path.relative_to(folder).with_suffix("")) for path in parts]
    return f"`{folder.name}/`", about, ", ".join(f"`{module}`" for module in modules)


def decisions() -> str:
    """The titles of the decisions, each with its page."""
    heads = [(path, path.read_text(encoding="utf-8").partition("\n")[0]) for path in sorted(DECISIONS.glob("0*.md"))]
    return "\n".join(f"- [{head.removeprefix('# ')}]({path.name})" for path, head in heads)


def performance() -> str:
    """The figures of benchmarks/RESULTS.md that have a bar, under its titles; and what they were measured on."""
    head, *sections = RESULTS.read_text(encoding="utf-8").split("\n## ")
    machine = [line for line in head.splitlines() if line.startswith("- ")]
    return "\n\n".join([*map(_with_a_bar, sections), "\n".join(machine)])


def _with_a_bar(section: str) -> str:
    """One benchmark: what its table says where the figure has a bar."""
    rows = []
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 7 and cells[4] not in ("", "bar", "---:"):
            what, median, _, _, bar, met, note = cells
            rows.append((what, median, f"{bar}{' (met)' if met == 'yes' else ', **not met**'}", note))
    return f"### {section.partition(chr(10))[0]}\n\n{_table(('what', 'ratio', 'bar', 'figures'), rows)}"


NOT_MEASURED = "Not measured yet: fmstune has not run on a GPU."
PARTS = {"speed": "Tokens a second", "plan": "The plan against the memory allocated", "checks": "What runs"}
"""The parts of the proof on a GPU (benchmarks/gpu_proof.py), and what each is called."""


def _proof() -> dict[str, Any] | None:
    """What `make gpu-proof` wrote; None before it ran on a GPU, as a trial on a CPU is none."""
    found: dict[str, Any] = json.loads(GPU.read_text(encoding="utf-8")) if GPU.is_file() else {}
    return found if found.get("device") == "cuda" else None


def gpu() -> str:
    """The figures of benchmarks/GPU.json, or that there are none."""
    if (proof := _proof()) is None:
        return NOT_MEASURED
    parts = []
    for part, title in PARTS.items():
        items = [item for item in proof["items"] if item["part"] == part]
        rows = [(item["name"], item["outcome"], _outcome(item)) for item in items]
        parts.append(f"### {title}\n\n{_table(('what', 'outcome', 'figures'), rows)}")
    versions = ", ".join(f"{name} {number}" for name, number in proof["versions"].items())
    return "\n\n".join([*parts, f"- card: {proof['card']}; CUDA {proof['cuda']}\n- {versions}"])


def gpu_in_short() -> str:
    """One sentence: how many items of the proof passed on which card, or that none ran."""
    if (proof := _proof()) is None:
        return NOT_MEASURED
    counts = Counter(item["outcome"] for item in proof["items"])
    said = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped", "not run"))
    return f"On one {proof['card']}: {said}, of {len(proof['items'])} items."


def _outcome(item: dict[str, Any]) -> str:
    figures = (f"{key.replace('_', ' ')} {value:,}" for key, value in item.get("figures", {}).items())
    return ": ".join(text for text in (item.get("why"), ", ".join(figures)) if text).replace("\n", " ")


METHODS = {
    "every weight": ("peft=full",),
    "every weight, activation checkpointing": ("peft=full", "training.activation_checkpointing=true"),
    "LoRA": ("peft=lora",),
    "LoRA, activation checkpointing": ("peft=lora", "training.activation_checkpointing=true"),
}
QUANTISED = (*METHODS["LoRA, activation checkpointing"], "model.quantization={load_in_4bit: true}")
DEVICES = (1, 2, 4, 8)
ROW = 1024
"""Tokens of every row that is planned for."""


def peaks() -> str:
    """The dense peaks of known cards in TFLOP/s, by the dtype that is computed in."""
    rows = [
        (name, *("" if peak is None else f"{peak:g}" for peak in (card.bf16, card.fp16, card.tf32, card.fp32)))
        for name, card in CARDS.items()
    ]
    return _table(("card", "bfloat16", "float16", "float32 in TF32", "float32"), rows)


@functools.cache
def fits() -> str:
    """Memory of each GPU by model, method and number of GPUs, as `fmstune check` plans it."""
    rows = []
    for model in ("llama2_7b", "llama2_13b"):
        for name, words in METHODS.items():
            work = _work(f"model={model}", *words)
            rows.append((f"`{model}`", name, *(_of_each(work, count) for count in DEVICES)))
        alone = _of_each(_work(f"model={model}", *QUANTISED), 1)
        rows.append((f"`{model}`", "the same on a base in 4 bits", alone, *("" for _ in DEVICES[1:])))
    return _table(("model", "what is trained", "1 GPU", *(f"{count} GPUs" for count in DEVICES[1:])), rows)


def _work(*words: str) -> Work:
    """What a plan is computed from, for batches of four rows that are all as long as `ROW`."""
    # torch, which the other tables do without
    from fmstune.training import planning, preflight

    rest = ("launcher.device=cuda", "data=alpaca", "data.train=none", f"data.max_length={ROW}")
    job = freeze.freeze(compose_job(parse_overrides([*words, *rest])).tree()).job
    checked = preflight.check_job(job, device_here=False)
    rows = Rows(rows=ROW, tokens=ROW * ROW, longest=ROW)
    return planning.make_plan(job, checked, rows, None, shown=False).work


def _of_each(work: Work, devices: int) -> str:
    """GiB of one of these GPUs, under FSDP where there are several."""
    sharing = Sharing(devices, sharded_over=devices)
    return f"{device_memory(dataclasses.replace(work, sharing=sharing)).total / GIB:,.0f} GiB"


NO_FIELDS = (OPTIONAL, DEBUG, SEARCH)
"""Groups without fields of their own."""
TABLES: dict[str, Callable[[], str]] = {
    **{f"{group}_choices": functools.partial(group_choices, group) for group in GROUPS},
    **{f"{group}_fields": functools.partial(group_fields, group) for group in GROUPS if group not in NO_FIELDS},
    "fields": top,
    "verbs": verbs,
    "decisions": decisions,
    "rooms": rooms,
    "performance": performance,
    "gpu": gpu,
    "gpu_in_short": gpu_in_short,
    "fits": fits,
    "peaks": peaks,
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
