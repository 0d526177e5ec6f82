"""Argv becomes one object: verb, options, Hydra's flags, overrides."""

from pathlib import Path

import pytest

from fmstune.cli.arguments import CommandLine, HelpOrVersion, parse_command_line
from fmstune.config.after_training.sharing import Push
from fmstune.config.choices import Dtype
from fmstune.config.overrides import text_of
from fmstune.config.requests import (
    Comparison,
    Export,
    Generation,
    HydraFlags,
    Merge,
    Parity,
    Report,
    Reproduce,
    ShowData,
    SuspectRows,
    Train,
    Verb,
)
from fmstune.errors import UserError


def parsed(*words: str) -> CommandLine:
    line = parse_command_line(words)
    assert isinstance(line, CommandLine)
    return line


def overrides(*words: str) -> list[str]:
    return [text_of(one) for one in parsed(*words).overrides]


def test_without_a_verb_it_trains() -> None:
    line = parsed("peft=lora", "-m")
    assert (line.verb, line.options, line.hydra) == (Verb.train, Train(), HydraFlags(multirun=True))
    (override,) = line.overrides
    assert (override.key_or_group, override.value(), override.input_line) == ("peft", "lora", "peft=lora")


def test_a_verb_its_flags_and_hydras_may_stand_anywhere() -> None:
    line = parsed(
        "show-data", "--rows", "5", "model=tiny_llama", "-c", "job", "--json", "rows.json", "seed=3", "-p", "peft"
    )
    assert line.options == ShowData(rows=5, json=Path("rows.json"))
    assert line.hydra == HydraFlags(cfg="job", package="peft")
    assert [text_of(one) for one in line.overrides] == ["model=tiny_llama", "seed=3"]


def test_generate_has_a_flag_for_each_field_of_its_request() -> None:
    words = ("--model", "run", "--text", "a", "--stop", "b", "--stop=c", "--top_k", "3", "--do_sample")
    line = parsed("generate", *words, "--dtype", "bfloat16")
    expected = Generation(model="run", text="a", stop=("b", "c"), top_k=3, do_sample=True, dtype=Dtype.bfloat16)
    assert (line.options, line.overrides) == (expected, ())


def test_the_fields_of_a_data_format_go_with_its_flag(tmp_path: Path) -> None:
    line = parsed("generate", "--model", "m", "--format", "text", "data.text_field=q", "--trust", "mine")
    assert line.options == Generation(model="m", data_format="text", trusted=("mine",))
    assert line.trusted == ("mine",)
    line = parsed("generate", "--model", "m", "--format", "x", "--config-dir", str(tmp_path), "data.text_field=q")
    assert line.config_dir == tmp_path
    assert [text_of(one) for one in line.overrides] == ["data.text_field=q"]


def test_merge_has_a_flag_for_each_field_of_its_request() -> None:
    words = ("merge", "--model", "a", "--weight", "0.5", "--model=b", "--weight", "-1", "--out", "m")
    assert parsed(*words).options == Merge(model=("a", "b"), weight=(0.5, -1.0), out="m")
    line = parsed("merge", "--model", "a", "--out", "m", "--export", "vllm_lora", "--dtype", "float16", "--force")
    assert line.options == Merge(model=("a",), out="m", export=Export.vllm_lora, dtype=Dtype.float16, force=True)


def test_parity_takes_a_run_and_a_server() -> None:
    line = parsed("parity", "a", "--endpoint", "http://h:1", "--served_model=t", "--dtype", "bfloat16", "--rows", "3")
    asked = Parity(run="a", endpoint="http://h:1", served_model="t", dtype=Dtype.bfloat16, rows=3)
    assert line.options == asked


def test_report_and_compare_take_folders_and_flags() -> None:
    line = parsed("report", "runs/lr=1", "--metric", "tuned.exact_match", "--direction=maximize")
    assert line.options == Report(folder="runs/lr=1", metric="tuned.exact_match", direction="maximize")
    assert parsed("compare", "a", "--html", "c.html", "b").options == Comparison(a="a", b="b", html="c.html")
    assert parsed("rows", "a", "--rows", "3", "--json", "r.json").options == SuspectRows(run="a", rows=3, json="r.json")


def test_push_takes_a_run_and_a_repository() -> None:
    assert parsed("push", "runs/first", "--repo", "me/first").options == Push(run="runs/first", repo="me/first")
    words = ("push", "a", "--repo=me/a", "--public", "--dry-run", "--force", "--base_model_name_or_path=x/y")
    flags = {"public": True, "dry_run": True, "force": True, "base_model_name_or_path": "x/y"}
    assert parsed(*words).options == Push(run="a", repo="me/a", **flags)


def test_reproduce_takes_one_run_and_fields(tmp_path: Path) -> None:
    line = parsed("reproduce", "run", "seed=3", "--strict")
    assert (line.options, overrides("reproduce", "run", "seed=3")) == (Reproduce(run="run", strict=True), ["seed=3"])
    point = tmp_path / "0-seed=1"
    point.mkdir()
    assert parsed("reproduce", str(point)).options == Reproduce(run=str(point))


def test_packages_are_trusted_one_flag_each() -> None:
    assert parsed("--trust", "mine", "--trust=yours").trusted == ("mine", "yours")


def test_help_and_version_need_nothing_else() -> None:
    assert parse_command_line(["--help"]) == HelpOrVersion(None, version=False)
    assert parse_command_line(["train", "-h"]) == HelpOrVersion(Verb.train, version=False)
    assert parse_command_line(["generate", "--version"]) == HelpOrVersion(Verb.generate, version=True)


def test_a_misspelt_verb_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="unknown verb 'chek'; did you mean 'check'?"):
        parsed("chek")


def test_a_flag_of_another_verb_says_whose_it_is() -> None:
    with pytest.raises(UserError, match="^--rows is a flag of fmstune show-data, parity, rows$"):
        parsed("check", "--rows", "5")


@pytest.mark.parametrize("words", [["show-data", "--rows", "many"], ["show-data", "--json"], ["train", "--from"]])
def test_a_flag_without_its_value_is_the_users_error(words: list[str]) -> None:
    with pytest.raises(UserError, match="argument"):
        parsed(*words)


def test_all_words_that_cannot_be_read_are_named_at_once() -> None:
    with pytest.raises(UserError) as refused:
        parsed("=3", "peft=null", "seed=[1", "nothing")
    assert [str(problem).split(":")[0] for problem in refused.value.problems] == [
        "=3",
        "seed=[1",
        "nothing",
        "peft=null",
    ]
