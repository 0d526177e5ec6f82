# SPDX-License-Identifier: Apache-2.0
"""A runner imports other libraries without their unused packages, and says which version has not what it needs."""

import functools
import gc
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import subprocess
import sys
from typing import Any

import pytest

from fmstune import upstream
from fmstune.errors import UserError
from fmstune.upstream import explain_missing_names, hide_unused_packages, quick_imports, require_attributes

INSTALLED = [name for name in upstream.UNUSED if importlib.util.find_spec(name) is not None]


@pytest.mark.slow
def test_a_runner_imports_no_unused_package_and_a_tracker_can_import_one_later() -> None:
    imported = "fmstune.training.library_noise, fmstune.training.pipeline"
    runner = f"from fmstune.upstream import quick_imports\nwith quick_imports(): import {imported}\n"
    found = "import json, sys; print(json.dumps([name for name in fmstune.upstream.UNUSED if name in sys.modules]))\n"
    # transformers' own limit is 128 of its 550 folders
    kept = "from transformers.utils.import_utils import create_import_structure_from_path as listed\n"
    kept += "assert listed.cache_info().maxsize is None and listed.cache_info().hits > 100\n"
    later = "".join(f"import {name}\n" for name in INSTALLED)
    argv = [sys.executable, "-c", runner + kept + found + later + found]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=200)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[], INSTALLED]


def test_a_frame_is_told_without_its_source_inside() -> None:
    whole = inspect.getframeinfo
    with quick_imports():
        told = inspect.getframeinfo(sys._getframe())
    assert (told.filename, told.lineno > 0, told.code_context) == (__file__, True, None)
    assert inspect.getframeinfo is whole


def test_the_module_of_a_frame_is_found_by_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, asked = inspect.getmodule, list[object]()

    def search(of: object, _filename: str | None = None) -> object:
        # a module of torch that is lazy asks too, when the search comes to it
        if of in (pytest.raises, frame):
            asked.append(of)
        return whole(of, _filename)

    frame = sys._getframe()
    monkeypatch.setattr(inspect, "getmodule", search)
    with quick_imports():
        assert inspect.getmodule(frame) is sys.modules[__name__]
        assert not asked
        assert inspect.getmodule(pytest.raises) is sys.modules[pytest.raises.__module__]
        monkeypatch.delitem(sys.modules, __name__)
        inspect.getmodule(frame)
    assert asked == [pytest.raises, frame]
    assert inspect.getmodule is search


def test_the_folders_of_models_are_all_kept_and_other_answers_up_to_their_limit() -> None:
    whole = functools.lru_cache
    with quick_imports():

        @functools.lru_cache
        def create_import_structure_from_path(path: int) -> int:
            return path

        @functools.lru_cache
        def other(path: int) -> int:
            return path

        @functools.lru_cache(maxsize=5)
        def small(path: int) -> int:
            return path

    limits = [one.cache_info().maxsize for one in (create_import_structure_from_path, other, small)]
    assert limits == [None, 128, 5]
    assert functools.lru_cache is whole


def test_the_names_of_a_module_are_looked_for_from_its_last_list_on() -> None:
    seen = list[str]()
    names: dict[str, Any] = {"fetch__all__": seen.append}
    exec("def create_import_structure_from_path(text): return fetch__all__(text)", names)
    with quick_imports():
        listed = functools.lru_cache(names["create_import_structure_from_path"])
        listed("a = 1\n__all__ = ['a']\n__all__ = ['b']\n")
        listed("__all__ = ['c']")
    assert seen == ["__all__ = ['b']\n", "__all__ = ['c']"]
    assert names["fetch__all__"] == seen.append


def test_a_package_looks_absent_inside_and_is_there_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "UNUSED", ("this",))
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with hide_unused_packages():
        assert importlib.util.find_spec("this") is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("this")
    assert importlib.util.find_spec("this") is not None
    assert "this" not in sys.modules


def test_a_package_that_is_imported_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "UNUSED", ("json",))
    with hide_unused_packages():
        assert importlib.import_module("json") is json
    assert sys.modules["json"] is json


def test_nothing_stays_hidden_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "UNUSED", ("this",))
    with pytest.raises(ModuleNotFoundError), hide_unused_packages():
        importlib.import_module("no_such_module")
    assert "this" not in sys.modules


def test_what_is_installed_is_read_only_for_a_package_of_another_name_than_its_distribution() -> None:
    read_all, readings = importlib.metadata.packages_distributions, list[int]()

    def read() -> dict[str, list[str]]:
        readings.append(1)
        return {"yaml": ["PyYAML"]}

    found = upstream.Distributions(read)
    assert found["trl"] == read_all()["trl"] == ["trl"]
    assert not readings
    assert found["yaml"] == ["PyYAML"] and found.get("no_such_package") is None
    assert list(found) == ["yaml"] and len(found) == len(readings) == 1
    with quick_imports():
        assert isinstance(importlib.metadata.packages_distributions(), upstream.Distributions)
    assert importlib.metadata.packages_distributions is read_all


def test_no_garbage_is_collected_meanwhile_and_what_the_first_import_brought_is_not_looked_at_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gc.unfreeze()
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "torch", raising=False)
        with quick_imports():
            assert not gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() > 1000
    gc.unfreeze()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", pytest)
        with quick_imports():
            pass
    # a later one leaves garbage to the collector
    assert gc.get_freeze_count() == 0
    gc.freeze()


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    with quick_imports():
        pass
    assert not gc.isenabled()


def test_a_missing_private_name_is_an_error_with_the_version_and_the_range_to_install() -> None:
    with pytest.raises(UserError) as raised, explain_missing_names("trl"):
        importlib.import_module("trl.trainer.no_such_module")
    (problem,) = map(str, raised.value.problems)
    installed = importlib.metadata.version("trl")
    assert problem.startswith(f"trl {installed} does not have a private name that fmstune needs (No module named")
    assert "; install trl<" in problem or "; install trl>=" in problem


def test_a_library_without_a_range_of_its_own_is_named_all_the_same() -> None:
    said = "; install another version of huggingface_hub"
    with pytest.raises(UserError, match=said), explain_missing_names("huggingface_hub"):
        require_attributes(Named, "_gone")


class Named:
    _of_the_class = 1

    def __init__(self) -> None:
        self._of_an_instance = 1


class Inherits(Named):
    pass


def test_attributes_of_a_class_and_those_that_its_init_sets_are_found() -> None:
    require_attributes(Inherits, "_of_the_class", "_of_an_instance")
    with pytest.raises(AttributeError, match="Inherits has no attribute '_gone'"):
        require_attributes(Inherits, "_of_the_class", "_gone")
