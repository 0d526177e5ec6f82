"""The function that `data.format` names is a format and nothing else; what it returns is checked."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fmstune.data import format_loading, formats
from fmstune.data.format_loading import format_row, load_format
from fmstune.data.formats import RowProblem, Segment
from fmstune.errors import UserError


def only_read(text: str) -> Segment:
    return Segment(text, trained=False)


def trained(text: str) -> Segment:
    return Segment(text, trained=True)


def test_load_binds_the_settings() -> None:
    named = {"_target_": "fmstune.data.formats.text", "text_field": "t", "response_template": ":"}
    assert load_format(named)({"t": "a:b"}) == [only_read("a:"), trained("b")]


def test_load_finds_a_format_in_a_package_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_formats.py").write_text(
        "from fmstune.data.formats import Segment\n"
        "def shout(row, *, mark='!', **other):\n"
        "    return [Segment(row['t'] + mark, trained=True)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    named = {"_target_": "own_formats.shout", "mark": "?", "anything": 1}
    assert load_format(named)({"t": "a"}) == [trained("a?")]
    assert format_loading.source_files(named) == [tmp_path / "own_formats.py"]


def test_load_lists_all_settings_that_do_not_fit() -> None:
    with pytest.raises(UserError) as raised:
        load_format({"_target_": "fmstune.data.formats.text", "text_feild": "t", "response_template": 3})
    assert tuple(map(str, raised.value.problems)) == (
        "data.format.text_feild: text has no such setting; did you mean 'text_field'?",
        "data.format.response_template must be a string, found the int 3",
        "data.format.text_field is missing; text needs it",
    )


def test_a_setting_that_is_a_choice_or_a_mapping_is_checked() -> None:
    with pytest.raises(UserError) as raised:
        load_format({"_target_": "fmstune.data.formats.chat", "train": "lst", "template_kwargs": "x"})
    assert tuple(map(str, raised.value.problems)) == (
        "data.format.train must be one of all, last, marked, found the str 'lst'",
        "data.format.template_kwargs must be a mapping of names to values, found the str 'x'",
    )


def test_a_field_that_was_left_empty_is_no_string() -> None:
    with pytest.raises(UserError, match=r"data\.format\.text_field must be a string, found null"):
        load_format({"_target_": "fmstune.data.formats.text", "text_field": None, "response_template": None})


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (None, "data.format._target_ must be like fmstune.data.formats.text, found None"),
        ("text", "data.format._target_ must be like fmstune.data.formats.text, found 'text'"),
        (
            "no_such_package.text",
            "data.format._target_: cannot import no_such_package (No module named 'no_such_package')",
        ),
        (
            "fmstune.data.formats.alpacca",
            "data.format._target_: fmstune.data.formats has no function 'alpacca'; did you mean 'alpaca'?",
        ),
        (
            "fmstune.data.formats.ALPACA_WITH_INPUT",
            "data.format._target_: fmstune.data.formats has no function 'ALPACA_WITH_INPUT'",
        ),
    ],
)
def test_a_target_that_is_no_function_is_refused(target: str | None, message: str) -> None:
    with pytest.raises(UserError) as raised:
        load_format({"_target_": target})
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("made", ["text", [("text", True)], None])
def test_a_format_that_returns_no_segments_is_a_problem(made: Any) -> None:
    def broken(row: Mapping[str, Any]) -> Any:
        return made

    with pytest.raises(RowProblem, match=r"must return a list of fmstune\.data\.formats\.Segment"):
        format_row(broken, {})


def test_half_a_character_is_a_problem() -> None:
    row = {"t": json.loads(r'"a \ud83d b"')}
    with pytest.raises(RowProblem, match=r"half a character \(\\ud83d, a lone surrogate\)"):
        format_row(lambda row: [trained(row["t"])], row)


ALL = ", ".join(formats.FORMATS)


def problem_of(target: str, **settings: Any) -> str:
    with pytest.raises(UserError) as raised:
        load_format({"_target_": target, **settings})
    return str(raised.value)


@pytest.mark.parametrize("name", ["unescape", "has_answer", "repeats_template", "in_words", "_column", "did_you_mean"])
def test_what_fmstune_formats_holds_beside_its_formats_is_refused(name: str) -> None:
    assert problem_of(f"fmstune.data.formats.{name}") == (
        f"data.format._target_: fmstune.data.formats.{name} is not a format; "
        f"the formats of fmstune.data.formats are {ALL}"
    )


@pytest.mark.parametrize("name", ["RowProblem", "Segment", "Mapping", "re", "load"])
def test_classes_and_modules_of_fmstune_formats_are_no_functions(name: str) -> None:
    assert problem_of(f"fmstune.data.formats.{name}").startswith(
        f"data.format._target_: fmstune.data.formats has no function {name!r}"
    )


def test_no_other_module_of_fmstune_has_formats() -> None:
    assert problem_of("fmstune.data.format_loading.load_format") == (
        "data.format._target_: fmstune.data.format_loading.load_format is not a format; "
        f"the formats of fmstune.data.formats are {ALL}"
    )


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a format, a helper and what is no format."""
    package = tmp_path / "own_package"
    (package / "below").mkdir(parents=True)
    (package / "__init__.py").write_text("from own_package.shapes import shout\n")
    (package / "below" / "helper.py").write_text("")
    (package / "shapes.py").write_text(
        "from subprocess import run\n"
        "def shout(row, **other): return []\n"
        "def _private(row): return []\n"
        "def nothing(): return []\n"
        "def all_by_name(*, row): return []\n"
        "class Made:\n"
        "    def __init__(self, row): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "own_package"]:
        monkeypatch.delitem(sys.modules, name)
    return package


@pytest.mark.usefixtures("own_package")
@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "own_package.shapes.run",
            "own_package.shapes only imports 'run'; name the module that defines it, subprocess.run",
        ),
        (
            "own_package.shout",
            "own_package only imports 'shout'; name the module that defines it, own_package.shapes.shout",
        ),
        ("own_package.shapes._private", "own_package.shapes._private is private; name a public function"),
        ("own_package.shapes.Made", "own_package.shapes has no function 'Made'"),
        ("own_package.shapes.nothing", "own_package.shapes.nothing must take the row as its first argument"),
        ("own_package.shapes.all_by_name", "own_package.shapes.all_by_name must take the row as its first argument"),
    ],
)
def test_only_a_public_function_of_the_named_module_that_takes_a_row_is_a_format(target: str, message: str) -> None:
    assert problem_of(target) == f"data.format._target_: {message}"


@pytest.mark.usefixtures("own_package")
def test_a_setting_cannot_take_the_place_of_the_row() -> None:
    assert problem_of("own_package.shapes.shout", row=1) == "data.format.row: shout has no such setting"


def test_the_sources_of_a_format_are_all_files_of_its_package(own_package: Path) -> None:
    assert format_loading.source_files({"_target_": "own_package.shapes.shout"}) == [
        own_package / "__init__.py",
        own_package / "below" / "helper.py",
        own_package / "shapes.py",
    ]


def test_the_sources_of_fmstunes_own_formats_are_left_to_the_caller() -> None:
    assert format_loading.source_files({"_target_": "fmstune.data.formats.alpaca"}) == []
