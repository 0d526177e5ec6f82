"""Overrides are parsed once, and judged before Hydra composes."""

from pathlib import Path

import pytest

from fmstune.config.groups import GROUPS
from fmstune.config.overrides import (
    allow_new_fields,
    field_changes,
    parse_overrides,
    swept_keys,
    text_of,
    unknown_choices,
)
from fmstune.errors import UserError


def test_fields_may_be_new_and_groups_stay_groups() -> None:
    words = ["peft=lora", "training.adam_beta1=0.8", "sede=3", "+a.b=1", "~data.eval", "hydra.mode=RUN", "seed=1,2"]
    assert [text_of(one) for one in allow_new_fields(parse_overrides(words), {"peft"})] == [
        "peft=lora",
        "++training.adam_beta1=0.8",
        "++sede=3",
        "+a.b=1",
        "~data.eval",
        "hydra.mode=RUN",
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
        "y={a:[1,2],b:[c,d]}",
        "z=a\\,b",
        "u=tag(log,interval(1,2))",
    ]
    lists = {"peft.target_modules", "data.response_template"}
    assert swept_keys(parse_overrides(words)) == {"training.learning_rate", "peft", "seed", "u"} | lists


def test_a_frozen_job_takes_fields_only() -> None:
    assert field_changes(parse_overrides(["seed=7", "data.max_rows=null"])) == {"seed": 7, "data.max_rows": None}
    for word in ("peft=lora", "seed=1,2", "~seed", "a@b=c"):
        with pytest.raises(UserError, match="with --from single fields can change, not groups or sweeps"):
            field_changes(parse_overrides([word]))


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("peft=lorra", ["lorra"]),
        ("peft=lora.yaml", []),
        ("peft=mine/wide", []),
        ("peft=lora,lorra,3", ["lorra", "3"]),
        ("tracking=[aim,amf]", ["amf"]),
        ("tracking=[aim],[amf]", ["amf"]),
        ("peft=glob(l*)", []),
        ("~peft", []),
        ("peft=wide", []),
        ("tracking={aim: {repo: x}}", []),
        ("tracking=[[1]]", [None]),
        ("tracking=[aim,null]", [None]),
        ("training=bool(2)", [None]),
        ("peft=range(1,3)", [None]),
        ("evaluation=${peft}", []),
    ],
)
def test_every_choice_that_is_no_file_of_its_group_is_named(word: str, names: list[str | None], tmp_path: Path) -> None:
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "wide.yaml").touch()
    assert [name for _, name in unknown_choices(parse_overrides([word]), tmp_path)] == names


def test_no_experiment_is_the_default() -> None:
    assert parse_overrides(["experiment=null", "seed=1"], {"experiment"})[0].key_or_group == "seed"


def test_a_group_of_the_job_may_have_a_plus_and_a_mapping_sets_its_fields() -> None:
    words = ["+experiment=x", "++peft=lora", "tracking={aim: {repo: x}}", "+mine=x", "++tracking={a: {b: 1}}"]
    assert [text_of(one) for one in allow_new_fields(parse_overrides(words), {*GROUPS, "mine"})] == [
        "experiment=x",
        "peft=lora",
        "++tracking={aim: {repo: x}}",
        "+mine=x",
        "++tracking={a: {b: 1}}",
    ]
