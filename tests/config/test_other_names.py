"""Words that people bring from other tools lead to the field of today."""

import pytest

from fmstune.config import other_names
from fmstune.config.choices import Device, Kernels
from fmstune.config.freeze import freeze
from fmstune.config.groups import GROUPS, choices
from fmstune.config.job import LORA, Quantization
from fmstune.config.upstream_fields import SFT_CONFIG, fields_of
from fmstune.errors import UserError
from tests.composing import composed_tree


@pytest.mark.parametrize(
    ("word", "field"),
    [
        ("lr", "training.learning_rate"),
        ("learning_rate", "training.learning_rate"),
        ("training.lr", "training.learning_rate"),
        ("optimizer.lr", "training.learning_rate"),
        ("epochs", "training.num_train_epochs"),
        ("batch_size", "training.per_device_train_batch_size"),
        ("training.batch_size", "training.per_device_train_batch_size"),
        ("batch-size", "training.per_device_train_batch_size"),
        ("max_seq_length", "data.max_length"),
        ("training.max_len", "data.max_length"),
        ("model_name_or_path", "model.path"),
        ("model.name", "model.path"),
        ("lora_r", "peft.r"),
        ("lora.r", "peft.r"),
        ("peft.rank", "peft.r"),
        ("peft.alpha", "peft.lora_alpha"),
        ("model.seed", "seed"),
        ("dtype", "model.dtype"),
        ("load_in_4bit", "model.quantization.load_in_4bit"),
        ("use_cpu", "launcher.device=cpu"),
        ("deepspeed", "launcher=fsdp"),
        ("dataset", "data.train"),
        ("zzz", None),
    ],
)
def test_a_word_of_another_tool_leads_to_the_field_of_today(word: str, field: str | None) -> None:
    assert other_names.suggestion(word) == field


def test_a_field_that_the_group_does_not_have_is_not_suggested() -> None:
    assert other_names.suggestion("peft.alpha", fields_of("peft.IA3Config")) is None
    assert other_names.suggestion("peft.alpha", fields_of(LORA)) == "peft.lora_alpha"


def test_every_suggestion_is_a_field_or_a_choice_that_exists() -> None:
    job = freeze(composed_tree("peft=lora")).job
    lora, sft = fields_of(LORA), fields_of(SFT_CONFIG)
    for found in {*other_names.BROUGHT}:
        name, _, value = found.partition("=")
        group, _, field = name.partition(".")
        if group in GROUPS and not field:
            assert value in choices(group), found
        elif value:
            assert value in [*{"launcher.device": Device, "model.kernels": Kernels}[name]]
        elif group in ("training", "peft"):
            assert field in (sft if group == "training" else lora) or found in _OWN, found
        elif found in ("data.text_field", "data.response_template"):
            assert field in job.data.format
        elif found.startswith("model.quantization."):
            assert field.removeprefix("quantization.") in vars(Quantization())
        else:
            assert hasattr(getattr(job, group), field) if field else hasattr(job, group), found


_OWN = ("training.resume", "peft.num_virtual_tokens")


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lr": 1}, "lr: unknown field; did you mean 'training.learning_rate'?"),
        ({"lora": {"r": 8}}, "lora.r: unknown field; did you mean 'peft.r'?"),
        ({"lora": {"r": 8, "zzz": 1}}, "lora.r: unknown field; did you mean 'peft.r'?\nlora.zzz: unknown field"),
        ({"modle": {"path": "x"}}, "modle: unknown field; did you mean 'model'?"),
        ({"learnig_rate": 1}, "learnig_rate: unknown field; did you mean 'training.learning_rate'?"),
    ],
)
def test_a_job_with_such_a_word_is_refused_with_the_field(given: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as raised:
        freeze({**composed_tree(), **given})
    assert str(raised.value).startswith(said)
