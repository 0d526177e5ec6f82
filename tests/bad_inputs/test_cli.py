"""What fmstune says to words that are no command, flag, field or choice."""

import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.bad_inputs.cases import ROWS, Case, assert_answered, assert_says, case, content, write, wrong_inputs
from tests.fixtures import forked

pytestmark = pytest.mark.sampled(20)

WORDS = [
    case(
        "chek",
        "unknown verb 'chek'; did you mean 'check'?; "
        "the verbs are train, reproduce, check, show-data, modules, generate, chat, serve, evaluate, merge, "
        "parity, from-fms, report, compare, bisect, rows, push, runs, logs, stop, clean, recipes, copy, schema, doctor",
    ),
    case("check train", "train: neither FIELD=VALUE nor GROUP=CHOICE, and a verb comes first (see fmstune --help)"),
    case("--dry-run", "--dry-run is a flag of fmstune push"),
    case("seed=1 --frobnicate seed=2", "unknown flag --frobnicate (see fmstune --help)"),
    case("name=a --cfg seed=2", "argument --cfg/-c: invalid choice: 'seed=2' (choose from 'job', …"),
    case(
        "hydra/sweeper=optuna -m evaluation=none,held_out",
        "compare_by must be given: the points of this search would be compared by different numbers",
    ),
    case("--trus x", "unknown flag --trus; did you mean '--trust'?"),
    case("check --rows 3", "--rows is a flag of fmstune show-data, parity, rows"),
    case("show-data --from job.yaml", "--from is a flag of fmstune train, check"),
    case("check --from job.yaml", "job.yaml: no such file; give the job.yaml of a run folder"),
    case("--sources", "--sources is a flag of fmstune check, and goes with --cfg job"),
    case("train --from job.yaml --sources", "--sources is a flag of fmstune check, and goes with --cfg job"),
    case("modules --sources", "--sources is a flag of fmstune train, check"),
    case("--cfg job --sources --package foo", "--package foo: the job has no such part"),
    case("--cfg job --sources seed=x", "seed must be a whole number, got 'x'"),
    case("show-data --rows x", "argument --rows: invalid int value: 'x' (see fmstune --help)"),
    case("show-data --rows -1", "--rows must be at least 0, got -1"),
    case("show-data --json nowhere/x.json", "--json: nowhere/x.json cannot be written (No such file or directory); …"),
    case("show-data --html nowhere/x.html", "--html: nowhere/x.html cannot be written (No such file or directory); …"),
    case("show-data --html .", "--html: . cannot be written (Is a directory); choose another file"),
    case("show-data --json x --html x", "--json and --html both name x; give each a file of its own"),
    case("check --html x.html", "--html is a flag of fmstune show-data, compare, rows"),
    case(
        "show-data --json nowhere/x --html nowhere/y",
        "--json: nowhere/x cannot be written (No such file or directory); choose another file",
        "--html: nowhere/y cannot be written (No such file or directory); choose another file",
    ),
    case("--trust", "argument --trust: expected one argument (see fmstune --help)"),
    case("--cfg jobb", "argument --cfg/-c: invalid choice: 'jobb' (choose from …) (see fmstune --help)"),
    case("--cfg job --package foo", "--package foo: the job has no such part"),
    case("-m --cfg job seed=1,2", "--cfg prints one job, and -m composes several; leave one of them out"),
    case("runs a b", "runs takes one folder of runs; got a, b"),
    case("runs nowhere", "nowhere: no such folder; give a folder of runs, of a sweep or of one run"),
    case("runs --jsn", "runs has no flag --jsn; did you mean '--json'?"),
    case("logs", "logs takes the folder of one run or sweep; got none"),
    case("logs nowhere", "nowhere: no such folder; give the folder of a run or of a sweep (fmstune runs lists them)"),
    case("stop .", ".: no run here (no job.yaml in it or in a folder of it); fmstune runs lists runs"),
    case("clean .", "--keep must be given: the checkpoints of each run that stay: …"),
    case("clean . --keep all", "--keep must be best, last or a number of checkpoints, got 'all'"),
    case("recipes experimnt", "recipes: the group 'experimnt' does not exist; did you mean 'experiment'?"),
    case("copy experiment=complaints_lora", "copy takes GROUP=CHOICE and a folder, such as …; got experiment=…"),
    case(
        "copy experiment=complaint_lora my",
        "experiment=complaint_lora: no such choice; did you mean 'complaints_lora'?",
    ),
    case("schema trainings", "schema: the group 'trainings' does not exist; did you mean 'training'?"),
    case("schema --out_file nowhere/x", "--out_file: nowhere/x cannot be written (No such file or directory); …"),
    case("doctor peft=lora", "doctor takes flags; got 'peft=lora'"),
    case("model=llama2_7", "model=llama2_7: no such choice; did you mean 'llama2_7b'? (causal_lm, …)"),
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
        "--config-dir nowhere model=mine",
        "--config-dir: nowhere is not a folder; give the folder that holds your groups",
    ),
]

