# SPDX-License-Identifier: Apache-2.0
"""Commands of the early tool mean today what they meant: translated word by word, composed, and run."""

import base64
import dataclasses
import json
import pickle
import re
import shlex
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fmstune.cli.arguments import parse_command_line
from fmstune.config import freeze, upstream_fields
from fmstune.config.job import Job
from fmstune.config.renamed_fields import FORMAT_SETTINGS
from fmstune.config.requests import Generation
from fmstune.config.requests import Harness as HarnessRequest
from fmstune.errors import UserError
from fmstune.launch import accelerate_file
from fmstune.migrate import flags as fms_flags
from fmstune.migrate.flags import HARNESS, INFERENCE, LAUNCH, TORCHRUN, TUNING, Fate
from fmstune.migrate.translate import render_command, render_notes, translate_old_commands
from fmstune.migrate.words import Became, Translation, hydra_word
from fmstune.training.trackers.aim import AimTracker
from tests import ROOT
from tests.bad_inputs.test_messages import UNCLEAR
from tests.composing import composed_tree
from tests.conftest import Result
from tests.fixtures import early_commands

VARIABLES = {
    "MODEL_PATH": "package:tiny_llama",
    "TRAIN_DATA_PATH": "twitter_complaints.json",
    "DATA_PATH": "twitter_complaints.json",
    "OUTPUT_PATH": "out",
    "MASTER_PORT": "1234",
}
FILES = {"tuning/config/fsdp_config.json": early_commands.FSDP_CONFIG}
BASIC = "python tuning/sft_trainer.py --training_data_path a.json --dataset_text_field output --response_template A:"


def translated(text: str, variables: Mapping[str, str] = VARIABLES, files: Mapping[str, str] = FILES) -> Translation:
    (found,) = translate_old_commands([text], variables, files.get)
    return found


def words(text: str, **files: str) -> list[str]:
    return list(translated(text, VARIABLES, {**FILES, **files}).words)


def job_of(translation: Translation) -> Job:
    """The job that the printed words compose to, frozen."""
    tree = composed_tree(*translation.words)
    tree["launcher"] |= accelerate_file.taken(tree["launcher"], frozenset())
    return freeze.freeze(tree).job


README_VALUES = {
    "num_train_epochs": 5,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "eval_strategy": "no",
    "save_strategy": "epoch",
    "learning_rate": 1e-5,
    "weight_decay": 0.0,
    "warmup_steps": 0.03,
    "lr_scheduler_type": "cosine",
    "logging_steps": 1,
    "include_num_input_tokens_seen": "all",
    "packing": False,
}


def test_the_command_for_one_gpu() -> None:
    job = job_of(translated(early_commands.SINGLE_GPU))
    assert {name: job.training[name] for name in README_VALUES} == README_VALUES
    settings = {name: job.data.format[name] for name in ("text_field", "response_template")}
    assert settings == {"text_field": "output", "response_template": r"\n### Response:"}
    assert (job.data.train, job.output_dir, job.model.dtype.value) == ("twitter_complaints.json", "out", "bfloat16")
    assert translated(early_commands.SINGLE_GPU).environment == {"CUDA_VISIBLE_DEVICES": "0"}


def test_the_command_for_several_gpus() -> None:
    job = job_of(translated(early_commands.FSDP))
    assert {name: job.training[name] for name in README_VALUES} == README_VALUES
    launcher = job.launcher
    assert (launcher.strategy.value, launcher.fsdp_version) == ("fsdp", 1)
    assert (launcher.num_processes, launcher.main_process_port) == (8, 1234)


def test_the_first_tools_command_for_several_gpus() -> None:
    job = job_of(translated(early_commands.TORCHRUN))
    assert {name: job.training[name] for name in README_VALUES} == README_VALUES
    assert job.training["bf16"] is True
    launcher = job.launcher
    assert (launcher.fsdp_version, launcher.num_processes, launcher.main_process_port) == (1, 8, 1234)
    assert launcher.transformer_layer_cls_to_wrap == ["LlamaDecoderLayer"] and launcher.forward_prefetch


