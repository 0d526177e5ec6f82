"""Upstream's fields are read from source text: they must be what the classes themselves say."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fmstune.config import upstream_fields
from fmstune.config.upstream_fields import Field
from fmstune.errors import UserError


def test_the_fields_of_sft_config_are_those_of_the_class() -> None:
    from trl import SFTConfig

    real = {field.name for field in dataclasses.fields(SFTConfig) if field.init}
    assert set(upstream_fields.fields_of(upstream_fields.SFT_CONFIG)) == real
    assert len(real) > 100


@pytest.mark.parametrize(
    "name", ["LoraConfig", "PromptTuningConfig", "IA3Config", "PrefixTuningConfig", "AdaLoraConfig"]
)
def test_the_fields_of_a_peft_configuration_are_those_of_the_class(name: str) -> None:
    import peft

    real = {field.name for field in dataclasses.fields(getattr(peft, name)) if field.init}
    assert set(upstream_fields.fields_of(f"peft.{name}")) == real


@pytest.mark.parametrize(
    ("target", "name", "expected"),
    [
        ("trl.SFTConfig", "learning_rate", Field("learning_rate", (float,), False)),
        ("trl.SFTConfig", "max_steps", Field("max_steps", (int,), False)),
        ("trl.SFTConfig", "bf16", Field("bf16", (bool,), True)),
        ("trl.SFTConfig", "eval_strategy", Field("eval_strategy", (str,), False, ("no", "steps", "epoch"))),
        (
            "trl.SFTConfig",
            "packing_strategy",
            Field("packing_strategy", (str,), False, ("bfd", "bfd_split", "wrapped")),
        ),
        ("trl.SFTConfig", "lr_scheduler_kwargs", Field("lr_scheduler_kwargs", (dict, str), True)),
        ("peft.LoraConfig", "r", Field("r", (int,), False)),
        ("peft.LoraConfig", "bias", Field("bias", (str,), False, ("none", "all", "lora_only"))),
        ("peft.LoraConfig", "target_modules", Field("target_modules", (), True)),
        # a pattern among the literals leaves the text open
        ("peft.LoraConfig", "init_lora_weights", Field("init_lora_weights", (bool, str), False)),
        (
            "peft.PromptTuningConfig",
            "prompt_tuning_init",
            Field("prompt_tuning_init", (str,), False, ("TEXT", "SAMPLE_VOCAB", "RANDOM")),
        ),
    ],
)
def test_types_and_choices_are_read_from_annotations_and_metadata(target: str, name: str, expected: Field) -> None:
    assert upstream_fields.fields_of(target)[name] == expected


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        ("class A:\n    x: int = 1\n\n    def f(self) -> None:\n        y: int = 2\n", ["x"]),
        ("class A:\n    def f(\n        self,\n    ) -> None:\n        pass\n\n    x: int = 1\n", ["x"]),
        ("class A:\n    @property\n    def f(self): ...\n\n    x: int\n", ["x"]),
        ("@decorated\nclass A:\n    x: int\n    def f(self): ...\n@again\nclass B(A):\n    y: int\n", ["x", "y"]),
        ('class A:\n    """\nclass Shown:\n    def f(self): ...\n    """\n    x: int\n', ["x"]),
        ('def f():\n    """\nclass A:\n    """\nclass B:\n    x: int\n', ["x"]),
    ],
)
def test_a_class_is_read_without_its_methods_where_no_field_is_lost(
    source: str, fields: list[str], tmp_path: Path
) -> None:
    (tmp_path / "source.py").write_text(source)
    classes = [node for node in upstream_fields._parse(tmp_path / "source.py").body if isinstance(node, ast.ClassDef)]
    statements = [statement for node in classes for statement in node.body]
    assert [ast.unparse(s.target) for s in statements if isinstance(s, ast.AnnAssign)] == fields


def test_a_class_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="the installed peft has no configuration class 'NoSuchConfig'"):
        upstream_fields.fields_of("peft.NoSuchConfig")


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from fmstune.cli import main; from fmstune.config import upstream_fields;"
        "upstream_fields.fields_of('trl.SFTConfig');"
        "upstream_fields.fields_of('peft.LoraConfig');"
        "print([m for m in ('torch', 'transformers', 'trl', 'peft', 'datasets', 'accelerate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("hint", "items"),
    [
        (list[str], (str,)),
        (list[str] | str | None, (str,)),
        (list[int] | None, (int,)),
        (list[float], (float,)),
        (list, ()),
        (list[Any], ()),
        (list[list[int]], ()),
        (dict[str, list[str]], ()),
    ],
)
def test_what_a_list_holds_is_read_from_its_annotation(hint: Any, items: tuple[type, ...]) -> None:
    assert upstream_fields.field_of("x", hint).items == items
