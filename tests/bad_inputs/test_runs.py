"""What fmstune says to run folders, frozen jobs and checkpoints that cannot be used, repeated or reported on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bad_inputs.cases import Case, assert_answered, case, wrong_inputs

pytestmark = pytest.mark.sampled(12)

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
    case("--from hf:name", "--from: 'hf:name' names no repository; give hf:USER/NAME, or hf:USER/NAME@REVISION"),
    case(
        "--from hf:me/tuned@v1",
        "--from: no folder is named me/tuned, and it is neither in the hub's cache nor can the hub be reached "
        "(HF_HUB_OFFLINE is set); give --from DIR, set HF_ENDPOINT to a mirror, or fetch it elsewhere: hf download "
        "me/tuned job.yaml --revision v1 --local-dir tuned (then --from tuned)",
    ),
    case("--from run", "run/job.yaml: no such file; give the job.yaml of a run folder", run__x_txt="x"),
    case(
        "check --from run 'name=${seed}' 'direction=${.}'",
        r"name=${seed}: a recorded job takes no reference to a field; give the value itself, and text that only …",
        r"direction=${.}: a recorded job takes no reference to a field; give the value itself, and text that only …",
        run__job_yaml="name: x\n",
    ),
    case(
        "check --from run data.train.2.path=x",
        "data.train.2.path: the list has 1 items, counted from 0, and no item 2",
        run__job_yaml="data: {train: [{path: y}]}\n",
    ),
    case("--from job.yaml", "job.yaml: cannot be read as a job: …", job_yaml="a: 1\na: 2\n"),
    case("--from job.yaml", "job.yaml: cannot be read as a job: …", job_yaml="a: &a [*a]\n"),
    case("--from job.yaml", "job.yaml: a job is a mapping of groups, found the list …", job_yaml="- a\n"),
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
    case("--from job.yaml -m seed=1", "--multirun: --from repeats one job and takes fields only", job_yaml=FROZEN),
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
            "seed is 7 here and 42 in run/job.yaml; a resumed run keeps the values of its checkpoint",
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
        ("training.resume: the checkpoint's job cannot be compared (…run/job.yaml: …); copy the …",),
        {"run/job.yaml": "a: [\n"} | CHECKPOINT,
    ),
    Case(
        "check training.resume=run/checkpoint-2",
        ("training.resume: run/checkpoint-2 is damaged: rng_state.pth is missing; give another checkpoint",),
        CHECKPOINT,
    ),
    Case(
        "check training.resume=run/checkpoint-2",
        (
            "training.resume: run/checkpoint-2 is damaged: model.safetensors cannot be read (…), optimizer.pt cannot "
            "be read (File is not a zip file), rng_state.pth cannot be read (File is not a zip file) and 1 more; …",
        ),
        {**CHECKPOINT, "run/checkpoint-2/rng_state.pth": "x"},
    ),
]


LOCK = '{"fmstune": "0.1.0", "packages": {}, "seed": 42, "data_hashes": {}}'


REPRODUCE = [
    case("reproduce", "reproduce takes the folder of one run, such as runs/first; got none"),
    case("reproduce one two", "reproduce takes the folder of one run, such as runs/first; got one, two"),
    case("reproduce run --strct", "reproduce has no flag --strct; did you mean '--strict'?"),
    case("reproduce run", "reproduce: no folder run"),
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
        "run/lock.json: has no packages, seed, data_hashes, so it is not the record of a run; …",
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
    case("report", "report takes one folder, of a run or of runs such as a sweep's; got none"),
    case("report a b", "report takes one folder, of a run or of runs such as a sweep's; got a, b"),
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
        "report: run/report.html cannot be written (…); choose another folder",
        run__job_yaml=JOB_FILE,
        **{"run__report.html__file_txt": "a folder is in the way"},
    ),
    case("compare a", "compare takes two run folders; got a"),
    case("compare a b --htlm=x", "compare has no flag --htlm; did you mean '--html'?"),
    case(
        "compare a all",
        "compare: a: no such folder; give a run folder",
        "compare: all: not a run folder (no job.yaml in it)",
        all__b__job_yaml=JOB_FILE,
    ),
    case(
        "compare a b --html nosuch/page.html",
        "--html: nosuch/page.html cannot be written (…); choose another folder",
        a__job_yaml=JOB_FILE,
        b__job_yaml=JOB_FILE,
    ),
]

CASES = [*RUN_FOLDERS, *FROZEN_JOBS, *RESUMED, *REPRODUCE, *REPORTS]


@wrong_inputs(CASES)
def test_a_wrong_run_is_answered_by_one_message_and_leaves_nothing(
    wrong: Case, fmstune: Callable[..., Any], tmp_path: Path
) -> None:
    assert_answered(wrong, fmstune, tmp_path)