def test_the_command_for_lora() -> None:
    job = job_of(translated(early_commands.LORA))
    assert job.peft == {
        "_target_": "peft.LoraConfig",
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"],
    }
    assert (job.training["learning_rate"], job.training["num_train_epochs"]) == (1e-4, 40)
    assert job.training["logging_strategy"] == "epoch"
    assert (job.model.attention.value, job.model.dtype.value, job.model.tokenizer) == ("sdpa", "float32", None)


def test_the_command_for_prompt_tuning() -> None:
    found = translated(early_commands.PROMPT_TUNING)
    job = job_of(found)
    assert job.peft == {
        "_target_": "peft.PromptTuningConfig",
        "num_virtual_tokens": 8,
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "Classify if the tweet is a complaint or not:",
    }
    assert (job.launcher.strategy.value, job.model.path) == ("single", "llama-7b-hf")
    assert job.training["per_device_train_batch_size"] == 1


def test_the_commands_for_inference_and_validation() -> None:
    assert words(early_commands.ONE_TEXT) == [
        *("generate", "--model", "my_checkpoint", "--text", "This is a text the model will run inference on"),
        *("--max_new_tokens", "50", "--out_file", "result.json", "--dtype", "float32"),
    ]
    assert words(early_commands.TEXT_FILE)[3:5] == ["--text_file", "source_texts.txt"]
    assert words(early_commands.HARNESS) == [
        *("evaluate", "harness", "--out_file", "out/results.json", "--model", "package:tiny_llama"),
        *("--tasks", "boolq,piqa,hellaswag,winogrande,arc_easy,arc_challenge,mmlu"),
    ]
    assert words(
        "lm_eval --model hf --model_args pretrained=base,peft=tuned,dtype=float32 --tasks boolq --limit 5"
    ) == [*("evaluate", "harness", "--limit", "5", "--model", "tuned", "--dtype", "float32", "--tasks", "boolq")]
    assert isinstance(parse_command_line(words(early_commands.ONE_TEXT)).options, Generation)
    assert isinstance(parse_command_line(words(early_commands.HARNESS)).options, HarnessRequest)


@pytest.mark.parametrize("encoded", [False, True], ids=["plain", "base64"])
@pytest.mark.parametrize("key", ["multiGPU", "accelerate_launch_args"])
def test_a_job_file_of_the_container(encoded: bool, key: str) -> None:
    content = {key if name == "multiGPU" else name: value for name, value in early_commands.CONTAINER.items()}
    text = json.dumps(content)
    text = base64.b64encode(text.encode()).decode() if encoded else text
    (found,) = translate_old_commands(["job"], {}, {"job": text}.get)
    assert {"launcher=fsdp1", "launcher.num_processes=2", "launcher.sharding_strategy=full_shard"} <= set(found.words)
    assert {"training.learning_rate=0.03", r'data.response_template="\n### Label:"'} <= set(found.words)
    by_variable = "SFT_TRAINER_CONFIG_JSON_PATH=job python accelerate_launch.py"
    assert words(by_variable, job=text) == list(found.words)


