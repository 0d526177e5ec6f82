"""Words are sorted into verb, own flags and what Hydra gets."""

from pathlib import Path

import pytest

from fmstune.cli.arguments import CommandLine, force_plain_overrides, parse, swept_keys
from fmstune.config.job import Dtype
from fmstune.config.requests import Comparison, Export, Generation, Merge, Report
from fmstune.config.verbs import Verb
from fmstune.errors import UserError


def test_without_a_verb_it_trains() -> None:
    assert parse(["peft=lora", "-m"]) == CommandLine(verb=Verb.train, hydra=("peft=lora", "-m"))


def test_a_verb_and_its_flags_are_taken_off() -> None:
    line = parse(["show-data", "--rows", "5", "model=tiny_llama", "--json", "rows.json"])
    assert line == CommandLine(verb=Verb.show_data, hydra=("model=tiny_llama",), rows=5, json=Path("rows.json"))


def test_flags_of_another_verb_go_through_to_hydra() -> None:
    assert parse(["check", "--rows", "5"]).hydra == ("--rows", "5")


def test_generate_has_a_flag_for_each_field_of_its_request() -> None:
    line = parse(
        ["generate", "--model", "run", "--text", "a", "--stop", "b", "--stop=c", "--top_k", "3", "--do_sample"]
    )
    assert line.request == Generation(model="run", text="a", stop=("b", "c"), top_k=3, do_sample=True)
    assert line.hydra == ()


def test_the_fields_of_a_data_format_go_with_its_flag() -> None:
    line = parse(["generate", "--model", "m", "--format", "text", "data.text_field=q", "--trust", "mine"])
    assert (line.data_format, line.hydra, line.trusted) == ("text", ("data.text_field=q",), ("mine",))
    assert line.request == Generation(model="m")
    line = parse(["generate", "--model", "m", "--format", "reviews", "--config-dir", "my_conf", "data.text_field=q"])
    assert line.hydra == ("--config-dir", "my_conf", "data.text_field=q")


def test_merge_has_a_flag_for_each_field_of_its_request() -> None:
    words = ["merge", "--model", "a", "--weight", "0.5", "--model=b", "--weight", "-1", "--out", "m"]
    assert parse(words).request == Merge(model=("a", "b"), weight=(0.5, -1.0), out="m")
    line = parse(["merge", "--model", "a", "--out", "m", "--export", "vllm_lora", "--dtype", "float16", "--force"])
    assert line.request == Merge(model=("a",), out="m", export=Export.vllm_lora, dtype=Dtype.float16, force=True)


def test_report_and_compare_take_folders_and_flags() -> None:
    line = parse(["report", "runs/sweep", "--metric", "tuned.exact_match", "--direction=maximize"])
    assert line.request == Report(folder="runs/sweep", metric="tuned.exact_match", direction="maximize")
    assert parse(["compare", "a", "--html", "c.html", "b"]).request == Comparison(a="a", b="b", html="c.html")


def test_packages_are_trusted_one_flag_each() -> None:
    assert parse(["--trust", "mine", "--trust=yours"]).trusted == ("mine", "yours")


def test_a_misspelt_verb_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="unknown verb 'chek'; did you mean 'check'?"):
        parse(["chek"])


@pytest.mark.parametrize("words", [["show-data", "--rows", "many"], ["show-data", "--json"], ["train", "--from"]])
def test_a_flag_without_its_value_is_the_users_error(words: list[str]) -> None:
    with pytest.raises(UserError, match="argument"):
        parse(words)


def test_plain_overrides_may_set_any_key_and_groups_stay_groups() -> None:
    words = [
        "peft=lora",
        "training.adam_beta1=0.8",
        "sede=3",
        "+a.b=1",
        "~data.eval",
        "hydra.mode=RUN",
        "-m",
        "seed=1,2",
    ]
    assert force_plain_overrides(words, {"peft"}) == [
        "peft=lora",
        "++training.adam_beta1=0.8",
        "++sede=3",
        "+a.b=1",
        "~data.eval",
        "hydra.mode=RUN",
        "-m",
        "++seed=1,2",
    ]


def test_swept_keys_are_those_with_several_values() -> None:
    words = [
        "training.learning_rate=1e-5,1e-4",
        "peft=lora,full",
        "data.train=[a,b]",
        'name="a,b"',
        "seed=range(1,4)",
        "x=3",
        "peft.target_modules=[q_proj],[q_proj,v_proj]",
        "++data.response_template='a,b','it\\'s'",
        "y={a:[1,2],b:(c,d)}",
        "z=a\\,b",
        "u=tag(log,interval(1,2))",
    ]
    lists = {"peft.target_modules", "data.response_template"}
    assert swept_keys(words) == {"training.learning_rate", "peft", "seed", "u"} | lists
