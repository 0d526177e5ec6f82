"""Overrides are parsed once, and judged before Hydra composes."""

from pathlib import Path

import pytest

from fmstune.config.overrides import (
    allow_new_fields,
    field_changes,
    parse_overrides,
    swept_keys,
    text_of,
    wrong_choices,
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
    ],
)
def test_every_choice_that_does_not_exist_is_named(word: str, names: list[str], tmp_path: Path) -> None:
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "wide.yaml").touch()
    found = [problem for _, problem in wrong_choices(parse_overrides([word]), tmp_path)]
    assert [str(problem).partition(":")[0].partition("=")[2] for problem in found] == names