OF_OTHER_TOOLS_AND_HYDRA = [
    case(
        "lr=1e-4 training.batch_size=4 lora.r=8",
        "lr: unknown field; did you mean 'training.learning_rate'?",
        "lora.r: unknown field; did you mean 'peft.r'?",
        "training.batch_size: unknown field of trl.SFTConfig; did you mean 'training.per_device_train_batch_size'?",
    ),
    case("--lr 1e-4", "unknown flag --lr; a field is set without dashes: training.learning_rate=VALUE (fmstune from-…"),
    case("check --gpus 2", "unknown flag --gpus; a field is set without dashes: launcher.num_processes=VALUE"),
    case("data=rows.jsonl", "data=rows.jsonl: no such choice; a folder, a file or a hub id is given as data=text …"),
    case("'evaluation=${first:}'", "evaluation=${first:} refers to no group, so it names no choice; name one"),
    case("tracking=[[1]]", "tracking=[[1]]: a choice is a name, such as tracking=aim"),
    case("--cfg job 'training=bool(2)'", "training=bool(2): a choice is a name, such as training=default"),
    case("'tracking={a: 1}'", "tracking.a is a group of fields, got 1; set them as tracking.a={FIELD: VALUE}"),
    case("a-b=none", "a-b: unknown field; the job has name, …"),
    case("'model.lora_targets={q_proj: 4}'", "model.lora_targets={q_proj: 4}: Cannot merge a mapping with a list"),
    case("'++launcher=[1]'", "launcher=1: no such choice (ddp, fsdp, fsdp1, local, slurm)"),
    case("launcher.config_file=0", "launcher.config_file: 0 cannot be read (No such file or directory); give an …"),
    case("'launcher.config_file=[x]'", "launcher.config_file must be text or null, got ['x']"),
    case(
        "training.lr_scheduler_kwargs=all-linear",
        "training.lr_scheduler_kwargs must be a mapping of keys to values, got 'all-linear'",
    ),
    case("check --experimental-rerun=x", "unknown flag --experimental-rerun (see fmstune --help)"),
    case(f"report {'a' * 300}", f"{'a' * 200}: File name too long"),
    case(f"compare {'a' * 300} b", f"{'a' * 200}: File name too long"),
    case(f"check data=text data.train={'a' * 300}", f"{'a' * 200}: File name too long"),
    case("--package data", "--package goes with --cfg job, which prints the composed job"),
    case("--hydra-help --resolve", "--resolve goes with --cfg job, which prints the composed job"),
    case("--info --run", "--info and --run ask for two things; leave one of them out"),
    case("--info nosuch", "argument --info/-i: invalid choice: 'nosuch' (choose from 'all', 'config', …"),
    case("--config-path nosuch", "--config-path: nosuch is not a folder; it takes the place of fmstune's own files; …"),
    case("hydra/job_logging=colorlog", "hydra/job_logging=colorlog is brought by a plugin: pip install hydra-colorlog"),
]

CASES = [*WORDS, *OF_OTHER_TOOLS_AND_HYDRA]


@wrong_inputs(CASES)
def test_a_wrong_command_line_is_answered_by_one_message_and_leaves_nothing(
    wrong: Case, fmstune: Callable[..., Any], tmp_path: Path
) -> None:
    assert_answered(wrong, fmstune, tmp_path)


def new_program(words: Sequence[str | Path]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("run", "wrong"),
    [
        (new_program, case("training.learning_rat=1", "training.learning_rat: unknown field of trl.SFTConfig; …")),
        (new_program, case("peft=lorra", "peft=lorra: no such choice; …")),
        (
            # the runner imports what trains
            forked.run,
            case(
                f"{ROWS} peft=lora peft.target_modules=[q_prj]",
                "peft.target_modules: no module is named 'q_prj'; …",
                "rows.jsonl:1: broken JSON …",
                rows_jsonl="{x\n",
            ),
        ),
    ],
    ids=["parent: field", "parent: group", "runner: model and data"],
)
def test_the_console_script_answers_the_same(
    run: Callable[[Sequence[str | Path]], "subprocess.CompletedProcess[str]"], wrong: Case, tmp_path: Path
) -> None:
    write(wrong.files, tmp_path)
    before = content(tmp_path)
    script = Path(sys.executable).with_name("fmstune")

    ended = run([script, *shlex.split(wrong.command)])

    assert_says(ended.stderr, wrong.says)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert content(tmp_path) == before
