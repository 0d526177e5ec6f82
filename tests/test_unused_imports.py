# SPDX-License-Identifier: Apache-2.0
"""A runner imports the training libraries without their optional packages."""

import importlib
import importlib.util
import json
import subprocess
import sys

import pytest

from fmstune import unused_imports
from fmstune.unused_imports import hide_unused_packages

INSTALLED = [name for name in unused_imports.UNUSED if importlib.util.find_spec(name) is not None]


def test_a_runner_imports_no_unused_package_and_a_tracker_can_import_one_later() -> None:
    imported = "fmstune.training.library_noise, fmstune.training.pipeline"
    runner = (
        f"from fmstune.unused_imports import hide_unused_packages\nwith hide_unused_packages(): import {imported}\n"
    )
    found = (
        "import json, sys; print(json.dumps([name for name in fmstune.unused_imports.UNUSED if name in sys.modules]))\n"
    )
    later = "".join(f"import {name}\n" for name in INSTALLED)
    argv = [sys.executable, "-c", runner + found + later + found]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=200)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[], INSTALLED]


def test_a_package_looks_absent_inside_and_is_there_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unused_imports, "UNUSED", ("this",))
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with hide_unused_packages():
        assert importlib.util.find_spec("this") is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("this")
    assert importlib.util.find_spec("this") is not None
    assert "this" not in sys.modules


def test_a_package_that_is_imported_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unused_imports, "UNUSED", ("json",))
    with hide_unused_packages():
        assert importlib.import_module("json") is json
    assert sys.modules["json"] is json


def test_nothing_stays_hidden_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unused_imports, "UNUSED", ("this",))
    with pytest.raises(ModuleNotFoundError), hide_unused_packages():
        importlib.import_module("no_such_module")
    assert "this" not in sys.modules
