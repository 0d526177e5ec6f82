"""What fmstune says to wrong input: the command, the files that it finds, and the one message that comes back.

`…` in an expected message stands for words that are not fixed here. Several lines are several problems, reported
together. Every case ends with exit code 2, writes nothing to stdout, shows no traceback and leaves nothing behind.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import ROOT

TINY = ROOT / "src" / "fmstune" / "assets" / "tiny_llama"
ROW = '{"output": "question\\n### Response: answer"}\n'
ROWS = "data=text data.train=rows.jsonl"
LLAMA_TARGETS = "available are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"


class Case(NamedTuple):
    """One wrong command and the answer to it."""

    command: str
    says: tuple[str, ...]
    files: Mapping[str, str | bytes] = {}


def case(command: str, *says: str, **files: str | bytes) -> Case:
    """A case; a file is named by a keyword, with `__` for the slash and `_jsonl` for its suffix."""
    suffixes = r"_(jsonl|json|csv|txt|yaml|bin|parquet|arrow|safetensors)$"
    named = {re.sub(suffixes, r".\1", name).replace("__", "/"): content for name, content in files.items()}
    return Case(command, says, named)


UNKNOWN_NAMES = [
    case("zzz=1", "zzz: unknown field; the job has name, seed, output_dir, objective, direction, model, …"),
    case("modle.path=x", "modle: unknown field; did you mean 'model'?"),
    case("data.trian=x", "data.trian: unknown field; did you mean 'train'?"),
    case("launcher.thread=2", "launcher.thread: unknown field; did you mean 'threads'?"),
    case("launcher.gpus=2", "launcher.gpus: unknown field; its group has device, device_gib, threads, strategy, …"),
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
    case(
        "peft=lora peft.lora_alfa=8",
        "peft.lora_alfa: unknown field of peft.LoraConfig; did you mean 'lora_alpha'?",
    ),
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
        "training.num_train_epochs must be above 0 and finite, got 0",
        "training.learning_rate must be above 0 and below 10, got 0",
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
        "rows.jsonl:2: a row must be a JSON object, found …list",
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
    case("seed=true", "seed must be a whole number, got True"),
    case("training.per_device_train_batch_size=2.5", "training.per_device_train_batch_size must be a whole number, …"),
    case("peft=lora peft.r=eight", "peft.r must be a whole number, got 'eight'"),
    case("training.num_train_epochs=three", "training.num_train_epochs must be a number, got 'three'"),
    case("training.weight_decay=nan", "training.weight_decay must be a number, got nan"),
    case(f"training.learning_rate=1{'0' * 400}", "training.learning_rate must be a number, got 1000…"),
    case("training.learning_rate=", "training.learning_rate must be a number, got ''"),
    case("training.packing=maybe", "training.packing must be true or false, got 'maybe'"),
    case("evaluation.enabled=perhaps", "evaluation.enabled must be true or false, got 'perhaps'"),
    case(
        "model.dtype=float8",
        "model.dtype must be one of auto, float32, bfloat16, float16; got 'float8'; did you mean …",
    ),
    case("model.attention=flash", "model.attention must be one of auto, sdpa, eager, flash_attention_2; got 'flash'"),
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
        "training.include_for_metrics=5",
        "training.include_for_metrics must be a list of some of inputs, loss; got 5",
    ),
    case(
        "training.include_for_metrics=[losses]",
        "training.include_for_metrics must be a list of some of inputs, loss; got ['losses']",
    ),
    case(
        "peft=lora peft.layers_to_transform=abc",
        "peft.layers_to_transform must be a layer's number or a list of them, got 'abc'",
    ),
    case(
        "peft=lora 'peft.rank_pattern={q_proj: abc}' peft.alpha_pattern=3",
        "peft.rank_pattern must map module names to whole numbers above 0, got {'q_proj': 'abc'}",
        "peft.alpha_pattern must map module names to numbers above 0, got 3",
    ),
    case("peft=lora peft.target_parameters=x", "peft.target_parameters must be a list of names, got 'x'"),
    case("peft=lora peft.modules_to_save=x", "peft.modules_to_save must be a list of names, got 'x'"),
    case(
        "peft=lora peft.trainable_token_indices=x",
        "peft.trainable_token_indices must be a list of token ids, or such lists by embedding, got 'x'",
    ),
    case(
        "model.special_tokens.pad_token='\"\"'",
        "model.special_tokens.pad_token is empty text, which is no token; name one, or leave it out",
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

WORDS = [
    case(
        "chek",
        "unknown verb 'chek'; did you mean 'check'?; "
        "the verbs are train, reproduce, check, show-data, modules, generate, evaluate, merge, from-fms, report, "
        "compare, doctor",
    ),
    case("check train", "train: neither FIELD=VALUE nor GROUP=CHOICE, and a verb comes first (see fmstune --help)"),
    case("--dry-run", "unknown flag --dry-run (see fmstune --help)"),
    case("seed=1 --dry-run seed=2", "unknown flag --dry-run (see fmstune --help)"),
    case("name=a --cfg seed=2", "argument --cfg/-c: invalid choice: 'seed=2' (choose from 'job', …"),
    case(
        "hydra/sweeper=optuna -m evaluation=none,held_out",
        "objective must be given: the points of this search would be compared by different numbers",
    ),
    case("--trus x", "unknown flag --trus; did you mean '--trust'?"),
    case("check --rows 3", "--rows is a flag of fmstune show-data"),
    case("show-data --from job.yaml", "--from is a flag of fmstune train"),
    case("check --from job.yaml", "job.yaml: no such file; give the job.yaml of a run folder"),
    case("--sources", "--sources is a flag of fmstune check, and goes with --cfg job"),
    case("train --from job.yaml --sources", "--sources is a flag of fmstune check, and goes with --cfg job"),
    case("modules --sources", "--sources is a flag of fmstune check"),
    case("--cfg job --sources --package foo", "--package foo: the job has no such part"),
    case("--cfg job --sources seed=x", "seed must be a whole number, got 'x'"),
    case("show-data --rows x", "argument --rows: invalid int value: 'x' (see fmstune --help)"),
    case("show-data --rows -1", "--rows must be at least 0, got -1"),
    case("show-data --json nowhere/x.json", "--json: nowhere/x.json cannot be written (No such file or directory); …"),
    case("show-data --html nowhere/x.html", "--html: nowhere/x.html cannot be written (No such file or directory); …"),
    case("show-data --html .", "--html: . cannot be written (Is a directory); choose another file"),
    case("show-data --json x --html x", "--json and --html both name x; give each a file of its own"),
    case("check --html x.html", "--html is a flag of fmstune show-data"),
    case(
        "show-data --json nowhere/x --html nowhere/y",
        "--json: nowhere/x cannot be written (No such file or directory); choose another file",
        "--html: nowhere/y cannot be written (No such file or directory); choose another file",
    ),
    case("--trust", "argument --trust: expected one argument (see fmstune --help)"),
    case("--cfg jobb", "argument --cfg/-c: invalid choice: 'jobb' (choose from …) (see fmstune --help)"),
    case("--cfg job --package foo", "--package foo: the job has no such part"),
    case("-m --cfg job seed=1,2", "--cfg prints one job, and -m composes several; leave one of them out"),
    case("doctor peft=lora", "doctor takes no 'peft=lora'; its flags are --clear-cache, --help and --version"),
    case("model=llama2_7", "model=llama2_7: no such choice; did you mean 'llama2_7b'? (causal_lm, gpt_bigcode, …)"),
    case("peft=lorra", "peft=lorra: no such choice; did you mean 'lora'? (…)"),
    case(
        "model=llama2_7 peft=lorra peft.rr=3 data.trian=x training.learning_rat=1 seed=x",
        "model=llama2_7: no such choice; did you mean 'llama2_7b'? (…)",
        "peft=lorra: no such choice; did you mean 'lora'? (…)",
        "seed must be a whole number, got 'x'",
        "data.trian: unknown field; did you mean 'train'?",
        "training.learning_rat: unknown field of trl.SFTConfig; did you mean 'learning_rate'?",
    ),
    case("-m peft=lora,lorra,ful", "peft=lorra: no such choice; …", "peft=ful: no such choice; did you mean 'full'? …"),
    case("experiment=nosuch peft.r=x", "experiment=nosuch: no such choice (complaints_lora, …)"),
    case("peft=", "peft=: no such choice (dora, full, …)"),
    case("model=null", "model=null: choose model=NAME, or leave it out for the default"),
    case("~model", "~model: choose model=NAME, or leave it out for the default"),
    case("=3", "=3: name the field before the ="),
    case("seed=1,2", "seed=1,2: one run for each value needs -m; a list is written in brackets"),
    case("seed=[1", "seed=[1: cannot be read as FIELD=VALUE; a value with special characters needs quotes inside …"),
    case(
        r"'data.response_template=\n### Label:'",
        r"data.response_template=\n### Label:: cannot be read as FIELD=VALUE; a value with special characters needs "
        r"""quotes inside quotes, such as 'data.response_template="\n### Label:"'""",
    ),
    case("'seed=${nope}'", "seed: Interpolation key 'nope' not found"),
    case("--config-dir conf data=min", "data=min: no such choice; did you mean 'mine'? …", conf__data__mine_yaml=""),
    case("--config-dir conf data=mine", "broken YAML: …conf/data/mine.yaml…", conf__data__mine_yaml="format: [\n"),
    case(
        "--config-dir nowhere model=mine", "--config-dir: nowhere is no folder; give the folder that holds your groups"
    ),
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
        "training.hub_token=x",
        "training.hub_token: secrets stay out of a job; set the environment variable HF_TOKEN",
    ),
    case("training.warmup_ratio=1.5", "training.warmup_ratio must be in [0, 1), got 1.5; set training.warmup_steps …"),
    case("training.warmup_ratio='\"1.5\"'", "training.warmup_ratio must be in [0, 1), got 1.5; …"),
    case("training.warmup_ratio=abc", "training.warmup_ratio must be a number, got 'abc'"),
    case("training.group_by_length=maybe", "training.group_by_length must be true or false, got 'maybe'"),
    case("training.evaluation_strategy=epochs", "training.evaluation_strategy must be one of no, steps, epoch; got …"),
]

RANGES = [
    case("training.learning_rate=-1e-4", "training.learning_rate must be above 0 and below 10, got -0.0001"),
    case("training.num_train_epochs=inf", "training.num_train_epochs must be above 0 and finite, got inf"),
    case("training.max_steps=0", "training.max_steps must be at least 1, or -1 for whole epochs, got 0"),
    case("training.per_device_train_batch_size=0", "training.per_device_train_batch_size must be at least 1, got 0"),
    case("training.gradient_accumulation_steps=0", "training.gradient_accumulation_steps must be at least 1, got 0"),
    case("training.weight_decay=-0.1", "training.weight_decay must be at least 0, got -0.1"),
    case("training.logging_steps=0", "training.logging_steps must be above 0, got 0"),
    case("training.save_total_limit=0", "training.save_total_limit must be at least 1, got 0"),
    case("training.dataloader_num_workers=-1", "training.dataloader_num_workers must be at least 0, got -1"),
    case("training.neftune_noise_alpha=-1", "training.neftune_noise_alpha must be at least 0, got -1"),
    case("training.adam_beta1=1.5", "training.optim=adamw_torch or its settings are refused: Invalid beta parameter …"),
    case("training.optim_args=foo", "training.optim=adamw_torch or its settings are refused: …"),
    case("training.lr_scheduler_kwargs={foo:1}", "training.lr_scheduler_type=cosine or … refused: …'foo'"),
    case("training.dataloader_prefetch_factor=2", "training: trl.SFTConfig refuses these fields: …prefetch_factor…"),
    case("peft=lora peft.lora_dropout=1.5", "peft.lora_dropout must be at least 0 and below 1, got 1.5"),
    case("peft=prompt_tuning peft.num_virtual_tokens=0", "peft.num_virtual_tokens must be at least 1, got 0"),
    case(
        "peft=prompt_tuning peft.num_virtual_tokens=600",
        "peft.num_virtual_tokens=600 leaves no room for a row in the 512 positions of the model; lower it",
    ),
    case("data.eval=null data.eval_fraction=1", "data.eval_fraction must be at least 0 and below 1, got 1.0"),
    case(
        "data.max_rows=0 launcher.threads=0 evaluation.batch_size=0 evaluation.max_new_tokens=0 evaluation.max_rows=0",
        "data.max_rows must be at least 1, got 0",
        "launcher.threads must be at least 1, got 0",
        "evaluation.batch_size must be at least 1, got 0",
        "evaluation.max_new_tokens must be at least 1, got 0",
        "evaluation.max_rows must be at least 1, got 0",
    ),
    case("name=a/b", "name becomes part of a folder's name: use letters, digits and . _ + -, got 'a/b'"),
    case("name=''", "name becomes part of a folder's name: use letters, digits and . _ + -, got ''"),
    case("direction=up", "direction must be one of minimize, maximize; got 'up'"),
    case(
        "objective=tuned.exact_match evaluation=none",
        "objective: tuned.exact_match is measured on held-out rows, and this job measures none; set …",
    ),
    case("objective=tuned.sets.a.exact_match", "objective: tuned.sets.a.exact_match is no number of summary.json…"),
    case("--resume nowhere", "--resume: nowhere is no sweep's folder (no command.json); give the folder of a sweep"),
    case("check --resume nowhere", "--resume is a flag of fmstune train"),
]

DATA_FILES = [
    case("data=text data.train=nowhere.jsonl", "data.train: no file nowhere.jsonl"),
    case("data=text data.train=row.jsonl", "data.train: no file row.jsonl; did you mean 'rows.jsonl'?", rows_jsonl=ROW),
    case("data=text data.train=a/rows.jsonl", "data.train: no file a/rows.jsonl (there is no folder a)"),
    case("data=text data.train=[a.jsonl,b.jsonl]", "data.train: no file a.jsonl", "data.train: no file b.jsonl"),
    case("data=text data.train=[]", "data.train is an empty list; name a file, glob, folder or hub id"),
    case("data=text data.train=3", "data.train must name a file, glob, folder or hub id, found 3"),
    case("data=text 'data.train=parts/*.jsonl'", "data.train: no file matches parts/*.jsonl"),
    case("data=text data.train=a", "data.train: the folder a holds no data file (.json .jsonl …)", a__readme_txt="x"),
    case("data=text data.train=owner/name", "data.train: no path owner/name here, and the hub does not give it (…"),
    case(
        "data.train=package:complaints/trian.jsonl",
        "data.train: package:complaints/trian.jsonl: no such file ships with fmstune; did you mean 'complaints/train…",
    ),
    case(f"{ROWS} data.eval=held.jsonl", "data.eval: no file held.jsonl…", rows_jsonl=ROW),
    case(ROWS, "data.train: rows.jsonl holds no rows", rows_jsonl=""),
    case(ROWS, "rows.jsonl:2: broken JSON (… at column 1…); each line is one row", rows_jsonl=ROW + '{"output": "x\n'),
    case(ROWS, "rows.jsonl:1: not UTF-8 (invalid start byte at byte 12); …", rows_jsonl=b'{"output": "\xff"}\n'),
    case(
        "data=text data.train=rows.json",
        "rows.json, row 1: a row must be a JSON object, found …int",
        "rows.json, row 2: a row must be a JSON object, found …str",
        rows_json='[1, "x"]',
    ),
    case("data=text data.train=rows.json", "rows.json:1: broken JSON (…)", rows_json='[{"output": "x"},'),
    case(
        "data=text data.text_field=a data.response_template=null data.train=rows.csv",
        "rows.csv, row 2 (line 3): 3 cells for 2 columns; quote commas",
        rows_csv="a,b\nx,y\nx,y,z\n",
    ),
    case("data=text data.train=rows.csv", "rows.csv:1: must name the columns, each once, …", rows_csv="a,a\n1,2\n"),
    case(
        "data=text data.train=rows.txt", "rows.txt: neither JSON, CSV (named .csv), Parquet nor Arrow; …", rows_txt="x"
    ),
    case("data=text data.train=rows.parquet", "rows.parquet: broken after row 0 (…)", rows_parquet=b"PAR1xxx"),
    case("data=text data.train=rows.arrow", "rows.arrow: broken after row 0 (…)", rows_arrow=b"ARROW1xxxx"),
]

ROW_CONTENTS = [
    case(
        ROWS,
        "rows.jsonl, row 1: no column 'output'; did you mean 'otput'?; its columns are 'otput'",
        rows_jsonl='{"otput": "x"}\n',
    ),
    case(
        "data=alpaca data.train=rows.jsonl",
        "rows.jsonl, row 1: no column 'instruction'; did you mean 'instructions'?; its columns are …",
        rows_jsonl='{"instructions": "x", "output": "y"}\n',
    ),
    case(
        ROWS,
        "rows.jsonl, row 1: column 'output' must hold a string, found the int 3; write it as text",
        "rows.jsonl, row 2: column 'output' must hold a string, found null; write it as text",
        rows_jsonl='{"output": 3}\n{"output": null}\n',
    ),
    case(
        f"{ROWS} data.response_template=Nope:",
        "rows.jsonl, row 1: column 'output' does not contain the response template 'Nope:'; mend it, set …",
        rows_jsonl=ROW,
    ),
    case(
        ROWS,
        r"rows.jsonl, rows 2, 4: column 'output' does not contain the response template '\n### Response:'; mend it, "
        "set data.response_template or data.untrainable=drop",
        rows_jsonl=ROW + '{"output":"x"}\n' + ROW + '{"output":"y"}\n',
    ),
    case(
        ROWS,
        "rows.jsonl, row 2: the answer is empty; mend it, or set data.untrainable=drop",
        rows_jsonl=ROW + '{"output": "a\\n### Response: "}\n',
    ),
    case(
        f"{ROWS} data.max_length=5",
        "rows.jsonl, row 1: data.max_length=5 leaves no token of the answer; raise it, or set data.untrainable=drop",
        rows_jsonl=ROW,
    ),
    case(
        f"{ROWS} data.max_length=5 data.over_length=error",
        "rows.jsonl, row 1: more than data.max_length=5 tokens; raise it, or set data.over_length to truncate or drop",
        rows_jsonl=ROW,
    ),
    case(
        f"{ROWS} data.max_length=5 data.over_length=drop",
        "data.train: no row is left in the train split…",
        rows_jsonl=ROW,
    ),
    case(
        f"{ROWS} data.max_length=1000",
        "the longest row takes 6… tokens, and the model has 512 positions; set data.max_length=512",
        rows_jsonl='{"output": "' + "a b " * 300 + '\\n### Response: yes"}\n',
    ),
    case(
        f"{ROWS} data.eval=held.jsonl data.max_length=1000",
        "data.eval: the longest held-out row takes 6… tokens, and the model has 512 positions; set data.max_length=512",
        rows_jsonl=ROW,
        held_jsonl='{"output": "' + "a b " * 300 + '\\n### Response: yes"}\n',
    ),
    case(
        f"{ROWS} data.eval=held.jsonl data.max_length=512 peft=prompt_tuning peft.num_virtual_tokens=8",
        "data.eval: the longest held-out row takes … tokens beside 8 virtual tokens, and the model has 512 positions; "
        "set data.max_length=504",
        rows_jsonl=ROW,
        held_jsonl='{"output": "' + "a b " * 247 + '\\n### Response: y"}\n',
    ),
    case(
        f"{ROWS} data.eval=held.jsonl data.max_length=512",
        "evaluation.max_new_tokens: the longest held-out prompt takes … tokens and its answer up to 64, and the model "
        "has 512 positions; set evaluation.max_new_tokens=…",
        rows_jsonl=ROW,
        held_jsonl='{"output": "' + "a b " * 240 + '\\n### Response: yes"}\n'
        '{"output": "a\\n### Response:' + " a b" * 60 + '"}\n',
    ),
    case(f"{ROWS} data.text_field=null", "data.text_field must name the column that holds the text", rows_jsonl=ROW),
    case(f"{ROWS} data.eval_fraction=0.1", "data.eval_fraction=0.1 holds 0 of 1 rows out, …", rows_jsonl=ROW),
]


def tiny_llama(**changes: Any) -> dict[str, str | bytes]:
    """The shipped model as a folder `m`, with values of its config.json changed or (None) taken out."""
    config = json.loads((TINY / "config.json").read_text()) | changes
    files: dict[str, str | bytes] = {f"m/{path.name}": path.read_bytes() for path in TINY.iterdir()}
    return files | {"m/config.json": json.dumps({key: value for key, value in config.items() if value is not None})}


def model_case(says: str, files: Mapping[str, str | bytes]) -> Case:
    """A model in the folder `m` that cannot be tuned."""
    return Case("model=causal_lm model.path=m", (says,), files)


def without(files: Mapping[str, str | bytes], *names: str) -> dict[str, str | bytes]:
    """The files but these."""
    return {name: content for name, content in files.items() if name not in names}


MODELS = [
    case("model=causal_lm model.path=./nowhere", "model.path: no folder nowhere, and './nowhere' is not a hub id …"),
    case("model=causal_lm model.path=/no/where", "model.path: no folder /no/where, and '/no/where' is not a hub id …"),
    case("model.path=package:tiny_lama", "model.path: package:tiny_lama: no such file …; did you mean 'tiny_llama'?"),
    case(
        "model=causal_lm model.path=rows.jsonl",
        "model.path: rows.jsonl is a file; give the folder that holds it",
        rows_jsonl=ROW,
    ),
    case(
        "model=causal_lm model.path=owner/name",
        "model.path: no folder is named owner/name, and it is neither in the hub's cache nor can the hub be reached; "
        "give a folder, …",
    ),
    case("model=llama2_7b", "model.path: the tokenizer meta-llama/Llama-2-7b-hf is not in the cache and the hub …"),
    model_case("model.path: m has no config.json; give the folder that save_pretrained wrote", {"m/x": ""}),
    model_case(
        "model.path: m holds no *.safetensors (found pytorch_model.bin); fmstune reads nothing else; save it again …",
        without(tiny_llama(), "m/model.safetensors") | {"m/pytorch_model.bin": b"x"},
    ),
    model_case(
        "model.path: m holds no *.safetensors (found no weights); …",
        without(tiny_llama(), "m/model.safetensors"),
    ),
    model_case(
        "model.path: m has the model_type 'lama', unknown to this transformers; did you mean 'llama'?",
        tiny_llama(model_type="lama"),
    ),
    model_case("model.path: the config.json of m names no model_type; add …", tiny_llama(model_type=None)),
    model_case(
        "model.path: m needs code of its own (modeling_mine.Mine), and fmstune runs none from a model; take …",
        tiny_llama(model_type="mine", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"}),
    ),
    model_case(
        "model.path: m holds a BertForMaskedLM, but tuning needs a BertLMHeadModel, a causal language model",
        tiny_llama(model_type="bert", architectures=["BertForMaskedLM"]),
    ),
    model_case("model.path: m/config.json is not JSON: …", tiny_llama() | {"m/config.json": "{x"}),
    model_case(
        "model.tokenizer: the tokenizer has … ids and the model 500 embeddings; take the model's own tokenizer, and …",
        tiny_llama(vocab_size=500, pad_token_id=None),
    ),
    model_case("model.path: the tokenizer m cannot be loaded: …", tiny_llama() | {"m/tokenizer.json": "{x"}),
    case("model.tokenizer=./nowhere", "model.tokenizer: no folder nowhere, and './nowhere' is not a hub id …"),
    case("model.tokenizer=m", "model.tokenizer: m has no tokenizer_config.json; give the folder …", m__readme_txt="x"),
    case(
        "model.tokenizer=nowhere",
        "model.tokenizer: the tokenizer nowhere is not in the cache and the hub …; did you mean 'nowhere.json'?",
        nowhere_json="{}",
    ),
    case("model.architecture={hidden_size:128}", "model.architecture needs model_type, such as llama"),
    case(
        "model.architecture={model_type:lama}",
        "model.architecture.model_type: transformers knows no 'lama'; did you mean 'llama'?",
    ),
    case(
        "model.architecture={model_type:llama,hidden_sise:64}",
        "model.architecture.hidden_sise: llama has no such value; did you mean 'hidden_size'?",
    ),
    case(
        "model.architecture={model_type:llama,hidden_size:64}",
        "model.architecture.hidden_size is 64, but package:tiny_llama has …; correct it",
    ),
]
FMS = [
    case("model.backend=fsm", "model.backend must be one of transformers, fms; got 'fsm'; did you mean 'fms'?"),
    case(
        "model.backend=fms model.attention=eager",
        "model.attention=eager: ibm-fms computes with torch's SDPA; set auto, or set model.backend=transformers",
    ),
    case(
        "check model.backend=fms peft=lora launcher.device=cuda 'model.quantization={load_in_4bit: true}'",
        "model.quantization: bitsandbytes on the blocks of ibm-fms is not tried; set model.backend=transformers",
    ),
    case(
        "model.backend=fms peft=lora peft.target_modules=[attn.in_proj.qkv_fused,dense]",
        "peft.target_modules: 'attn.in_proj.qkv_fused' is ibm-fms' own name; …: q_proj, k_proj, v_proj in Llama, …",
        "peft.target_modules: 'dense' is ibm-fms' own name; …: o_proj in Llama, attn.c_proj in GPTBigCode",
    ),
    Case(
        "model=causal_lm model.path=m model.backend=fms",
        ("model.backend=fms takes llama and gpt_bigcode, and this model is mistral; set model.backend=transformers",),
        tiny_llama(model_type="mistral", architectures=["MistralForCausalLM"]),
    ),
    Case(
        "model=causal_lm model.path=m model.backend=fms",
        ("model.backend=fms: ibm-fms has no llama with hidden_act='gelu_new', only …; set model.backend=transformers",),
        tiny_llama(hidden_act="gelu_new"),
    ),
]
FOUR_BITS = "'model.quantization={load_in_4bit: true}'"
ON_A_GPU = "check peft=lora launcher.device=cuda"
QUANTIZATION = [
    case("peft=lora model.quantization=4bit", "model.quantization is a group of fields, got '4bit'; set them as …"),
    case(
        "peft=lora 'model.quantization={load_in_4bits: true}'",
        "model.quantization.load_in_4bits: unknown field; did you mean 'load_in_4bit'?",
    ),
    case(
        "peft=lora 'model.quantization={load_in_4bit: true, bnb_4bit_quant_type: nf5}'",
        "model.quantization.bnb_4bit_quant_type must be one of nf4, fp4; got 'nf5'; did you mean 'nf4'?",
    ),
    case(
        f"check launcher.device=cuda {FOUR_BITS}",
        "model.quantization: quantised weights cannot be trained; choose an adapter (peft=lora), or null",
    ),
    case(
        f"{ON_A_GPU} 'model.quantization={{load_in_4bit: true, load_in_8bit: true}}'",
        "model.quantization: load_in_4bit and load_in_8bit are both set; set one of them to true",
    ),
    case(
        f"{ON_A_GPU} 'model.quantization={{bnb_4bit_quant_type: fp4}}'",
        "model.quantization: load_in_4bit and load_in_8bit are both false; set one of them to true",
    ),
    case(
        f"{ON_A_GPU} 'model.quantization={{load_in_8bit: true, llm_int8_threshold: 0}}'",
        "model.quantization.llm_int8_threshold must be above 0, got 0",
    ),
    case(
        f"peft=lora launcher.device=cpu {FOUR_BITS}",
        "model.quantization needs a CUDA device, and launcher.device=cpu; set it to null",
    ),
    case(
        f"{ON_A_GPU} peft.init_lora_weights=pissa evaluation.base=false {FOUR_BITS}",
        "peft.init_lora_weights=pissa changes the base weights, and those of model.quantization stay as they are; …",
    ),
    case(
        "check peft=dora launcher.device=cuda 'model.quantization={load_in_8bit: true}'",
        "peft.use_dora does not work on an 8-bit base; set model.quantization.load_in_4bit instead",
    ),
]

SAVED_PROMPT = '{"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 3}'

ADAPTERS = [
    case(
        "peft=lora peft.target_modules=[q_prj]",
        f"peft.target_modules: no module is named 'q_prj'; did you mean 'q_proj'?; {LLAMA_TARGETS}",
    ),
    case(
        "peft=lora peft.target_modules=[q_proj,v_prj]",
        f"peft.target_modules: no module is named 'v_prj'; did you mean 'v_proj'?; {LLAMA_TARGETS}",
    ),
    case(
        "peft=lora peft.target_modules=[lm_head]", "peft.target_modules: 'lm_head' matches the output layer, … leave …"
    ),
    case("peft=lora peft.target_modules=[mlp]", "peft.target_modules: 'mlp' matches LlamaMLP, without a weight …"),
    case("peft=lora peft.target_modules=[]", "peft.target_modules is empty, so nothing would be trained; give names …"),
    case("peft=lora peft.target_modules=q_proj", f"peft.target_modules: 'q_proj' matches no module …; {LLAMA_TARGETS}"),
    case("peft=lora peft.target_modules='\"(\"'", "peft.target_modules: '(' is no regular expression: …"),
    case(
        "peft=lora peft.target_modules=3", "peft.target_modules must be a list of names, one name or all-linear, got 3"
    ),
    case("peft=lora peft.inference_mode=true", "peft.inference_mode=true would leave nothing to train; leave it out"),
    case(
        "peft=lora peft.target_parameters=[nosuch]",
        "peft.target_parameters: no parameter is named 'nosuch'; the names end like q_proj.weight",
    ),
    case(
        "peft=lora 'peft.rank_pattern={nosuch: 4}' 'peft.alpha_pattern={k_proj: 4}'",
        "peft.rank_pattern: 'nosuch' matches no module that is adapted; see peft.target_modules",
        "peft.alpha_pattern: 'k_proj' matches no module that is adapted; see peft.target_modules",
    ),
    case(
        "peft=lora 'peft.rank_pattern={*_proj: 4}'",
        "peft: LoraConfig refuses these fields: nothing to repeat …",
    ),
    case("peft=lora peft.layers_to_transform=[99]", "peft: LoraConfig refuses these fields: Target modules … not …"),
    case("peft=lora peft.exclude_modules=3", "peft: LoraConfig refuses these fields: …not iterable"),
    case(
        "peft=lora 'peft.megatron_config={a: 1}'", "peft: LoraConfig refuses these fields: No module named 'megatron'"
    ),
    case(
        "peft=lora peft.trainable_token_indices=[1,99999]",
        "peft.trainable_token_indices: there is no token 99999; the ids end at …",
    ),
    case(
        "peft=prompt_tuning peft.token_dim=7 peft.num_layers=7",
        "peft.token_dim is 7, and the model has 96; leave it out",
        "peft.num_layers is 7, and the model has …; leave it out",
    ),
    case(
        "peft=prompt_tuning peft.num_transformer_submodules=2",
        "peft.num_transformer_submodules is 2, and the model has 1; leave it out",
    ),
    case(
        "peft=prompt_tuning peft.num_attention_heads=7",
        "peft.num_attention_heads is 7, and the model has …; leave it out",
    ),
    case(
        "peft=lora peft.init_lora_weights=foo",
        "peft.init_lora_weights must be true, false or one of gaussian, orthogonal, …; got 'foo'",
    ),
    case(
        "peft=lora peft.init_lora_weights=loftq",
        "peft.init_lora_weights=loftq wants a base that PEFT quantises itself, from all of its weights; leave it out",
    ),
    case(
        "peft=lora peft.init_lora_weights=eva",
        "peft.init_lora_weights=eva needs a pass over the data before training, which fmstune does not make; …",
    ),
    case(
        "peft=lora peft.init_lora_weights=pissa_niter_4",
        "peft.init_lora_weights=pissa_niter_4 changes the base weights, so …; set evaluation.base=false",
    ),
    case("peft=lora peft.modules_to_save=[foo]", "peft.modules_to_save: no module is named 'foo'"),
    case("peft=lora peft.task_type=SEQ_CLS", "peft.task_type is CAUSAL_LM here, got 'SEQ_CLS'; leave it out"),
    case(
        "peft=prompt_tuning peft.prompt_tuning_init=TEXT", "peft.prompt_tuning_init=TEXT needs …init_text, the words …"
    ),
    case("peft=prompt_tuning peft.prompt_tuning_init_text=x", "peft.prompt_tuning_init_text is used only with …=TEXT"),
    case("peft=lora peft._target_=peft.LoRaConfig", "peft._target_: the installed peft has no … class 'LoRaConfig'"),
    case("peft=lora peft._target_=os.system", "peft._target_ must be a PEFT configuration such as peft.LoraConfig, …"),
    case(
        "model.adapter=there", "model.adapter goes on training an adapter, and peft=full has none; choose its method …"
    ),
    case("peft=lora model.adapter=./there", "model.adapter: no folder there, and './there' is not a hub id …"),
    case("peft=lora model.adapter=there", "model.adapter: there cannot be read as an adapter (…); give a folder …"),
    case("peft=lora model.adapter=a", "model.adapter: a has no adapter_config.json; give the folder …", a__x_txt="x"),
    case(
        "peft=lora model.adapter=a",
        "model.adapter: a holds no *.safetensors (found adapter_model.bin); …",
        a__adapter_config_json="{}",
        a__adapter_model_bin="x",
    ),
    case(
        "peft=lora model.adapter=a",
        "model.adapter: a cannot be read as an adapter (…); give a folder …",
        a__adapter_config_json="{x",
        a__adapter_model_safetensors="x",
    ),
    case(
        "peft=lora model.adapter=a",
        "model.adapter: a is of no method (no peft_type), and the peft group chose LORA; choose its method",
        a__adapter_config_json="{}",
        a__adapter_model_safetensors="x",
    ),
    case(
        "peft=lora model.adapter=a",
        "model.adapter: a is PROMPT_TUNING, and the peft group chose LORA; choose its method",
        a__adapter_config_json=SAVED_PROMPT,
        a__adapter_model_safetensors="x",
    ),
    case(
        "peft=prompt_tuning model.adapter=a",
        "model.adapter: PEFT goes on with no saved virtual tokens (PromptTuning); leave it out and train anew",
        a__adapter_config_json=SAVED_PROMPT,
        a__adapter_model_safetensors="x",
    ),
]

FORMATS = [
    case(
        "data.format._target_=mine.rows.format",
        "data.format._target_: 'mine.rows.format' is not in an allowed package (fmstune.data.formats); "
        "if you trust it, add --trust mine",
    ),
    case("--trust mine data.format._target_=mine.rows.format", "data.format._target_: cannot import mine.rows (…)"),
    case("--trust os data.format._target_=os.sep", "data.format._target_: os has no function 'sep'"),
    case(
        "data.format._target_=fmstune.data.formats.txt",
        "data.format._target_: … no function 'txt'; did you mean 'text'?",
    ),
    case(
        "data.format._target_=text",
        "data.format._target_ must name a function such as fmstune.data.formats.text, got 'text'",
    ),
    case(
        "data.format._target_=fmstune.data.formats.labelled_text",
        "data.format.response_template: labelled_text has no such setting",
        "data.format.label_field is missing; labelled_text needs it",
    ),
    case(
        "data=twitter_complaints data.train=rows.jsonl data.format.label_field=3",
        "data.format.label_field must be a string, found the int 3",
        rows_jsonl=ROW,
    ),
    case(
        "data=alpaca data.train=rows.jsonl 'data.response_template=x:' data.text_field=nosuch",
        "data.text_field is not used by alpaca; leave it out",
        "data.response_template is not used by alpaca; leave it out",
        rows_jsonl=ROW,
    ),
    case(
        "data=twitter_complaints data.train=rows.jsonl 'data.response_template=x:'",
        "data.response_template is not used by labelled_text; leave it out",
        rows_jsonl=ROW,
    ),
    case(
        "data.format.text_field=other",
        "data.text_field is 'output' and data.format.text_field is 'other'; change both",
    ),
]

TOGETHER = [
    case("peft=prompt_tuning training.packing=true", "training.packing mixes documents up with virtual tokens …"),
    case("peft=p_tuning training.packing=true", "training.packing mixes documents up with … (PromptEncoder); set …"),
    case("peft=prefix_tuning training.packing=true", "training.packing mixes documents up with … (PrefixTuning); …"),
    case(
        "peft=prefix_tuning training.activation_checkpointing=true",
        "training.activation_checkpointing drops the keys and values that PrefixTuning learns; set it to false",
    ),
    case(
        "peft=p_tuning training.eval_strategy=epoch training.load_best_model_at_end=true",
        "training.load_best_model_at_end: a checkpoint of PromptEncoder holds the virtual tokens without the network …",
    ),
    case(
        "peft=prefix_tuning peft.prefix_projection=true peft.encoder_hidden_size=8 training.eval_strategy=epoch "
        "training.load_best_model_at_end=true",
        "training.load_best_model_at_end: a checkpoint of PrefixTuning holds the virtual tokens without the network …",
    ),
    case("peft=lora_plus peft.loraplus_lr_ratio=0.5", "peft.loraplus_lr_ratio is the rate of B by that of A, at …"),
    case(
        "peft=ia3 peft.loraplus_lr_ratio=2",
        "peft.loraplus_lr_ratio sets apart the two matrices of peft.LoraConfig, and peft.IA3Config has none; …",
    ),
    case(
        "peft=lora_plus training.optim=galore_adamw training.optim_target_modules=[q_proj]",
        "training.optim=galore_adamw needs the package galore-torch; …",
        "training.optim=galore_adamw groups the parameters itself, and so does peft.loraplus_lr_ratio; choose one",
    ),
    case("peft=ia3 peft.feedforward_modules=[down_prj]", "peft.feedforward_modules: no module is named 'down_prj'; …"),
    case("peft=prompt_tuning training.padding_free=true", "training.padding_free mixes documents up …; set …=false"),
    case(
        "launcher.device=cpu model.attention=flash_attention_2",
        "model.attention=flash_attention_2 needs a CUDA device, and launcher.device=cpu",
    ),
    case(
        "launcher.device=cpu training.fp16=true", "training.fp16 needs an accelerator, and launcher.device=cpu; set …"
    ),
    case("launcher.device=cpu training.activation_offloading=true", "training.activation_offloading …"),
    case("training.fp16=true training.bf16=true", "training.bf16 and training.fp16 are both true; set one of them, …"),
    case("model.dtype=float16", "model.dtype is float16, with which full tuning fails: …; set model.dtype to auto, …"),
    case("launcher.device=mps", "launcher.device=mps is not available here (found …)"),
    case("launcher.num_processes=2", "launcher.num_processes=2 needs a launcher of several processes; choose …"),
    case("launcher=ddp launcher.device=cpu", "launcher.num_processes must be given where there is no GPU, such as …"),
    case(
        "launcher=fsdp launcher.device=cpu launcher.num_processes=3 launcher.num_machines=2",
        "launcher.num_processes=3 counts the processes of all machines, and cannot be shared out evenly …",
        "output_dir must be given with launcher.num_machines above 1, in a folder that all machines share",
        "launcher.main_process_ip must be given with several machines: the address of machine 0",
    ),
    case(
        "launcher=fsdp1 launcher.device=cpu launcher.num_processes=2",
        "launcher.device=cpu: only FSDP2 can be rehearsed on the CPU; choose launcher=fsdp",
    ),
    case(
        "launcher=slurm launcher.slurm.time=3600 launcher.slurm.gpus_per_node=all launcher.slurm.signal=TERM "
        '\'launcher.slurm.partition="a b"\' \'launcher.slurm.sbatch=["--nodes=3","-x"]\' \'launcher.slurm.setup=[""]\' '
        "launcher.machine_rank=1 training.save_only_model=true",
        "launcher.num_processes must be given where launcher.slurm.gpus_per_node asks for no GPU",
        "launcher.machine_rank: Slurm numbers the nodes, and they meet at the first; leave it out",
        "launcher.slurm.partition must be one word without quotes, got 'a b'",
        'launcher.slurm.time must be like "4:00:00" or "1-12" (days-hours), in quotes in a YAML file, got \'3600\'',
        "launcher.slurm.gpus_per_node must be a number or TYPE:NUMBER, got 'all'",
        "launcher.slurm.signal must be USR1 or USR2 and how many seconds before the time limit, …, got 'TERM'",
        "launcher.slurm.sbatch: --nodes: set launcher.num_machines",
        "launcher.slurm.sbatch must hold options such as --exclusive or --mail-type=END, got '-x'",
        "launcher.slurm.setup must hold lines of shell, one text for each, got ''",
        "training.save_only_model leaves out what a requeued job goes on from; set it to false, or …",
    ),
    case(
        "launcher.slurm.gpus_per_node=2 launcher.slurm.partion=gpu",
        "launcher.slurm.partion: unknown field; did you mean 'partition'?",
    ),
    case(
        "launcher.slurm.gpus_per_node=2",
        "launcher.slurm.gpus_per_node: launcher.strategy=single uses one GPU; choose fsdp or ddp, or ask for 1",
    ),
    case(
        "hydra/launcher=submitit_slurm seed=1",
        "hydra/launcher=submitit_slurm runs the points of a sweep; add -m, or choose launcher=slurm for one job",
    ),
    case("-m hydra/launcher=submitit seed=1,2", "hydra/launcher=submitit: …"),
    case("launcher.config_file=no.yaml", "launcher.config_file: no.yaml cannot be read (No such file …); give an …"),
    case(
        "launcher=ddp launcher.config_file=a.yaml",
        "launcher.config_file: a.yaml is for launcher=fsdp; choose it, or another file",
        a_yaml="distributed_type: FSDP\n",
    ),
    case(
        f"{ROWS} training.eval_strategy=epoch",
        "training.eval_strategy=epoch needs held-out rows; set …",
        rows_jsonl=ROW,
    ),
    case("data.eval_fraction=0.5", "data.eval and data.eval_fraction both say what is held out; set one of them"),
    case(
        "training.load_best_model_at_end=true training.eval_strategy=no",
        "training.load_best_model_at_end needs training.eval_strategy=epoch …",
    ),
    case(
        "training.load_best_model_at_end=true training.eval_strategy=steps",
        "training.load_best_model_at_end needs save_strategy and eval_strategy to agree, got epoch and steps",
    ),
    case(
        "training.save_strategy=best training.eval_strategy=steps",
        "training.save_strategy=best needs training.metric_for_best_model, such as loss",
    ),
    case(
        "training.metric_for_best_model=entropy training.eval_strategy=epoch",
        "training.metric_for_best_model=entropy needs training.greater_is_better: true, or false for the least",
    ),
    case(
        "training.metric_for_best_model=macro_f1 training.eval_strategy=epoch",
        "training.metric_for_best_model=macro_f1 is measured on generated answers; set evaluation.sample",
    ),
    case(
        f"{ROWS} data.eval=held.jsonl objective=tuned.macro_f1",
        "objective=tuned.macro_f1 needs held-out rows whose answers are labels, up to 50 different ones; most of …",
        rows_jsonl=ROW,
        held_jsonl=ROW.replace("question", "another"),
    ),
    case(
        "training.eval_on_start=true training.eval_strategy=no",
        "training.eval_on_start=true needs training.eval_strategy=epoch or steps; …",
    ),
    case(
        "training.dataloader_drop_last=true training.per_device_train_batch_size=4 data.max_rows=3",
        "training.dataloader_drop_last=true leaves no batch of 3 rows: training.per_device_train_batch_size=4; lower …",
    ),
    case(
        "training.save_strategy=best training.eval_strategy=no",
        "training.save_strategy=best needs training.eval_strategy=epoch or steps, …",
        "training.save_strategy=best needs training.metric_for_best_model, such as loss",
    ),
    case(
        "training.metric_for_best_model=los",
        "training.metric_for_best_model must be one of loss, …did you mean 'loss'?",
    ),
    case(
        "training.use_liger_kernel=true", "training.use_liger_kernel needs the package liger-kernel; install it, or …"
    ),
    case("peft=prompt_tuning training.eval_packing=true", "training.eval_packing mixes documents up …; set …=false"),
    case("training.packing=true training.packing_strategy=wrapped", "training.packing_strategy=wrapped cuts …"),
    case("training.packing_strategy=bfd_splt", "training.packing_strategy must be one of bfd, …; did you mean …"),
    case(
        "training.padding_free=true training.eval_packing=true",
        "training.padding_free and training.eval_packing need training.packing=true; set it, or one of them false",
    ),
    case("training.train_sampling_strategy=by_length", "training.train_sampling_strategy must be one of random, …"),
    case("training.optim=galore_adamw", "training.optim=galore_adamw needs the package galore-torch; install it, or …"),
    case("training.optim=apollo_adamw", "training.optim=apollo_adamw needs the package apollo-torch; install it, or …"),
    case("training.optim=adalomo", "training.optim=adalomo needs the package lomo-optim; install it, or choose …"),
    case("training.optim=adamw_bnb_8bit", "training.optim=adamw_bnb_8bit or its settings are refused: …bitsandbytes…"),
    case(
        "training.resume=nowhere", "training.resume: nowhere is not a checkpoint folder (no trainer_state.json); give …"
    ),
    case(
        "training.resume=c",
        "training.resume: c is not a checkpoint folder of this peft method (no model*.safetensors); give …",
        c__trainer_state_json="{}",
    ),
    case(
        "training.resume=c training.max_steps=5",
        "training.resume: c has no optimizer.pt, which would start anew in silence; give a checkpoint …save_only_model",
        "training.resume: c has no scheduler.pt, which would start anew in silence; give a checkpoint …save_only_model",
        "training.resume: c is at step 5, so training.max_steps=5 leaves nothing to train",
        c__trainer_state_json='{"global_step": 5}',
        c__model_safetensors="x",
    ),
    Case(
        "training.resume=c",
        ("training.resume: c/trainer_state.json is damaged; give an earlier checkpoint",),
        {"c/trainer_state.json": "{}", "c/model.safetensors": "x", "c/optimizer.pt": "x", "c/scheduler.pt": "x"},
    ),
]

RUN_FOLDERS = [
    case("output_dir=x.txt", "output_dir: x.txt is a file; choose a folder", x_txt="a file"),
    case(
        "output_dir=x.txt/run", "output_dir: x.txt/run cannot be made: Not a directory; choose another", x_txt="a file"
    ),
    case(
        "output_dir=run",
        "output_dir: run holds another run (job.yaml), which is never overwritten; …",
        run__job_yaml="",
    ),
    case("output_dir=''", "output_dir is empty; name a folder, or null for one under runs/"),
]

FROZEN = """\
name: frozen
model: {path: "package:tiny_llama"}
peft: {_target_: fmstune.models.adapters.full}
data:
  train: package:complaints/train.jsonl
  text_field: output
  response_template: "\\n### Label:"
  format: {_target_: fmstune.data.formats.text, text_field: output, response_template: "\\n### Label:"}
