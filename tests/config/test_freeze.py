"""A tree of values becomes a typed job, or every problem that it has."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from fmstune.config import freeze
from fmstune.config.choices import Attention, Dtype, OverLength, QuantType
from fmstune.config.job import Job, Quantization
from fmstune.errors import UserError

TREE: dict[str, Any] = {
    "name": "try",
    "model": {"path": "package:tiny_llama"},
    "peft": {"_target_": "peft.LoraConfig", "r": 8},
    "data": {
        "train": "rows.jsonl",
        "format": {"_target_": "fmstune.data.formats.text", "text_field": "text", "response_template": None},
    },
    "training": {"learning_rate": 1e-4},
}


def tree(**changes: Any) -> dict[str, Any]:
    """TREE with dotted changes, `__` for the dot."""
    changed = copy.deepcopy(TREE)
    for path, value in changes.items():
        *groups, name = path.split("__")
        node = changed
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = value
    return changed


def problems_of(broken: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        freeze.freeze(broken)
    return tuple(map(str, caught.value.problems))


def test_values_become_the_types_of_the_job() -> None:
    job = freeze.freeze(tree(model__dtype="bfloat16", data__over_length="drop", data__max_length="128")).job
    assert isinstance(job, Job)
    assert (job.model.dtype, job.data.over_length, job.data.max_length) == (Dtype.bfloat16, OverLength.drop, 128)
    assert job.model.attention is Attention.auto
    assert job.seed == 42


def test_an_optional_group_is_typed_and_comes_back_from_its_file(tmp_path: Path) -> None:
    assert freeze.freeze(tree(model__quantization=None)).job.model.quantization is None
    job = freeze.freeze(tree(model__quantization={"load_in_4bit": "true", "bnb_4bit_compute_dtype": "float16"})).job
    assert job.model.quantization == Quantization(load_in_4bit=True, bnb_4bit_compute_dtype=Dtype.float16)
    assert job.model.quantization.bnb_4bit_quant_type is QuantType.nf4
    freeze.write(job, tmp_path / "job.yaml")
    assert freeze.read(tmp_path / "job.yaml").job == job


def test_lora_plus_s_ratio_is_a_number_of_lora_alone() -> None:
    assert freeze.freeze(tree(peft__loraplus_lr_ratio="16")).job.peft["loraplus_lr_ratio"] == 16.0
    assert problems_of(tree(peft__loraplus_lr_ratio="high")) == (
        "peft.loraplus_lr_ratio must be a number or null, got 'high'",
    )


def test_all_problems_are_reported_at_once_with_suggestions() -> None:
    broken = tree(sede=1, model__pth="x", training__learning_rat=1, peft__rr=2, data__max_length="long")
    assert problems_of(broken) == (
        "sede: unknown field; did you mean 'seed'?",
        "model.pth: unknown field; did you mean 'path'?",
        "data.max_length must be a whole number, got 'long'",
        "training.learning_rat: unknown field of trl.SFTConfig; did you mean 'learning_rate'?",
        "peft.rr: unknown field of peft.LoraConfig; did you mean 'r'?",
    )


def test_a_missing_value_is_asked_for_with_an_example() -> None:
    assert problems_of(tree(data__train="???")) == (
        "data.train must be given: a file, glob, folder or hub id, such as data.train=rows.jsonl",
    )


def test_a_bare_no_of_yaml_means_no_and_not_false() -> None:
    job = freeze.freeze(tree(training__eval_strategy=False, training__save_strategy="no")).job
    assert job.training["eval_strategy"] == "no"
    assert job.training["save_strategy"] == "no"


@pytest.mark.parametrize(
    ("early", "value", "name", "now"),
    [
        ("evaluation_strategy", "epoch", "eval_strategy", "epoch"),
        ("warmup_ratio", 0.03, "warmup_steps", 0.03),
        ("gradient_checkpointing", True, "activation_checkpointing", True),
        ("group_by_length", True, "train_sampling_strategy", "group_by_length"),
        ("include_tokens_per_second", True, "include_num_input_tokens_seen", "all"),
    ],
)
def test_names_of_the_early_tool_are_translated_with_a_note(early: str, value: Any, name: str, now: Any) -> None:
    frozen = freeze.freeze(tree(**{f"training__{early}": value}))
    assert frozen.job.training[name] == now
    assert early not in frozen.job.training
    assert frozen.notes == (f"training.{early} is called training.{name} now; set to {now}",)


def test_a_warmup_ratio_of_one_is_not_taken_for_one_step() -> None:
    (problem,) = problems_of(tree(training__warmup_ratio=1.0))
    assert problem == "training.warmup_ratio must be in [0, 1), got 1.0; set training.warmup_steps instead"


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("max_length", "data.max_length sets it"),
        ("seed", "the top-level seed sets it"),
        ("output_dir", "the top-level output_dir sets it"),
        ("report_to", "the tracking group says where metrics go, such as tracking=aim"),
        ("use_cpu", "launcher.device=cpu sets it"),
        ("fsdp_config", "the launcher group sets it"),
        ("max_seq_length", "it is data.max_length now"),
        ("hub_token", "secrets stay out of a job; set the environment variable HF_TOKEN"),
    ],
)
def test_a_field_that_another_group_owns_names_its_owner(name: str, owner: str) -> None:
    assert problems_of(tree(**{f"training__{name}": "x"})) == (f"training.{name}: {owner}",)


def test_every_owned_or_translated_name_is_out_of_the_way_of_sft_config() -> None:
    from fmstune.config import upstream_fields
    from fmstune.config.renamed_fields import OWN, OWNED, TRANSLATED

    fields = set(upstream_fields.fields_of(upstream_fields.SFT_CONFIG))
    assert {translation.name for translation in TRANSLATED.values()} <= fields
    assert not set(OWN) & fields
    # each row that says "sets it" is about a field that the installed SFTConfig really has
    assert {
        name for name, owner in OWNED.items() if owner.endswith("sets it") and not owner.startswith("it is")
    } <= fields


@pytest.mark.parametrize("target", ["os.system", "peft.get_peft_model", "peft.utils.save_and_load", None, 3])
def test_only_peft_configurations_are_targets_of_peft(target: Any) -> None:
    (problem,) = problems_of(tree(peft={"_target_": target}))
    assert problem.startswith("peft._target_ must be a PEFT configuration such as peft.LoraConfig, got ")


def test_a_format_of_another_package_must_be_trusted_by_name() -> None:
    own = tree(data__format={"_target_": "mine.formats.reviews"})
    (problem,) = problems_of(own)
    assert problem == (
        "data.format._target_: 'mine.formats.reviews' is not in an allowed package (fmstune.data.formats); "
        "if you trust it, add --trust mine"
    )
    assert freeze.freeze(own, trusted=["mine"]).job.data.format == {"_target_": "mine.formats.reviews"}


def test_full_tuning_takes_no_adapter_fields() -> None:
    (problem,) = problems_of(tree(peft={"_target_": "fmstune.models.adapters.full", "r": 8}))
    assert problem == "peft.r: full tuning has no adapter and takes no fields; choose peft=lora"


def test_a_job_that_is_written_reads_back_equal(tmp_path: Path) -> None:
    job = freeze.freeze(
        tree(
            data__format={
                "_target_": "fmstune.data.formats.text",
                "text_field": "ü",
                "response_template": "${x} {{y}}",
            },
            training={"learning_rate": 1e-5, "lr_scheduler_kwargs": {"num_cycles": 1}, "eval_strategy": "no"},
        )
    ).job
    freeze.write(job, tmp_path / "job.yaml")
    assert freeze.read(tmp_path / "job.yaml").job == job


def test_a_job_file_is_never_overwritten(tmp_path: Path) -> None:
    job = freeze.freeze(TREE).job
    freeze.write(job, tmp_path / "job.yaml")
    with pytest.raises(FileExistsError):
        freeze.write(job, tmp_path / "job.yaml")


@pytest.mark.parametrize("text", ["${.}", "${seed}", "${a", "\\${x}", "${}", "???x"])
def test_text_of_a_written_job_that_looks_like_a_reference_stays_text(text: str, tmp_path: Path) -> None:
    job = freeze.freeze(tree(data__format__response_template=text)).job
    freeze.write(job, tmp_path / "job.yaml")
    assert freeze.read(tmp_path / "job.yaml").job == job
    changes = {"data.format.response_template": text + text}
    assert freeze.read(tmp_path / "job.yaml", changes=changes).job.data.format["response_template"] == text + text


def test_a_mapping_is_merged_into_a_field_and_an_item_of_a_list_replaced(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("a: {b: {c: 1, d: [x, {e: 2}]}}")
    changed = freeze.load_file(tmp_path / "job.yaml")
    for field, value in {"a.b": {"c": 3, "f": {"g": 4}}, "a.b.d.1.e": 5, "h.i": [6]}.items():
        changed = freeze.with_value(changed, field, value)
    assert changed == {"a": {"b": {"c": 3, "d": ["x", {"e": 5}], "f": {"g": 4}}}, "h": {"i": [6]}}


def test_fields_of_a_file_can_be_changed_on_reading(tmp_path: Path) -> None:
    freeze.write(freeze.freeze(TREE).job, tmp_path / "job.yaml")
    job = freeze.read(tmp_path / "job.yaml", changes={"training.learning_rate": 1, "output_dir": "there"}).job
    assert job.training["learning_rate"] == 1.0
    assert job.output_dir == "there"


@pytest.mark.parametrize(
    ("text", "message"), [("[1, 2]", "a job is a mapping of groups"), ("{a: [", "cannot be read as a job")]
)
def test_what_is_no_job_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        freeze.read(tmp_path / "job.yaml")


def test_a_change_of_lora_targets_reaches_the_adapter_that_took_them(tmp_path: Path) -> None:
    whole = tree(model__lora_targets=["q_proj"], peft__target_modules=["q_proj"])
    freeze.write(freeze.freeze(whole).job, tmp_path / "job.yaml")
    job = freeze.read(tmp_path / "job.yaml", changes={"model.lora_targets": ["k_proj"]}).job
    assert job.peft["target_modules"] == ["k_proj"]


@pytest.mark.parametrize("change", ["data.text_field", "data.format.text_field"])
@pytest.mark.parametrize("of_before", [True, False])
def test_the_text_field_of_a_format_is_one_field_under_two_names(tmp_path: Path, change: str, of_before: bool) -> None:
    """A job frozen before holds it in `data` and in the format."""
    whole = yaml.safe_load(freeze.dump(freeze.freeze(tree()).job))
    assert "text_field" not in whole["data"]
    if of_before:
        whole["data"] |= {"text_field": "text", "response_template": None}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(whole))
    assert freeze.read(tmp_path / "job.yaml").job == freeze.freeze(tree()).job
    job = freeze.read(tmp_path / "job.yaml", changes={change: "body"}).job
    assert job.data.format["text_field"] == "body"


def test_a_format_without_a_text_field_refuses_one() -> None:
    alpaca = {"_target_": "fmstune.data.formats.alpaca"}
    (problem,) = problems_of(tree(data__format=alpaca, data__text_field="x"))
    assert problem == "data.text_field is not used by alpaca; leave it out"
    freeze.freeze(tree(data__format=alpaca, data__text_field=None))


def test_a_file_is_checked_as_strictly_as_a_composed_job(tmp_path: Path) -> None:
    freeze.write(freeze.freeze(TREE).job, tmp_path / "job.yaml")
    text = (tmp_path / "job.yaml").read_text()
    (tmp_path / "job.yaml").write_text(text.replace("learning_rate", "learning_rat"))
    with pytest.raises(UserError, match=r"training.learning_rat: unknown field"):
        freeze.read(tmp_path / "job.yaml")
