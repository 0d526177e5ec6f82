"""What fmstune says to a job that cannot be composed or frozen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bad_inputs.cases import ROW, ROWS, Case, assert_answered, case, content, wrong_inputs

pytestmark = pytest.mark.sampled(20)

UNKNOWN_NAMES = [
    case("zzz=1", "zzz: unknown field; the job has name, seed, output_dir, compare_by, direction, model, …"),
    case("modle.path=x", "modle: unknown field; did you mean 'model'?"),
    case("data.trian=x", "data.trian: unknown field; did you mean 'train'?"),
    case("launcher.thread=2", "launcher.thread: unknown field; did you mean 'threads'?"),
    case("launcher.gpus=2", "launcher.gpus: unknown field; did you mean 'launcher.num_processes'?"),
    case(
        "launcher.zzz=2",
        "launcher.zzz: unknown field; its group has device, device_gib, device_tflops, price_per_hour, …",
    ),
    case("evaluation.max_row=1", "evaluation.max_row: unknown field; did you mean 'max_rows'?"),
    case(
        "training.learning_rat=1e-4",
        "training.learning_rat: unknown field of trl.SFTConfig; did you mean 'learning_rate'?",
    ),
    case(
        "+training.learning_rat=1",
        "training.learning_rat: unknown field of trl.SFTConfig; did you mean 'learning_rate'?",
    ),
    case(
        "--cfg job training.learning_rat=1",
        "training.learning_rat: unknown field of trl.SFTConfig; did you mean 'learning_rate'?",
    ),
    case("peft=lora peft.lora_alfa=8", "peft.lora_alfa: unknown field of peft.LoraConfig; did you mean 'lora_alpha'?"),
    case("peft.r=8", "peft.r: full tuning has no adapter and takes no fields; choose peft=lora"),
    case("data.format.text_fild=x", "data.format.text_fild: text has no such setting; did you mean 'text_field'?"),
    case(
        "model.special_tokens.pad_tokn=x",
        "model.special_tokens.pad_tokn: unknown; did you mean 'pad_token'?; the names are bos_token, eos_token, …",
    ),
]


SEVERAL_AT_ONCE = [
    case(
        "see=1 seed=x model.pth=x training.learning_rat=1 peft=lora peft.lora_alfa=8",
        "see: unknown field; did you mean 'seed'?",
        "seed must be a whole number, got 'x'",
        "model.pth: unknown field; did you mean 'path'?",
        "training.learning_rat: unknown field of trl.SFTConfig; did you mean 'learning_rate'?",
        "peft.lora_alfa: unknown field of peft.LoraConfig; did you mean 'lora_alpha'?",
    ),
    case(
        "seed=-1 peft=lora peft.r=0 data.max_length=1 training.num_train_epochs=0 training.learning_rate=0",
        "seed must be at least 0 and below 2**32, got -1",
        "peft.r must be at least 1, got 0",
        "data.max_length must be at least 2, got 1",
        "training.learning_rate must be above 0 and below 10, got 0",
        "training.num_train_epochs must be above 0 and below 2**31, got 0",
    ),
    case(
        "check peft=lora peft.target_modules=[q_prj] data=text data.train=rows.jsonl",
        "peft.target_modules: no module is named 'q_prj'; …",
        "rows.jsonl:1: broken JSON …",
        rows_jsonl="{x\n",
    ),
    case(
        "train peft=lora peft.target_modules=[q_prj] data=text data.train=rows.jsonl",
        "peft.target_modules: no module is named 'q_prj'; …",
        "rows.jsonl:1: broken JSON …",
        rows_jsonl="{x\n",
    ),
    case(
        f"{ROWS} data.eval=held.jsonl",
        "rows.jsonl:2: a row must be a JSON object, found the list …",
        "held.jsonl:1: broken JSON …",
        rows_jsonl=ROW + "[1]\n",
        held_jsonl="{x\n",
    ),
    case(
        "check model=causal_lm model.path=owner/name",
        "model.path: no folder is named owner/name, and it is neither in the hub's cache nor can …",
    ),
]


TYPES = [
    case("seed=null", "seed must be a whole number, got null"),
    case("check data=text hydra.output_subdir=''", "data.train must be given: …"),
    case("check data=text hydra.output_subdir=a/b", "data.train must be given: …"),
    case("check data.train=no.jsonl hydra.run.dir=x hydra.output_subdir=y", "data.train: no file no.jsonl"),
    case("hydra.verbose=3", "hydra.verbose must be true, false, the name of a logger or a list of names"),
    case(
        "check -m 'hydra.verbose={a: 1}'", "hydra.verbose must be true, false, the name of a logger or a list of names"
    ),
    case("check -m peft.r=8", "peft.r: full tuning has no adapter and takes no fields; choose peft=lora"),
    case("'training.packing=${..no_such}'", "training.packing: Interpolation key 'no_such' not found"),
    case("'zz=${..seed}'", "zz: holds a reference without a value (Error resolving key '..seed')"),
    case("data.train=null", "data.train must be given: a file, glob, folder or hub id, such as data.train=rows.jsonl"),
    case("seed=true", "seed must be a whole number, got True"),
    case("training.per_device_train_batch_size=2.5", "training.per_device_train_batch_size must be a whole number, …"),
    case("peft=lora peft.r=eight", "peft.r must be a whole number, got 'eight'"),
    case("training.num_train_epochs=three", "training.num_train_epochs must be a number, got 'three'"),
    case("training.weight_decay=nan", "training.weight_decay must be a number, got nan"),
    case(f"training.learning_rate=1{'0' * 400}", "training.learning_rate must be a number or auto, got 1000…"),
    case("objective.columns=[1,labels]", "objective.columns must be a list of text, got [1, 'labels']"),
    case(
        "launcher=slurm launcher.slurm.setup=[a,[b]]", "launcher.slurm.setup must be a list of text, got ['a', ['b']]"
    ),
    case(
        "'training.packing=${oc.env:NO_SUCH}'",
        "training.packing: holds a reference without a value (Environment variable 'NO_SUCH' not found)",
    ),
    case("'training.packing=${oc.env:}'", "training.packing: holds a reference that cannot be read; write it as …"),
    case(
        "'training.packing=${oc.decode:\"[\"}'",
        "training.packing: holds a reference that cannot be read; write it as …",
    ),
    case("training.learning_rate=", "training.learning_rate must be a number or auto, got ''"),
    case("training.packing=maybe", "training.packing must be true or false, got 'maybe'"),
    case("evaluation.enabled=perhaps", "evaluation.enabled must be true or false, got 'perhaps'"),
    case(
        "model.dtype=float8",
        "model.dtype must be one of auto, float32, bfloat16, float16; got 'float8'; did you mean …",
    ),
    case(
        "model.attention=flash",
        "model.attention must be one of auto, sdpa, eager, flash_attention_2, varlen; got 'flash'",
    ),
    case("data.over_length=cut", "data.over_length must be one of truncate, drop, error; got 'cut'"),
    case("launcher.device=gpu", "launcher.device must be one of auto, cpu, cuda, mps; got 'gpu'; …"),
    case(
        "training.lr_scheduler_type=cosin",
        "training.lr_scheduler_type must be one of linear, cosine, …; got 'cosin'; did you mean 'cosine'?",
    ),
    case("peft=lora peft.bias=some", "peft.bias must be one of none, all, lora_only; got 'some'"),
    case("training.log_level=abc", "training.log_level must be one of detail, debug, info, …, passive; got 'abc'"),
    case("training.log_level_replica=warnin", "training.log_level_replica must be one of …; did you mean 'warning'?"),
    case(
        "training.torch_compile_backend=inducto",
        "training.torch_compile_backend must be one of …; got 'inducto'; did you mean 'inductor'?",
    ),
    case("training.torch_compile_backend=neuron", "training.torch_compile_backend must be one of …; got 'neuron'…"),
    case("training.torch_compile_mode=abc", "training.torch_compile_mode must be one of default, …; got 'abc'"),
    case(
        "training.include_for_metrics=5", "training.include_for_metrics must be a list of some of inputs, loss, got 5"
    ),
    case(
        "training.include_for_metrics=[losses]",
        "training.include_for_metrics must be a list of some of inputs, loss, got ['losses']",
    ),
    case(
        "peft=lora peft.layers_to_transform=abc",
        "peft.layers_to_transform must be a layer's number or a list of them, got 'abc'",
    ),
    case(
        "peft=lora 'peft.rank_pattern={q_proj: abc}' peft.alpha_pattern=3",
        "peft.rank_pattern must be a mapping of module names to whole numbers above 0, got {'q_proj': 'abc'}",
        "peft.alpha_pattern must be a mapping of module names to numbers above 0, got 3",
    ),
    case("peft=lora peft.target_parameters=x", "peft.target_parameters must be a list of names, got 'x'"),
    case("peft=lora peft.modules_to_save=x", "peft.modules_to_save must be a list of names, got 'x'"),
    case(
        "peft=lora peft.trainable_token_indices=x",
        "peft.trainable_token_indices must be a list of token ids, or such lists by embedding, got 'x'",
    ),
    case(
        "model.special_tokens.pad_token='\"\"'",
        "model.special_tokens.pad_token is empty; give the token's text, or leave the field out",
    ),
    case(
        "data.format=fmstune.data.formats.text",
        "data.format must be a mapping of keys to values, got 'fmstune.data.formats.…",
    ),
    case("model.special_tokens.pad_token=3", "model.special_tokens.pad_token must be text, got 3"),
    case(
        "model.special_tokens.extra_special_tokens=x", "model.special_tokens.extra_special_tokens must be a list of …"
    ),
]


MISSING_VALUES = [
    case("data=text", "data.train must be given: a file, glob, folder or hub id, such as data.train=rows.jsonl"),
    case("model=causal_lm", "model.path must be given: a folder or hub id of a causal language model, such as …"),
    case("model=causal_lm data=text", "model.path must be given: …", "data.train must be given: …"),
    case("model.path=null", "model.path must be text, got null"),
]


OWNED = [
    case(
        "training.max_length=9 training.report_to=wandb training.output_dir=x training.seed=1 "
        "training.use_cpu=true training.fsdp=full_shard training.max_seq_length=9 "
        "training.model_name_or_path=x",
        "training.max_length: data.max_length sets it",
        "training.report_to: the tracking group says where metrics go, such as tracking=aim",
        "training.output_dir: the top-level output_dir sets it",
        "training.seed: the top-level seed sets it",
        "training.use_cpu: launcher.device=cpu sets it",
        "training.fsdp: the launcher group sets it",
        "training.max_seq_length: it is data.max_length now",
        "training.model_name_or_path: it is model.path now",
    ),
    case(
        "training.push_to_hub=true training.hub_model_id=me/first",
        "training.push_to_hub: share the model after the run: fmstune push RUN --repo USER/NAME",
        "training.hub_model_id: share the model after the run: fmstune push RUN --repo USER/NAME",
    ),
    case(
        "training.hub_token=x", "training.hub_token: secrets stay out of a job; set the environment variable HF_TOKEN"
    ),
    case("training.warmup_ratio=1.5", "training.warmup_ratio must be in [0, 1), got 1.5; set training.warmup_steps …"),
    case("training.warmup_ratio='\"1.5\"'", "training.warmup_ratio must be in [0, 1), got 1.5; …"),
    case("training.warmup_ratio=abc", "training.warmup_ratio must be a number, got 'abc'"),
    case("training.group_by_length=maybe", "training.group_by_length must be true or false, got 'maybe'"),
    case("training.evaluation_strategy=epochs", "training.evaluation_strategy must be one of no, steps, epoch; got …"),
]


RANGES = [
    case("training.learning_rate=-1e-4", "training.learning_rate must be above 0 and below 10, got -0.0001"),
    case("training.num_train_epochs=inf", "training.num_train_epochs must be above 0 and below 2**31, got inf"),
    case("training.logging_steps=inf", "training.logging_steps must be above 0 and finite, got inf"),
    case("training.save_steps=inf", "training.save_steps must be above 0 and finite, got inf"),
    case(
        "training.max_steps=0",
        "training.max_steps must be at least 1, or -1 to train for training.num_train_epochs, got 0",
    ),
    case("training.per_device_train_batch_size=0", "training.per_device_train_batch_size must be at least 1, got 0"),
    case("training.gradient_accumulation_steps=0", "training.gradient_accumulation_steps must be at least 1, got 0"),
    case("training.weight_decay=-0.1", "training.weight_decay must be at least 0, got -0.1"),
    case("training.logging_steps=0", "training.logging_steps must be above 0 and finite, got 0"),
    case("training.save_total_limit=0", "training.save_total_limit must be at least 1, got 0"),
    case("training.dataloader_num_workers=-1", "training.dataloader_num_workers must be from 0 to 1,024, got -1"),
    case("training.neftune_noise_alpha=-1", "training.neftune_noise_alpha must be at least 0, got -1"),
    case("training.adam_beta1=1.5", "training.optim=adamw_torch_fused or its … refused: Invalid beta parameter …"),
    case("training.optim_args=foo", "training.optim=adamw_torch_fused or its settings are refused: …"),
    case("training.lr_scheduler_kwargs={foo:1}", "training.lr_scheduler_type=cosine or … refused: …'foo'"),
    case("training.dataloader_prefetch_factor=2", "training: trl.SFTConfig refuses these fields: …prefetch_factor…"),
    case("peft=lora peft.lora_dropout=1.5", "peft.lora_dropout must be at least 0 and below 1, got 1.5"),
    case("peft=prompt_tuning peft.num_virtual_tokens=0", "peft.num_virtual_tokens must be at least 1, got 0"),
    case(
        "peft=prompt_tuning peft.num_virtual_tokens=600",
        "peft.num_virtual_tokens=600 leaves no room for a row in the 512 positions of the model; lower it",
    ),
    case("data.eval=null data.eval_fraction=1", "data.eval_fraction must be at least 0 and below 1, got 1"),
    case(
        "data.max_rows=0 launcher.threads=0 evaluation.batch_size=0 evaluation.max_new_tokens=0 evaluation.max_rows=0",
        "data.max_rows must be at least 1, got 0",
        "launcher.threads must be from 1 to 1,024, got 0",
        "evaluation.batch_size must be at least 1, got 0",
        "evaluation.max_new_tokens must be at least 1, got 0",
        "evaluation.max_rows must be at least 1, got 0",
    ),
    case("name=a/b", "name becomes part of a folder's name: use letters, digits and . _ + -, got 'a/b'"),
    case("name=''", "name becomes part of a folder's name: use letters, digits and . _ + -, got ''"),
    case("direction=up", "direction must be one of minimize, maximize; got 'up'"),
    case(
        "compare_by=tuned.exact_match evaluation=none",
        "compare_by: tuned.exact_match is measured on held-out rows, and this job measures none; set …",
    ),
    case(
        "compare_by=tuned.sets.a.exact_match", "compare_by: tuned.sets.a.exact_match is not a number of summary.json…"
    ),
    case("--resume nowhere", "--resume: nowhere is not a sweep's folder (no command.json); give the folder of a sweep"),
    case("check --resume nowhere", "--resume is a flag of fmstune train, generate"),
]

CASES = [*UNKNOWN_NAMES, *SEVERAL_AT_ONCE, *TYPES, *MISSING_VALUES, *OWNED, *RANGES]


@wrong_inputs(CASES)
def test_a_wrong_job_is_answered_by_one_message_and_leaves_nothing(
    wrong: Case, fmstune: Callable[..., Any], tmp_path: Path
) -> None:
    assert_answered(wrong, fmstune, tmp_path)


@pytest.mark.slow
def test_every_point_of_a_sweep_is_answered(fmstune: Callable[..., Any], tmp_path: Path) -> None:
    result = fmstune("-m", "seed=-1,-2")

    assert result.code == 2
    assert result.err.splitlines() == [
        "fmstune: error: seed must be at least 0 and below 2**32, got -1",
        "fmstune: error: seed must be at least 0 and below 2**32, got -2",
        "fmstune: 2 of 2 points failed",
    ]
    assert content(tmp_path) == []
