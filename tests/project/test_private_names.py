"""Private names of other libraries stay in the one module for that library."""

import ast
from collections.abc import Iterator

import pytest

from tests import ROOT

SOURCES = ROOT / "src" / "fmstune"

HOMES = {
    "config/hydra_internals.py": ("hydra",),
    "config/freeze.py": ("omegaconf",),
    "models/trl_internals.py": ("trl",),
    "training/fsdp_on_cpu.py": ("accelerate",),
    "models/hub_internals.py": ("huggingface_hub",),
    "models/torch_internals.py": ("torch",),
    "training/transformers_internals.py": ("transformers",),
}
"""The module for each library."""

OF_PYTHON = frozenset({"_asdict", "_exit", "_fields", "_make", "_replace"})
"""Names with an underscore that Python documents: those of named tuples, and os._exit."""


def private(name: str) -> bool:
    # Hydra's `_target_` is a public name
    return name.startswith("_") and not name.startswith("__") and not name.endswith("_")


def private_imports(tree: ast.Module) -> Iterator[str]:
    """Modules and names with an underscore that are imported from another package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *rest = name.split(".")
            if package not in ("fmstune", "__future__") and any(map(private, (package, *rest))):
                yield name


def defined(tree: ast.AST) -> set[str]:
    """Names that the code defines itself: functions, classes, variables, attributes that it sets."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


def private_attributes(tree: ast.Module, listed: frozenset[str]) -> Iterator[str]:
    """Attributes with an underscore that are neither the code's own, nor listed for classes that fmstune extends."""
    own = defined(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not private(node.attr) or node.attr in OF_PYTHON:
            continue
        inherited = ast.unparse(node.value) == "super()"
        if node.attr in listed or (node.attr in own and not inherited):
            continue
        yield ast.unparse(node)


def foreign_names(source: str, listed: frozenset[str] = frozenset()) -> list[str]:
    tree = ast.parse(source)
    return sorted({*private_imports(tree), *private_attributes(tree, listed)})


def listed_names() -> frozenset[str]:
    """The names that the modules for TRL and transformers list as overridden."""
    found: set[str] = set()
    for home in HOMES:
        path = SOURCES / home
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path.is_file() else ():
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "OVERRIDDEN":
                found |= {one.value for one in ast.walk(node.value) if isinstance(one, ast.Constant)}
    return frozenset(found)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from trl.trainer.utils import _use_triton", ["trl.trainer.utils._use_triton"]),
        ("from hydra._internal.hydra import Hydra", ["hydra._internal.hydra.Hydra"]),
        ("import torch._inductor", ["torch._inductor"]),
        ("import trl\ntrl.trainer.utils._use_triton(device)", ["trl.trainer.utils._use_triton"]),
        ("class A(Trainer):\n def f(self): self._prepare_inputs(1)", ["self._prepare_inputs"]),
        ("class A(Trainer):\n def _save(self): super()._save()", ["super()._save"]),
        ("from fmstune.data import tokenized\ndef _own(): ...\n_own()", []),
        ("class A:\n def __init__(self): self._own = 1\n def f(self): return self._own", []),
        ("line._replace(a=1)._asdict()", []),
    ],
)
def test_a_private_name_of_another_library_is_found(source: str, found: list[str]) -> None:
    assert foreign_names(source) == found


def test_a_listed_override_is_allowed() -> None:
    assert foreign_names("class A(Trainer):\n def _save(self): super()._save()", frozenset({"_save"})) == []


def test_private_names_of_other_libraries_stand_in_the_module_for_that_library() -> None:
    listed, misplaced = listed_names(), {}
    paths = sorted(SOURCES.rglob("*.py"))
    assert len(paths) >= 200
    for path in paths:
        name, source = str(path.relative_to(SOURCES)), path.read_text(encoding="utf-8")
        if name in HOMES:
            imported = {one.partition(".")[0] for one in private_imports(ast.parse(source))}
            found = sorted(imported - {*HOMES[name]})
        else:
            found = foreign_names(source, listed)
        if found:
            misplaced[name] = found
    assert misplaced == {}


def test_every_private_override_of_the_trainer_is_listed() -> None:
    from trl import SFTTrainer

    from fmstune.training.objectives.sft import SftTrainer

    own = [cls for cls in SftTrainer.__mro__ if cls.__module__.startswith("fmstune.")]
    defined_here = {name for cls in own for name in vars(cls) if private(name)}
    overridden = {name for name in defined_here if hasattr(SFTTrainer, name)} - {"_abc_impl"}
    assert len(overridden) >= 5
    assert overridden <= listed_names()