EARLY_DEFAULTS = {
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "learning_rate": 5e-5,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "max_steps": -1,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "logging_strategy": "steps",
    "logging_steps": 500,
    "save_strategy": "steps",
    "save_steps": 500,
    "eval_strategy": "no",
    # the early adamw_torch, computed by one kernel
    "optim": "adamw_torch_fused",
    "activation_checkpointing": False,
    "packing": False,
    "label_smoothing_factor": 0.0,
    "neftune_noise_alpha": None,
    "dataloader_drop_last": False,
    "dataloader_num_workers": 0,
}
"""Of `transformers.TrainingArguments` 4.38, with the early tool's `optim` and `packing`."""


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("model", "method"), [("facebook/opt-125m", "none"), ("facebook/opt-125m", "lora"), ("package:tiny_llama", "pt")]
)
def test_what_is_left_out_means_what_it_meant(model: str, method: str) -> None:
    """Whatever suits a model or method here, the early defaults hold."""
    from trl import SFTConfig

    own = {field.name: field.default for field in dataclasses.fields(SFTConfig)}
    job = job_of(translated(f"{BASIC} --model_name_or_path {model} --peft_method {method}"))
    values = {name: job.training.get(name, own[name]) for name in EARLY_DEFAULTS}
    assert {name: getattr(value, "value", value) for name, value in values.items()} == EARLY_DEFAULTS
    assert (job.seed, job.data.max_length, job.model.dtype.value) == (42, 4096, "bfloat16")
    assert (job.model.special_tokens, job.launcher.strategy.value) == ({}, "single")
    if method == "lora":
        assert (job.peft["r"], job.peft["lora_alpha"], job.peft["lora_dropout"]) == (8, 32, 0.05)
        assert job.peft["target_modules"] == ["q_proj", "v_proj"]
    if method == "pt":
        assert (job.peft["num_virtual_tokens"], job.peft["prompt_tuning_init"]) == (8, "TEXT")


def test_the_model_is_the_early_default_where_none_is_named() -> None:
    assert {"model=causal_lm", "model.path=facebook/opt-125m"} <= set(words(BASIC))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--use_flash_attn", ["model.attention=flash_attention_2"]),
        ("--use_flash_attn false", ["model.attention=sdpa"]),
        ("--learning-rate=3e-4", ["training.learning_rate=3e-4"]),
        ("--packing True", ["training.packing=true", "data.response_template=null"]),
        ("--validation_data_path b.json", ["data.eval=b.json"]),
        ("--group_by_length", ["training.train_sampling_strategy=group_by_length"]),
        ("--gradient_checkpointing True", ["training.activation_checkpointing=true"]),
        ("--neftune_noise_alpha 5", ["training.neftune_noise_alpha=5"]),
        ("--no_cuda", ["launcher.device=cpu"]),
        ("--report_to tensorboard wandb", ["tracking=[tensorboard,wandb]"]),
        ("--tracker aim --aim_repo runs/aim", ["tracking=aim", "tracking.aim.repo=runs/aim"]),
        ("--aim_remote_server_ip 10.0.0.1 --aim_remote_server_port 53800", ["tracking.aim.repo=aim://10.0.0.1:53800"]),
        ("--peft_method lora --target_modules all-linear", ["peft.target_modules=all-linear"]),
        ("--peft_method lora --target_modules c_attn", ["peft.target_modules=[c_attn]"]),
        ("--model_name_or_path bigcode/starcoder --peft_method lora", ["model=gpt_bigcode"]),
        ("--tokenizer_name_or_path other", ["model.tokenizer=other"]),
    ],
)
def test_a_flag_becomes_a_field(flags: str, expected: list[str]) -> None:
    assert set(expected) <= set(words(f"{BASIC} {flags}"))


@pytest.mark.parametrize(
    ("before", "launcher"),
    [
        ("python", []),
        ("python3 -u", []),
        ("accelerate launch", ["launcher=ddp"]),
        ("accelerate launch --num_processes 1 --use_fsdp", ["launcher=local"]),
        (
            "accelerate launch --multi_gpu --num_processes 4 --mixed_precision no",
            ["launcher=ddp", "launcher.num_processes=4"],
        ),
        (
            "accelerate launch --use_fsdp --fsdp_version 2 --num_processes 2 --fsdp_offload_params true",
            ["launcher=fsdp", "launcher.num_processes=2", "launcher.cpu_offload=true"],
        ),
        ("accelerate launch --config_file ddp.yaml", ["launcher=ddp", "launcher.config_file=ddp.yaml"]),
        (
            "accelerate launch --config_file ddp.yaml --num_processes $N",
            ["launcher=ddp", "launcher.config_file=ddp.yaml", "launcher.num_processes=\x00N\x00"],
        ),
        (
            "torchrun --nnodes 2 --nproc_per_node 8 --node_rank 1 --master_addr m0",
            [
                *("launcher=ddp", "launcher.num_machines=2", "launcher.num_processes=16"),
                *("launcher.machine_rank=1", "launcher.main_process_ip=m0"),
            ],
        ),
        ("python -m torch.distributed.launch --nproc_per_node=2", ["launcher=ddp", "launcher.num_processes=2"]),
    ],
)
def test_what_started_it_becomes_the_launcher(before: str, launcher: list[str]) -> None:
    found = words(BASIC.replace("python", before, 1), **{"ddp.yaml": "distributed_type: MULTI_GPU\nnum_processes: 4\n"})
    assert [word for word in found if word.startswith("launcher")] == launcher