training: {}
"""

FROZEN_JOBS = [
    case("--from nowhere.yaml", "nowhere.yaml: no such file; give the job.yaml of a run folder"),
    case(
        "--from job.yaml",
        "lr: unknown field; …",
        "model is a group of fields, got 'tiny_llama'; choose one with model=NAME",
        "peft must be given",
        "data must be given",
        "training must be given",
        job_yaml="name: x\nlr: 3\nmodel: tiny_llama\n",
    ),
    case("--from run", "run/job.yaml: no such file; give the job.yaml of a run folder", run__x_txt="x"),
    case("--from job.yaml", "job.yaml: a job is a mapping of groups, found a list", job_yaml="- a\n"),
    case("--from job.yaml", "job.yaml: cannot be read as a job: …", job_yaml="a: [\n"),
    case("--from job.yaml", "job.yaml: cannot be read as a job: …", job_yaml=b"\xff\xfe"),
    case(
        "--from job.yaml peft=lora",
        "peft=lora: with --from single fields can change, not groups or sweeps",
        job_yaml=FROZEN,
    ),
    case(
        "--from job.yaml seed=1,2",
        "seed=1,2: with --from single fields can change, not groups or sweeps",
        job_yaml=FROZEN,
    ),
    case("--from job.yaml ~seed", "~seed: with --from single fields can change, not groups or sweeps", job_yaml=FROZEN),
    case("--from job.yaml -m seed=1", "-m: --from repeats one job and takes fields only", job_yaml=FROZEN),
    case(
        "--from job.yaml training.learning_rat=3",
        "training.learning_rat: unknown field of trl.SFTConfig; did you mean 'learning_rate'?",
        job_yaml=FROZEN,
    ),
    case(
        "--from job.yaml training.learning_rate=0",
        "training.learning_rate must be above 0 and below 10, got 0",
        job_yaml=FROZEN,
    ),
]

CHECKPOINT = {
    "run/checkpoint-2/trainer_state.json": '{"global_step": 2}',
    "run/checkpoint-2/model.safetensors": "x",
    "run/checkpoint-2/optimizer.pt": "x",
    "run/checkpoint-2/scheduler.pt": "x",
}

RESUMED = [
    Case(
        "--from job.yaml training.resume=run/checkpoint-2 seed=7 model.dtype=float32 data.max_length=64 "
        "training.learning_rate=0.5 training.num_train_epochs=9 training.eval_strategy=no training.save_steps=3",
        (
            "seed is 7 here and 42 in run/job.yaml; a resumed run keeps what its checkpoint began with",
            "model.dtype is 'float32' here and 'auto' in run/job.yaml; a resumed run keeps …",
            "data.max_length is 64 here and 4096 in run/job.yaml; a resumed run keeps …",
            "training.learning_rate is 0.5 here and not given in run/job.yaml; a resumed run keeps …",
        ),
        {"job.yaml": FROZEN, "run/job.yaml": FROZEN} | CHECKPOINT,
    ),
    Case(
        "--from job.yaml training.resume=run/checkpoint-2",
        ("training.weight_decay is not given here and 0.1 in run/job.yaml; a resumed run keeps …",),
        {"job.yaml": FROZEN, "run/job.yaml": FROZEN.replace("training: {}", "training: {weight_decay: 0.1}")}
        | CHECKPOINT,
    ),
    Case(
        "training.resume=run/checkpoint-2",
        ("training.resume: the checkpoint's job cannot be compared (…run/job.yaml: …); copy it elsewhere …",),
        {"run/job.yaml": "a: [\n"} | CHECKPOINT,
    ),
]

TWO = {"a.jsonl": ROW, "b.jsonl": ROW.replace("answer", "other")}
SOURCES = [
    case(
        "check data=text 'data.train={a: a.jsonl, b: {pth: b.jsonl, wieght: 2, weight: x}}'",
        "data.train.b.pth: unknown field; did you mean 'path'?",
        "data.train.b.wieght: unknown field; did you mean 'weight'?",
        "data.train.b.path must be given",
        "data.train.b.weight must be a number or null, got 'x'",
    ),
    Case(
        "check data=text 'data.train={a: {path: a.jsonl, weight: 0}, b: {path: b.jsonl, max_rows: 0}, b c: nosuch}'",
        (
            "data.train.a.weight must be above 0 and finite, got 0",
            "data.train.b.max_rows must be at least 1, got 0",
            "data.train.b c: a source's name is made of letters, digits, _ and -; change it",
            "data.train.b c: no file nosuch",
            "data.train: a has a weight and b, b c has none; give one to all, or to none",
        ),
        TWO,
    ),
    Case(
        "check data=text data.train=a.jsonl 'data.eval={b: {path: b.jsonl, weight: 1}}'",
        ("data.eval.b.weight: held-out rows are not mixed; leave it out",),
        TWO,
    ),
    case("check data=text data.train={}", "data.train names no source; give some, such as {a: a.jsonl, b: b.jsonl}"),
    case("check data=text 'data.train={a: null}'", "data.train.a must be given: a file, glob, folder or hub id, …"),
    Case(
        "check data=text 'data.train={a: {path: a.jsonl, format: {_target_: os.system}}}'",
        ("data.train.a.format._target_: 'os.system' is not in an allowed package (fmstune.data.formats); …",),
        TWO,
    ),
    Case(
        "check data=text 'data.train={a: a.jsonl}' 'data.eval={b: a.jsonl}'",
        ("data.eval.b holds the same rows as data.train.a; name other rows, …",),
        TWO,
    ),
    Case(
        "check data=text data.train=a.jsonl data.overlap=drp",
        ("data.overlap must be one of keep, drop, error; got 'drp'; did you mean 'drop'?",),
        TWO,
    ),
    Case(
        "check data=text data.train=a.jsonl data.streaming=true data.eval_fraction=0.5 data.overlap=drop "
        "training.dataloader_num_workers=2 training.train_sampling_strategy=group_by_length data.buffer_size=0",
        (
            "data.buffer_size must be at least 1, got 0",
            "data.streaming=true does not know how many rows there are; set training.max_steps",
            "data.streaming=true cannot draw data.eval_fraction from rows that are not all there; set data.eval",
            "data.streaming=true counts its rows in the training process; set training.dataloader_num_workers=0, got 2",
            "training.train_sampling_strategy=group_by_length needs all rows at hand; set data.streaming=false …",
            "data.overlap=drop needs all rows at hand, and data.streaming=true reads them while training; set keep",
        ),
        TWO,
    ),
]

TEMPLATES = [
    case("check data=template data.train=rows.jsonl", "data.format.template_file must be given: a Jinja file, …"),
    case(
        "check data=template data.train=rows.jsonl data.format.template_file=rwo.jinja",
        "data.format.template_file: no file rwo.jinja; did you mean 'row.jinja'?",
        rows_jsonl=ROW,
        **{"row.jinja": "x"},
    ),
    case(
        "check data=template data.train=rows.jsonl data.format.template_file=row.jinja",
        "data.format.template_file: row.jinja marks nothing as trained; put the answer between …",
        rows_jsonl=ROW,
        **{"row.jinja": "{{ output }}"},
    ),
    case(
        "check data=template data.train=rows.jsonl data.format.template_file=row.jinja",
        "rows.jsonl, row 1: row.jinja: 'answer' is undefined; the row's columns are 'output'",
        rows_jsonl=ROW,
        **{"row.jinja": "{% generation %}{{ answer }}{% endgeneration %}"},
    ),
    case("model.chat_template=chat.jinja", "model.chat_template: no file chat.jinja"),
    case(
        "check model.chat_template=chat.jinja",
        "model.chat_template: chat.jinja is no Jinja template (…",
        **{"chat.jinja": "{% if %}"},
    ),
    case(
        "check data=chat data.train=rows.jsonl",
        "data.format: the model's tokenizer has no chat template; set model.chat_template to a Jinja file …",
        rows_jsonl='{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}\n',
    ),
]

ADAPTER = {
    "a/adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "./gone"}',
    "a/adapter_model.safetensors": "",
}
EVALUATE = "evaluate --model package:tiny_llama"

TO_EVALUATE = [
    case("evaluate data=complaints", "--model must be given: a run folder, an adapter or model folder, or a hub id"),
    case("evaluate harness --model package:tiny_llama", "--tasks must be given: names of tasks, with commas"),
    case(
        f"{EVALUATE} --metod=rank peft=lora",
        "evaluate has no flag --metod; did you mean '--method'?",
        "evaluate takes flags, data=CHOICE, data.FIELD=VALUE and seed=N; got 'peft=lora'",
    ),
    case(f"{EVALUATE} --method guess", "argument --method: invalid choice: 'guess' (choose from …"),
    case(
        f"{EVALUATE} --out_file a.txt --batch_size 0 --max_rows 0 --seed -1 --label yes data=complaints",
        "--out_file must end in .json, got a.txt; a table in Markdown is written beside it",
        "--batch_size must be at least 1, got 0",
        "--max_rows must be at least 1, got 0",
        "--seed must be at least 0 and below 2**32, got -1",
        "--label: give at least two labels that are not blank, or none for those that the rows have",
    ),
    case(EVALUATE, "--model: package:tiny_llama is no run, which has rows of its own; add data=CHOICE and …"),
    case(
        f"{EVALUATE} data=complaints data.eval=null",
        "no row is held out; set data.eval to the rows to evaluate on, or data.eval_fraction",
    ),
    case(f"{EVALUATE} data=text data.eval=gone.jsonl", "data.eval: no file gone.jsonl"),
    case(
        f"{EVALUATE} --out_file /proc/self/e.json data=complaints",
        "--out_file: the folder /proc/self is not yours to write into; choose another",
    ),
    case(
        f"{EVALUATE} --no_base --label a --label A data=complaints",
        "--label: two labels are the same but for case and spaces; give each once",
    ),
    case(
        f"{EVALUATE} --label yes --label no data=complaints",
        "no row of 120 is left to evaluate: 120 rows have an answer that is no --label, and were left out; the answers "
        "that the rows have are 'complaint', 'no complaint'",
    ),
    case(
        "evaluate harness --model package:tiny_llama --tasks complants --include_path .",
        "--tasks: the harness has no task 'complants'…",
    ),
    case(
        "evaluate harness --model package:tiny_llama --tasks a,,b --include_path nosuch --limit 0 data=complaints",
        "evaluate harness takes flags; got 'data=complaints'",
    ),
    case(
        "evaluate harness --model package:tiny_llama --tasks a,,b --include_path nosuch --limit 0 --num_fewshot -1",
        "--limit must be at least 1, got 0",
        "--tasks: an empty name in 'a,,b'; give names with commas between them",
        "--num_fewshot must be at least 0, got -1",
        "--include_path: there is no folder nosuch; name the one that holds the tasks' YAML",
    ),
    case("evaluation.sample=4", "evaluation.sample is generated when training evaluates; set training.eval_strategy=…"),
]

LLAMA = "generate --model package:tiny_llama"
GENERATE = [
    case("generate", "--model must be given: …", "nothing to ask: give --text, --text_file (…) or --rows_file"),
    case("generate --text hi", "--model must be given: a run folder, an adapter or model folder, or a hub id"),
    case(
        f"{LLAMA} --txet=hi peft=lora data.text_field=x",
        "generate has no flag --txet; did you mean '--text'?",
        "generate takes flags, and data.FIELD=VALUE beside --format; got 'peft=lora'",
        "data.text_field=x: fields of a data format go with --format",
    ),
    case(f"{LLAMA} --text hi --top_k many", "argument --top_k: invalid int value: 'many' (see fmstune --help)"),
    case(
        "generate --model ./nosuch --out_file nosuch/out.txt --batch_size 0 --max_new_tokens 0 --stop '' --seed -1",
        "--model: there is no folder nosuch",
        "nothing to ask: give --text, --text_file (one prompt a line; - reads standard input) or --rows_file",
        "--out_file must end in .json (a list) or .jsonl (a line an answer), got nosuch/out.txt",
        "--batch_size must be at least 1, got 0",
        "--max_new_tokens must be at least 1, got 0",
        "--stop is empty text, which ends nothing; leave it out",
        "--seed must be at least 0 and below 2**32, got -1",
    ),
    case(f"{LLAMA} --text hi --out_file nosuch/out.json", "--out_file: there is no folder nosuch; make it, or …"),
    case(
        f"{LLAMA} --text hi --out_file /proc/self/out.json",
        "--out_file: the folder /proc/self is not yours to write into; choose another",
    ),
    case(
        "generate --model modle --text hi",
        "--model: no folder is named modle, and it is neither in the hub's cache nor can the hub be reached; give a "
        "folder; did you mean 'model'?",
        model__config_json="{}",
    ),
    case(
        f"{LLAMA} --text hi --text_file promtps.txt --rows_file rows.jsonl",
        "--text and --text_file and --rows_file exclude each other; give one of them",
        "--text_file: no file promtps.txt; did you mean 'prompts.txt'?",
        "--rows_file needs --format, which makes prompts of rows, such as --format alpaca",
        prompts_txt="hi\n",
        rows_jsonl=ROW,
    ),
    case(
        f"{LLAMA} --text hi --temperature 0 --top_k 0 --top_p 2 --repetition_penalty 0",
        "--temperature, --top_k, --top_p without --do_sample: the likeliest token is taken in any case; …",
        "--temperature must be above 0, got 0; leave --do_sample out for the likeliest",
        "--top_p must be above 0 and at most 1, got 2",
        "--top_k must be at least 1, got 0",
        "--repetition_penalty must be above 0, got 0",
    ),
    case(
        f"{LLAMA} --text hi --resume --stream",
        "--resume needs an --out_file of JSON lines (.jsonl), got inference_result.json",
        "--stream shows answers as they come, and --resume goes on in a file; leave one of them out",
    ),
    case(f"{LLAMA} --text hi --out_file o.jsonl", "--out_file: o.jsonl is there; add --resume …", o_jsonl="{}\n"),
    case(
        f"{LLAMA} --text hi --out_file o.jsonl --resume",
        "--resume: o.jsonl:1 is no answer of fmstune generate; choose another file",
        o_jsonl="{}\n",
    ),
    case(
        f"{LLAMA} --text hi --out_file o.jsonl --resume",
        "--resume: o.jsonl:1 answers another prompt than number 1 of these; give the prompts that …",
        o_jsonl='{"input": "ho", "output": "ho ho"}\n',
    ),
    case(f"{LLAMA} --text hi --format alpcaa", "--format: data=alpcaa: no such choice; did you mean 'alpaca'? (…"),
    case(
        f"{LLAMA} --text hi --format text data.text_fild=x",
        "data.text_fild: unknown field; did you mean 'text_field'?",
    ),
    case(
        f"{LLAMA} --text hi --format tokenized",
        "--format: what a text is to fmstune.data.formats.tokenized is not known; give rows with --rows_file",
    ),
    case(
        f"{LLAMA} --rows_file rows.jsonl --format alpaca",
        "rows.jsonl, row 1: no column 'instruction'; its columns are 'question', 'output'",
        rows_jsonl='{"question": "hi"}\n',
    ),
    case(
        f"{LLAMA} --text hi --format chat",
        "--format chat: the model has no chat template; one that was tuned on chat has its own",
    ),
    case(
        f"{LLAMA} --text_file prompts.txt",
        "--text_file: prompts.txt holds no text; write one prompt a line",
        prompts_txt="\n",
    ),
    case(f"{LLAMA} --text_file prompts.txt", "--text_file: prompts.txt is not UTF-8 (byte 0); …", prompts_txt=b"\xff"),
    case(
        f"{LLAMA} --text hi --max_new_tokens 512",
        "1 of 1 prompts are too long, first number 1: its … tokens with --max_new_tokens 512 go beyond the 512 …",
    ),
    case(
        f"{LLAMA} --text hi --base_model_name_or_path package:tiny_llama", "--base_model_name_or_path: … whole model …"
    ),
    case(
        "generate --model run --text hi",
        "--model: the run in run has no model (failed); wait for it, or …",
        run__job_yaml="",
        run__summary_json='{"status": "failed"}',
    ),
    case(
        "generate --model run --text hi",
        "--model: the run in run has no model (interrupted); wait for it, or take its checkpoint run/checkpoint-3",
        run__job_yaml="",
        run__summary_json='{"status": "interrupted"}',
        **{"run__checkpoint-3__complete_json": '{"step": 3, "processes": 1, "rows_per_step": 4, "sharded": false}'},
    ),
    case(
        "generate --model run --text hi",
        "--model: run has neither config.json nor adapter_config.json; …",
        run__x_txt="",
    ),
    Case(
        "generate --model a --text hi",
        (
            "--model: a was tuned on ./gone, which is no folder here and cannot be had from the hub; pass "
            "--base_model_name_or_path with the folder or hub id of its base",
        ),
        ADAPTER,
    ),
    Case(
        "generate --model a --text hi --base_model_name_or_path ./gone --device cuda",
        ("--base_model_name_or_path: there is no folder gone",),
        ADAPTER,
    ),
    Case(
        "generate --model a --text hi --base_model_name_or_path bsae",
        (
            "--base_model_name_or_path: bsae is no folder here and cannot be had from the hub; give the folder or hub "
            "id of its base; did you mean 'base'?",
        ),
        {**ADAPTER, "base/config.json": "{}"},
    ),
    Case(
        "generate --model a --text hi",
        ("--model: a: adapter_config.json cannot be read as a configuration (…)",),
        {"a/adapter_config.json": "{"},
    ),
    case(f"{LLAMA} --text hi --device cuda", "--device=cuda is not available here (found cpu)"),
]

PROMPT = {
    "p/adapter_config.json": '{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2, '
    '"base_model_name_or_path": "package:tiny_llama"}',
    "p/adapter_model.safetensors": "",
}
DORA = {
    "d/adapter_config.json": '{"peft_type": "LORA", "use_dora": true, "base_model_name_or_path": "package:tiny_llama"}',
    "d/adapter_model.safetensors": "",
}
MERGE = [
    case(
        "merge --modle=a --out m peft=lora",
        "merge has no flag --modle; did you mean '--model'?",
        "merge takes flags; got 'peft'",
    ),
    case(
        "merge --weight 1",
        "--model must be given: run or adapter folders, or hub ids",
        "--out must be given: a folder to write",
    ),
    case(
        "merge --model ./nosuch --model ./nosuch --weight 0 --out m --max_shard_size much --export vllm_lora",
        "--model: there is no folder nosuch",
        "--model: ./nosuch is given 2 times; give it once, with --weight",
        "--weight is given 1 times for 2 --model; give one for each",
        "--weight must be a number other than 0, got 0",
        "--out: m is there; choose another folder",
        "--max_shard_size must be a size such as 500MB or 5GB, got much",
        "--export vllm_lora takes one adapter as it is; leave --weight and further --model out",
        "--dtype and --max_shard_size are of a merged model; leave them out beside --export",
        m__x_txt="",
    ),
    case("merge --model package:tiny_llama --out /proc/self/m", "--out: the folder /proc/self is not yours to …"),
    case("merge --model package:tiny_llama --out nosuch/m", "--out: there is no folder nosuch; make it, or choose …"),
    case("merge --model package:tiny_llama --out m", "--model: … is a whole model, with nothing to merge"),
    Case(
        "merge --model a --out m",
        ("--model: a was tuned on ./gone, which is no folder here and cannot be had from the hub; pass …",),
        ADAPTER,
    ),
    Case(
        "merge --model p --model d --out m",
        (
            "--model: p is PROMPT_TUNING: it learnt virtual tokens that stand before each prompt, and changed no "
            "weight that could be merged; fmstune generate and PEFT use it as it is",
            "--model: d is DoRA, which also sets the length of each column, which can neither be weighted nor added …",
        ),
        PROMPT | DORA,
    ),
    Case(
        "merge --model d --out m --export vllm_lora",
        ("--export vllm_lora: d is DoRA; merge it instead",),
        DORA,
    ),
]

TRACKING = [
    case("tracking=[aim,tensorbord]", "tracking=tensorbord: no such choice; did you mean 'tensorboard'? (aim, …)"),
    case("tracking=aim tracking.aim.rebo=x", "tracking.aim.rebo: unknown field; did you mean 'repo'?"),
    case(
        "tracking.wandb.mode=sometimes tracking.aim=here",
        "tracking.aim is a group of fields, got 'here'; set them as tracking.aim={FIELD: VALUE}",
        "tracking.wandb.mode must be one of online, offline; got 'sometimes'",
    ),
    case(
        "tracking=[aim,mlflow] tracking.aim.repo=aim:/server tracking.mlflow.tracking_uri=https://me:secret@host",
        "tracking.aim.repo: a server is written aim://HOST:PORT, got 'aim:/server'",
        "tracking.mlflow.tracking_uri holds a password, and secrets stay out of a job; set it to null, and …",
    ),
    case(
        "training.trackers=aim training.aim_repo=. training.aim_remote_server_ip=10.0.0.1",
        "training.trackers: choose several at once, such as tracking=[aim,tensorboard]",
        "training.aim_repo: it is tracking.aim.repo now",
        "training.aim_remote_server_ip: give the server as tracking.aim.repo=aim://HOST:PORT",
    ),
]

CALLBACKS = [
    case(
        "callbacks=early_stopping callbacks.early_stopping.patience=0 callbacks.early_stopping.threshold=-1 "
        "callbacks.stop_when=[]",
        "callbacks.early_stopping.metric=eval_loss is measured by evaluating while training; set …",
        "callbacks.early_stopping.patience must be at least 1, got 0",
        "callbacks.early_stopping.threshold must be at least 0, got -1",
        "callbacks.stop_when has no condition; write one, such as loss < 0.1, or set it to null",
    ),
    case(
        "callbacks=early_stopping callbacks.early_stopping.metric=los training.eval_strategy=epoch",
        "callbacks.early_stopping.metric=los is nothing that this job logs, which is loss, …; did you mean 'loss'?",
    ),
    case(
        '\'callbacks.stop_when=["los < 1 or eval_loss < 1", "loss", "loss <", "1 < 2", "loss.real > 1", '
        '"__import__(loss) > 1", "mean(loss, 0) < 1"]\'',
        "callbacks.stop_when='los < 1 or eval_loss < 1': los is nothing that this job logs, …; did you mean 'loss'?",
        "callbacks.stop_when='los < 1 or eval_loss < 1': eval_loss is measured by evaluating while training; …",
        "callbacks.stop_when='loss': loss is a number; compare it, as in loss < 0.5",
        "callbacks.stop_when='loss <': it cannot be read (invalid syntax); a condition is made of metrics, numbers, …",
        "callbacks.stop_when='1 < 2': it looks at no metric, and so would hold always or never",
        "callbacks.stop_when='loss.real > 1': loss.real has no place in a condition; …",
        "callbacks.stop_when='__import__(loss) > 1': __import__(loss) has no place in a condition; …",
        "callbacks.stop_when='mean(loss, 0) < 1': mean(loss, 0): the function takes METRIC or METRIC, COUNT, …",
    ),
    case(
        "'callbacks.stop_when=\"eval_loss < 1\"' 'data.eval={a: package:complaints/held_out.jsonl}' "
        "training.eval_strategy=epoch",
        "callbacks.stop_when='eval_loss < 1': eval_loss is nothing that …, eval_a_loss, …; did you mean 'eval_a_loss'?",
    ),
    case("callbacks=early_stoping", "callbacks=early_stoping: no such choice; did you mean 'early_stopping'? (…)"),
]

SCRIPT = "python tuning/sft_trainer.py --training_data_path a.json --dataset_text_field output --response_template A:"
EARLY = [
    case("from-fms", "from-fms needs an old command in single quotes or after --, or a file; - is stdin"),
    case("from-fms --runn x", "from-fms has no flag --runn; did you mean '--run'?; the old command follows after --"),
    case("from-fms 'ls -l'", "no command of the early tool in 'ls -l'; give one that starts tuning/sft_trainer.py, …"),
    case("from-fms '# nothing'", "no command; give one that starts tuning/sft_trainer.py, …"),
    case("from-fms nowhere.sh", "no command of the early tool in 'nowhere.sh'; …, or a file that is here"),
    case(
        'from-fms "python tuning/sft_trainer.py --model \'a b"',
        "the quote at 'a b does not end; put the whole command into single quotes, or into a file",
    ),
    case(f"from-fms '{SCRIPT} --learning_rat 1'", "--learning_rat is no flag of the early tool; did you mean …?"),
    case(f"from-fms '{SCRIPT} --zzz'", "--zzz is no flag of the early tool (docs/migration.md has all)"),
    case(
        f"from-fms '{SCRIPT} --deepspeed x --tpu_num_cores 8 --packing maybe --peft_method qlora'",
        "--peft_method must be one of lora, pt, none; got 'qlora'",
        "--deepspeed: FSDP is what shards here: launcher=fsdp",
        "--tpu_num_cores: fmstune does not train on TPUs",
        "--packing must be True or False, got 'maybe'",
    ),
    case(
        "from-fms 'python tuning/sft_trainer.py --output_dir out'",
        "--dataset_text_field is missing, without which the early tool did not start: the column that holds the text",
        "--response_template is missing, …",
        "--training_data_path is missing, …",
    ),
    case(
        f"from-fms 'accelerate launch --config_file $NOPE/a.yaml {SCRIPT.removeprefix('python ')} --packing $NOPE'",
        "--packing must be True or False, got '$NOPE'",
        "--config_file $NOPE/a.yaml cannot be read, …",
    ),
    case(f"from-fms '{SCRIPT} --learning_rate'", "--learning_rate takes one value, got none"),
    case(f"from-fms '{SCRIPT} $(date)'", "$(date): a shell would have to run this; write what it comes to"),
    case("from-fms job.json", "the job: broken JSON (…)", job_json='{"output_dir": '),
    case("from-fms job.json", "job.json is no text (invalid start byte); …", job_json=b"\xff"),
    case(
        f"from-fms 'accelerate launch --config_file nowhere.yaml {SCRIPT.removeprefix('python ')}'",
        "--config_file nowhere.yaml cannot be read, and it says how the job is launched; give its path here",
    ),
    case(
        f"from-fms 'accelerate launch --num_process 2 {SCRIPT.removeprefix('python ')}'",
        "--num_process is no flag of the early tool; did you mean '--num_processes'?",
    ),
    case(
        f"from-fms 'torchrun --nproc_per_node --nnodes 1 {SCRIPT.removeprefix('python ')}'",
        "--nproc_per_node takes one value, got none",
    ),
    case(f"from-fms '{SCRIPT} --fsdp no_shard'", "--fsdp no_shard is not taken; full_shard, shard_grad_op, …"),
    case(f"from-fms --run '{SCRIPT} --output_dir $OUT'", "$OUT has no value; set it before the command"),
    case("from-fms 'python scripts/run_inference.py --text x'", "--model is missing: the tuned model's folder"),
    case(
        "from-fms 'python scripts/run_inference.py --model x'",
        "one of --text and --text_file must be given, got none",
    ),
    case("from-fms 'lm_eval --tasks boolq'", "--model_args is missing: the model, as pretrained=DIR"),
    case("from-fms 'python accelerate_launch.py'", "the container's job is in SFT_TRAINER_CONFIG_JSON_PATH or …"),
]

LOCK = '{"fmstune": "0.1.0", "packages": {}, "seed": 42, "data_hashes": {}}'
REPRODUCE = [
    case("reproduce", "reproduce takes the folder of one run, such as runs/first; got none"),
    case("reproduce one two", "reproduce takes the folder of one run, such as runs/first; got one, two"),
    case("reproduce run --strct", "reproduce has no flag --strct; did you mean '--strict'?"),
    case("reproduce run", "reproduce: there is no folder run"),
    case(
        "reproduce sweep",
        "reproduce: sweep has no job.yaml, so it is not the folder of a run; it holds those of 0-r=8",
        **{"sweep__0-r=8__job_yaml": "name: x\n"},
    ),
    case(
        "reproduce run",
        "run/lock.json: no such file; it is written when a run begins to train. fmstune train --from run repeats …",
        run__job_yaml="name: x\n",
    ),
    case(
        "reproduce run",
        "run/lock.json: cannot be read (Expecting …); fmstune train --from run repeats the run without it",
        run__job_yaml="name: x\n",
        run__lock_json='{"fmstune": ',
    ),
    case(
        "reproduce run",
        "run/lock.json: has no packages, seed, data_hashes, so it is no record of a run; …",
        run__job_yaml="name: x\n",
        run__lock_json='{"fmstune": "0.1.0"}',
    ),
    case(
        "reproduce run",
        *(f"{group} must be given" for group in ("model", "peft", "data", "training")),
        run__job_yaml="name: x\n",
        run__lock_json=LOCK,
    ),
    case(
        "reproduce run peft=full",
        "peft=full: with --from single fields can change, not groups or sweeps",
        run__job_yaml="name: x\n",
        run__lock_json=LOCK,
    ),
    case("check --strict", "--strict is a flag of fmstune reproduce"),
]

JOB_FILE = "name: x\nseed: 1\n"

REPORTS = [
    case("report", "report takes one folder, of a run or of runs such as a sweep's; got 0"),
    case("report a b", "report takes one folder, of a run or of runs such as a sweep's; got 2"),
    case("report nosuch", "nosuch: no such folder; give a run folder or a folder of runs"),
    case("report .", ".: no run here (no job.yaml in it or in a folder of it)"),
    case(
        "report runs",
        "runs: no run here (no job.yaml in it or in a folder of it); runs are in runs/today",
        runs__today__a__job_yaml=JOB_FILE,
    ),
    case("report run --metrik x", "report has no flag --metrik; did you mean '--metric'?"),
    case("report run --direction up", "argument --direction: invalid choice: 'up' (…) (see fmstune --help)"),
    case(
        "report run --metric tuned.eval_los",
        "--metric tuned.eval_los: no run has this number in its summary.json; did you mean 'tuned.eval_loss'?",
        run__job_yaml=JOB_FILE,
        run__summary_json='{"status": "finished", "tuned": {"eval_loss": 1.0}}',
    ),
    case(
        "report run",
        "run/summary.json: cannot be read (…); correct or remove the file",
        "run/metrics.jsonl:2: broken JSON (…); remove the line",
        run__job_yaml=JOB_FILE,
        run__summary_json="{",
        run__metrics_jsonl='{"step": 1}\n{x\n{"step": 2}\n',
    ),
    case(
        "report all",
        "all/a/metrics.jsonl:1: must be a mapping of names to values; remove the line",
        "all/b/job.yaml: cannot be read (…); correct or remove the file",
        all__a__job_yaml=JOB_FILE,
        all__a__metrics_jsonl="[1]\n",
        all__b__job_yaml="{x",
    ),
    case(
        "report run",
        "run/report.html: cannot be written (…); choose another folder",
        run__job_yaml=JOB_FILE,
        **{"run__report.html__file_txt": "a folder is in the way"},
    ),
    case("compare a", "compare takes two run folders; got 1"),
    case("compare a b --htlm=x", "compare has no flag --htlm; did you mean '--html'?"),
    case(
        "compare a all",
        "compare: a: no such folder; give a run folder",
        "compare: all: not a run folder (no job.yaml in it)",
        all__b__job_yaml=JOB_FILE,
    ),
    case(
        "compare a b --html nosuch/page.html",
        "nosuch/page.html: cannot be written (…); choose another folder",
        a__job_yaml=JOB_FILE,
        b__job_yaml=JOB_FILE,
    ),
]

CASES = [
    *UNKNOWN_NAMES,
    *SEVERAL_AT_ONCE,
    *TYPES,
    *TO_EVALUATE,
    *MISSING_VALUES,
    *WORDS,
    *OWNED,
    *RANGES,
    *DATA_FILES,
    *ROW_CONTENTS,
    *MODELS,
    *QUANTIZATION,
    *FMS,
    *ADAPTERS,
    *FORMATS,
    *TOGETHER,
    *RUN_FOLDERS,
    *FROZEN_JOBS,
    *RESUMED,
    *SOURCES,
    *TEMPLATES,
    *GENERATE,
    *MERGE,
    *TRACKING,
    *CALLBACKS,
    *EARLY,
    *REPRODUCE,
    *REPORTS,
]


def test_the_specification_keeps_its_size() -> None:
    assert len(CASES) == 459


@pytest.mark.parametrize("wrong", CASES, ids=[wrong.command[:70] for wrong in CASES])
def test_wrong_input_is_answered_by_one_message_and_leaves_nothing(
    wrong: Case, fmstune: Callable[..., Any], tmp_path: Path
) -> None:
    write(wrong.files, tmp_path)
    before = content(tmp_path)

    result = fmstune(*shlex.split(wrong.command))

    assert_says(result.err, wrong.says)
    assert result.code == 2
    assert result.out == ""
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "wrong",
    [
        case("training.learning_rat=1", "training.learning_rat: unknown field of trl.SFTConfig; …"),
        case("peft=lorra", "peft=lorra: no such choice; …"),
        case(
            f"{ROWS} peft=lora peft.target_modules=[q_prj]",
            "peft.target_modules: no module is named 'q_prj'; …",
            "rows.jsonl:1: broken JSON …",
            rows_jsonl="{x\n",
        ),
    ],
    ids=["parent: field", "parent: group", "runner: model and data"],
)
def test_the_console_script_answers_the_same(wrong: Case, tmp_path: Path) -> None:
    write(wrong.files, tmp_path)
    before = content(tmp_path)
    script = Path(sys.executable).with_name("fmstune")

    ended = subprocess.run([script, *shlex.split(wrong.command)], capture_output=True, text=True, timeout=300)

    assert_says(ended.stderr, wrong.says)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert content(tmp_path) == before


def test_every_point_of_a_sweep_is_answered(fmstune: Callable[..., Any], tmp_path: Path) -> None:
    result = fmstune("-m", "seed=-1,-2")

    assert result.code == 2
    assert result.err.splitlines() == [
        "fmstune: error: seed must be at least 0 and below 2**32, got -1",
        "fmstune: error: seed must be at least 0 and below 2**32, got -2",
        "fmstune: 2 of 2 points failed",
    ]
    assert content(tmp_path) == []


@pytest.mark.parametrize(
    ("command", "files", "says"),
    [
        (
            "model=causal_lm model.path=m",
            tiny_llama() | {"m/model.safetensors": b"damaged"},
            "model.path: the model m cannot be loaded: …",
        ),
        (
            "peft=lora model.adapter=a",
            {"a/adapter_config.json": '{"peft_type": "LORA"}', "a/adapter_model.safetensors": b"damaged"},
            "model.adapter: a does not fit the model: …",
        ),
    ],
    ids=["damaged weights", "damaged adapter"],
)
def test_what_only_loading_can_show_is_answered_and_recorded(
    command: str, files: Mapping[str, str | bytes], says: str, fmstune: Callable[..., Any], tmp_path: Path
) -> None:
    write(files, tmp_path)

    result = fmstune(*shlex.split(command))

    assert_says(result.err, [says])
    assert result.code == 2
    assert result.summary["status"] == "failed"
    assert result.summary["error"]["kind"] == "user"
    assert not (result.folder / "model").exists()


def write(files: Mapping[str, str | bytes], folder: Path) -> None:
    """Make the files that a command finds."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def content(folder: Path) -> list[str]:
    """All that is in the folder; of the cache, only what should not stay there."""
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return [name for name in found if not name.startswith("cache") or ".unfinished" in name]


def assert_says(err: str, says: Sequence[str]) -> None:
    """The terminal shows these problems, in order, and nothing else but notes."""
    assert "Traceback" not in err
    before, *rest = re.split(r"^fmstune: (?:error: |\d+ errors:\n)", err, flags=re.MULTILINE)
    assert all(line.startswith(("fmstune: note: ", "fmstune: run folder ")) for line in before.splitlines()), err
    assert len(rest) == 1, err
    found = re.split(r"^  \d+\. ", rest[0], flags=re.MULTILINE) if len(says) > 1 else ["", rest[0]]
    assert [text.strip() for text in found[1:]] == [Saying(text) for text in says], err


class Saying(str):
    """A message that equals what it says; `…` stands for anything."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        pattern = ".*".join(re.escape(part) for part in self.split("…"))
        return isinstance(other, str) and re.fullmatch(pattern, other, flags=re.DOTALL) is not None
