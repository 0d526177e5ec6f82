# SPDX-License-Identifier: Apache-2.0
"""What a runner imports: the libraries of training, and not what lies beside them."""

import importlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys

import pytest

from fmstune import lean

AT_HAND = [name for name in lean.UNUSED if importlib.util.find_spec(name) is not None]


def test_a_runner_imports_none_of_the_unused_and_what_needs_one_can_import_it_later() -> None:
    imported = "fmstune.training.library_noise, fmstune.training.pipeline"
    runner = f"from fmstune import lean\nwith lean.imports(): import {imported}\n"
    found = "import json, sys; print(json.dumps([name for name in fmstune.lean.UNUSED if name in sys.modules]))\n"
    later = "".join(f"import {name}\n" for name in AT_HAND)
    argv = [sys.executable, "-c", runner + found + later + found]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=200)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[], AT_HAND]


def test_a_package_looks_absent_inside_and_is_there_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "UNUSED", ("this",))
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with lean.imports():
        assert importlib.util.find_spec("this") is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("this")
    assert importlib.util.find_spec("this") is not None
    assert "this" not in sys.modules


def test_what_is_imported_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "UNUSED", ("json",))
    with lean.imports():
        assert importlib.import_module("json") is json
    assert sys.modules["json"] is json


def test_all_is_as_it_was_when_something_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "UNUSED", ("this",))
    with pytest.raises(ModuleNotFoundError), lean.imports():
        importlib.import_module("no_such_module")
    assert "this" not in sys.modules
    assert isinstance(importlib.metadata.packages_distributions(), dict)


def test_who_asks_which_package_has_a_module_is_answered_as_ever() -> None:
    every = importlib.metadata.packages_distributions
    with lean.imports():
        asked = importlib.metadata.packages_distributions()
    assert importlib.metadata.packages_distributions is every
    assert asked["yaml"] == every()["yaml"] == ["PyYAML"]
    assert "no_such_module" not in asked and asked.get("no_such_module", []) == []
    assert dict(asked) == dict(every())
    assert len(asked) == len(every())