def test_a_mixed_precision_of_accelerate_is_one_of_the_training() -> None:
    found = words(BASIC.replace("python", "accelerate launch --num_processes 1 --mixed_precision bf16", 1))
    assert "training.bf16=true" in found


def notes(text: str, **files: str) -> dict[str, tuple[str, str]]:
    """What became of each flag, as it was typed."""
    return {note.old: (note.became.value, note.new) for note in translated(text, VARIABLES, {**FILES, **files}).notes}


def test_every_flag_of_a_launcher_has_a_note_under_the_name_that_was_typed() -> None:
    before = "torchrun --standalone --nnodes=2 --nproc_per_node=8 --max_restarts 3 --rdzv_endpoint m0:30"
    found = notes(BASIC.replace("python", before, 1) + ' --fsdp "shard_grad_op auto_wrap"')
    assert found["--nproc_per_node 8"] == ("renamed", "launcher.num_processes=16")
    assert found["--nnodes 2"] == ("renamed", "launcher.num_machines=2")
    assert found["--rdzv_endpoint m0:30"] == ("renamed", "launcher.main_process_port=30")
    assert found["--fsdp shard_grad_op auto_wrap"] == ("renamed", "launcher.sharding_strategy=shard_grad_op")
    assert found["--standalone"] == found["--max_restarts 3"] == ("dropped", "")
    assert not {old for old in found if old.startswith(("--num_p", "--num_m", "--fsdp_"))}
    named = BASIC.replace("python", "accelerate launch --config_file ddp.yaml --num_processes 4", 1)
    assert notes(named, **{"ddp.yaml": "distributed_type: MULTI_GPU\n"})["--config_file ddp.yaml"] == (
        "kept",
        "launcher.config_file=ddp.yaml",
    )


def test_where_a_tracker_was_said_is_noted_and_where_none_was() -> None:
    said = {"AIMSTACK_DB": "runs/aim", "AIMSTACK_EXPERIMENT": "first"}
    found = {note.old: note.new for note in translated(BASIC, said).notes}
    assert found["AIMSTACK_DB=runs/aim"] == "tracking.aim.repo=runs/aim"
    assert found["AIMSTACK_EXPERIMENT=first"] == "tracking.aim.experiment=first"
    assert "--report_to was left out" not in found
    assert notes(BASIC)["--report_to was left out"] == ("changed", "metrics.jsonl alone")
    assert "--report_to was left out" not in notes(f"{BASIC} --report_to none")


def test_what_the_harness_needs_is_missed_at_once() -> None:
    with pytest.raises(UserError) as raised:
        translated("lm_eval --model nosuch --tasks")
    assert [problem.partition(";")[0].partition(":")[0] for problem in map(str, raised.value.problems)] == [
        "--model must be one of hf, hf-causal, hf-causal-experimental, hf-auto, huggingface",
        "--model_args is missing",
        "--tasks takes one value, got none",
    ]


def test_processes_of_each_machine_are_not_taken_for_those_of_all() -> None:
    text = BASIC.replace("python", "torchrun --nnodes=2 --nproc_per_node=$N", 1)
    with pytest.raises(
        UserError, match=r"--nproc_per_node \$N: launcher.num_processes counts the processes of all machines"
    ):
        translated(text)


def test_flags_of_the_harness_that_are_written_otherwise_here() -> None:
    base = "lm_eval --model hf --model_args pretrained=m --tasks boolq"
    assert words(f"{base} --batch_size auto:4 --device cuda:0 --output_path out/") == [
        *("evaluate", "harness", "--device", "cuda", "--out_file", "out/harness.json"),
        *("--model", "m", "--tasks", "boolq"),
    ]
    with pytest.raises(UserError, match="set CUDA_VISIBLE_DEVICES=1 before the command"):
        translated(f"{base} --device cuda:1")


def test_modules_scripts_and_words_are_the_same() -> None:
    expected = words(BASIC)
    assert words(BASIC.replace("tuning/sft_trainer.py", "-m tuning.sft_trainer")) == expected
    assert words(BASIC.replace("tuning/", "/home/me/fms-hf-tuning/tuning/")) == expected
    (found,) = translate_old_commands(shlex.split(BASIC), {}, {}.get)
    assert list(found.words) == expected


def test_several_commands_of_a_script_are_several_translations() -> None:
    text = f"{BASIC} --output_dir a\n{early_commands.ONE_TEXT}"
    first, second = translate_old_commands([text], {}, {}.get)
    assert "output_dir=a" in first.words and second.words[0] == "generate"


def test_a_secret_is_not_repeated() -> None:
    found = translated(f"{BASIC} --hub_token hf_secret")
    assert "hf_secret" not in render_command(found) + render_notes(found)


def test_a_word_after_a_dropped_flag_is_named_in_its_note() -> None:
    found = translated(f"{BASIC.replace('python', 'torchrun --role a b', 1)} --do_eval stray --logging_dir logs more")
    dropped = {note.old for note in found.notes if note.became is Became.dropped}
    assert {"--role a b", "--do_eval stray", "--logging_dir logs more"} <= dropped


def test_a_word_after_a_secret_is_reported() -> None:
    with pytest.raises(UserError, match="'stray' belongs to no flag"):
        translated(f"{BASIC} --hub_token hf_secret stray")


def test_the_command_is_copied_back_as_it_was() -> None:
    """What is printed, a shell reads as the words that were meant; variables without a value stay variables."""
    found = translated(early_commands.LORA)
    assert shlex.split(render_command(found).replace("\\\n", " ")) == ["fmstune", *found.words]
    unset = translated(early_commands.SINGLE_GPU, {})
    assert unset.unset == ["MODEL_PATH", "TRAIN_DATA_PATH", "OUTPUT_PATH"]
    lines = render_command(unset).split(" \\\n  ")
    assert lines[:3] == ["CUDA_VISIBLE_DEVICES=0 fmstune", "model=causal_lm", '"model.path=${MODEL_PATH}"']


@pytest.mark.parametrize(
    "value",
    ["plain", "with space", r"\n### Label:", 'say "hi"', "back\\", 'both\\" x', "a,b", "12", "null", "[x]", "it's"],
)
def test_a_text_is_read_by_hydra_as_it_was(value: str) -> None:
    assert OverridesParser.create().parse_override(f"a={hydra_word(value)}").value() == value


def test_every_flag_of_the_early_tool_is_in_the_table() -> None:
    assert len(early_commands.TRAINING_ARGUMENTS) == 119
    assert [name for name in early_commands.TRAINING_ARGUMENTS if fms_flags.find_flag(name, TUNING) is None] == []


def fields_of(cls: type, prefix: str) -> Iterator[str]:
    """The dotted names of a dataclass's fields, those of its groups included."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield f"{prefix}{field.name}"
        for part in (hints[field.name], *typing.get_args(hints[field.name])):
            if dataclasses.is_dataclass(part):
                yield from fields_of(part, f"{prefix}{field.name}.")


def schema() -> set[str]:
    """Every field there is: of the job's dataclasses, of SFTConfig and of the shipped PEFT methods."""
    names = set(fields_of(Job, ""))
    names |= {f"data.{name}" for name in FORMAT_SETTINGS}
    names |= {f"training.{name}" for name in [*upstream_fields.fields_of(upstream_fields.SFT_CONFIG), "resume"]}
    for target in ("peft.LoraConfig", "peft.PromptTuningConfig"):
        names |= {f"peft.{name}" for name in upstream_fields.fields_of(target)}
    names |= {f"tracking.aim.{field.name}" for field in dataclasses.fields(AimTracker)}
    return names | {"peft", "tracking", "launcher", "training"}


def test_every_field_of_the_table_is_one() -> None:
    moved = [flag.field for flags in (TUNING, LAUNCH, TORCHRUN) for flag in flags.values() if flag.fate is Fate.moved]
    assert len(moved) > 60
    assert sorted(set(moved) - schema()) == []
    generate = {
        f"--{field.name}" for field in dataclasses.fields(parse_command_line(["generate", "--model", "x"]).options)
    }
    assert {flag.field for flag in INFERENCE.values() if flag.field} <= generate


def test_each_flag_has_a_field_or_a_reason() -> None:
    for flags in (TUNING, LAUNCH, TORCHRUN, INFERENCE, HARNESS):
        for name, flag in flags.items():
            assert bool(flag.field) == (flag.fate is Fate.moved), name
            assert flag.field or flag.why, name


def test_the_page_lists_every_flag_of_each_table_once() -> None:
    page = (ROOT / "docs/migration.md").read_text(encoding="utf-8")
    tables = {"tuning": TUNING, "launch": LAUNCH, "torchrun": TORCHRUN, "inference": INFERENCE, "harness": HARNESS}
    for name, flags in tables.items():
        table = page.partition(f"<!-- generated: early_{name} -->")[2].partition("<!-- end -->")[0]
        first_cells = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `--"))
        assert sorted(re.findall(r"`--(\w+)`", first_cells)) == sorted(flags)


def test_the_reasons_of_the_table_are_plain_english() -> None:
    reasons = {flag.why for flags in (TUNING, LAUNCH, TORCHRUN, INFERENCE, HARNESS) for flag in flags.values()}
    assert len(reasons) > 60
    assert [why for why in reasons if UNCLEAR.search(why)] == []


@pytest.mark.parametrize(
    "text",
    [
        *(early_commands.SINGLE_GPU, early_commands.FSDP, early_commands.LORA, early_commands.HARNESS),
        f"{BASIC} --packing True --peft_method lora --tracker aim; ls -l",
        "lm_eval --model hf --model_args pretrained=base,peft=tuned --tasks boolq --batch_size auto",
    ],
)
def test_the_notes_are_plain_english(text: str) -> None:
    assert [note for note in translated(text).notes if UNCLEAR.search(note.why)] == []


@pytest.fixture
def complaints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's variables, with eight rows that have both of its response templates."""
    rows = [f"### Text: message {n}\n\n### Response: yes\n\n### Label: {'no ' * (n % 2)}complaint" for n in range(8)]
    text = "".join(json.dumps({"output": row}) + "\n" for row in rows)
    (tmp_path / "twitter_complaints.json").write_text(text)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


def small(text: str, model: str = "package:tiny_llama") -> str:
    """One step, on a tiny model."""
    text = re.sub(r"(--num_train_epochs \d+)", r"\1 --max_steps 1", text)
    return text.replace("MODEL_PATH=llama-7b-hf", f"MODEL_PATH={model}")


@pytest.mark.slow
@pytest.mark.usefixtures("complaints")
def test_lora_and_inference_run(fmstune: Callable[..., Result], tmp_path: Path) -> None:
    result = fmstune("from-fms", "--run", small(early_commands.LORA))
    assert result.code == 0, result.err
    adapter = json.loads((tmp_path / "out" / "model" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"]) == (8, 16)
    (tmp_path / "source_texts.txt").write_text(early_commands.SOURCE_TEXTS)
    for text, count in ((early_commands.ONE_TEXT, 1), (early_commands.TEXT_FILE, 2)):
        few = text.replace("my_checkpoint", "out").replace("50", "2")
        asked = fmstune("from-fms", few.strip(), "--run")
        assert asked.code == 0, asked.err
        answers = json.loads((tmp_path / "result.json").read_text())
        assert len(answers) == count and all(one["input"] in one["output"] for one in answers)
        (tmp_path / "result.json").unlink()


@pytest.mark.slow
@pytest.mark.usefixtures("complaints")
def test_prompt_tuning_runs(fmstune: Callable[..., Result], tmp_path: Path) -> None:
    result = fmstune("from-fms", "--run", small(early_commands.PROMPT_TUNING))
    assert result.code == 0, result.err
    adapter = json.loads((tmp_path / "out" / "model" / "adapter_config.json").read_text())
    assert (adapter["peft_type"], adapter["num_virtual_tokens"]) == ("PROMPT_TUNING", 8)


@pytest.mark.slow
@pytest.mark.usefixtures("complaints")
def test_full_tuning_of_gpt_bigcode_runs(
    fmstune: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_PATH", "package:tiny_gpt_bigcode")
    result = fmstune("from-fms", "--run", small(early_commands.SINGLE_GPU))
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "out" / "model" / "config.json").read_text())["model_type"] == "gpt_bigcode"


@pytest.mark.soak
@pytest.mark.usefixtures("complaints")
@pytest.mark.parametrize("name", ["SINGLE_GPU", "FSDP", "TORCHRUN", "CONTAINER"])
def test_the_others_run_too(name: str, fmstune: Callable[..., Result], tmp_path: Path) -> None:
    """Those for several GPUs as a rehearsal: FSDP2 in two processes of the CPU, on a free port."""
    given = getattr(early_commands, name)
    if isinstance(given, dict):
        place = {"model_name_or_path": "package:tiny_llama", "training_data_path": "twitter_complaints.json"}
        own = {"output_dir": "out", "max_steps": 1, "tokenizer_name_or_path": "package:tiny_llama"}
        given = json.dumps(given | place | own)
    found = translated(small(given))
    own_words = [word for word in found.words if not word.startswith("launcher")]
    if any(word.startswith("launcher=") for word in found.words):
        own_words += ["launcher=fsdp", "launcher.device=cpu", "launcher.num_processes=2"]
    result = fmstune(*own_words)
    assert result.code == 0, result.err
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


def test_without_run_only_the_command_is_on_stdout(fmstune: Callable[..., Result]) -> None:
    result = fmstune("from-fms", early_commands.ONE_TEXT)
    assert result.code == 0
    assert result.out == (
        "fmstune generate \\\n"
        "  --model my_checkpoint \\\n"
        "  --text 'This is a text the model will run inference on' \\\n"
        "  --max_new_tokens 50 \\\n"
        "  --out_file result.json \\\n"
        "  --dtype float32\n"
    )
    assert result.err.startswith("kept     --model my_checkpoint")


def test_a_pickled_job_is_not_opened() -> None:
    with pytest.raises(UserError, match="pickle"):
        translate_old_commands([base64.b64encode(pickle.dumps({"output_dir": "x" * 20})).decode()], {}, {}.get)


def test_what_is_switched_off_needs_no_field() -> None:
    text = BASIC.replace("python", "accelerate launch --num_processes 1 --dynamo_backend no", 1)
    found = translated(f"{text} --use_ipex False --deepspeed None")
    assert [note.old for note in found.notes if note.became is Became.dropped] == [
        *("--use_ipex False", "--deepspeed None", "--dynamo_backend no", "--num_processes 1")
    ]


def test_a_job_file_may_hold_a_mapping_and_null() -> None:
    job = {
        "model_name_or_path": "m",
        "training_data_path": "a.json",
        "dataset_text_field": "t",
        "peft_method": None,
        "response_template": "A:",
        "fsdp": "full_shard auto_wrap",
        "accelerate_launch_args": {"num_processes": 4},
        "fsdp_config": {"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"], "state_dict_type": "FULL_STATE_DICT"},
    }
    found = words(json.dumps(job))
    assert {"peft=full", "launcher=fsdp1", "launcher.num_processes=4"} <= set(found)
    assert "launcher.transformer_layer_cls_to_wrap=[LlamaDecoderLayer]" in found
