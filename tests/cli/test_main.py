"""The console script as a user has it: processes, signals, exit codes, sweeps."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fmstune.cli import doctor, help
from fmstune.config.requests import Verb
from tests import ROOT
from tests.conftest import Result
from tests.fixtures import forked

SCRIPT = Path(sys.executable).with_name("fmstune")
QUICK = (
    "training.max_steps=2",
    "training.gradient_accumulation_steps=1",
    "training.save_strategy=no",
    "evaluation.max_rows=4",
    "data.max_rows=16",
)
LONG = ("training.max_steps=100000", "training.save_strategy=no", "evaluation=none", "output_dir=run")
Run = Callable[..., Result]


def command(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([SCRIPT, *words], capture_output=True, text=True, timeout=300)


def test_help_is_one_screen_with_verbs_groups_choices_and_examples(fmstune: Run) -> None:
    done = fmstune("--help")
    assert done.code == 0
    assert len(done.out.splitlines()) <= 64
    assert max(map(len, done.out.splitlines())) <= 110
    for word in ("show-data", "tiny_llama", "prompt_tuning", "twitter_complaints", "examples", "--config-dir"):
        assert word in done.out
    assert "fields/" not in done.out


def test_help_of_a_verb_is_about_that_verb(fmstune: Run) -> None:
    shown = fmstune("show-data", "--help").out
    assert shown.startswith("usage: fmstune show-data [GROUP=CHOICE ...] [FIELD=VALUE ...]\n")
    assert "--html FILE" in shown and "tiny_llama" in shown and "from-fms" not in shown
    looked_back = fmstune("report", "--help").out
    assert looked_back.startswith("usage: fmstune report RUN_OR_SWEEP\n")
    assert "--metric NAME" in looked_back and "tiny_llama" not in looked_back


@pytest.mark.slow
def test_every_verb_has_a_help_of_one_screen() -> None:
    for verb in Verb:
        lines = help.help_text(verb).splitlines()
        assert lines[0].startswith(f"usage: fmstune {verb.value}"), verb
        assert len(lines) <= 55 and max(map(len, lines)) <= 120, verb


def test_train_that_is_named_has_a_help_of_its_own(fmstune: Run) -> None:
    assert "--resume SWEEP_DIR" in fmstune("train", "--help").out
    assert "--resume SWEEP_DIR" not in fmstune("--help").out


def test_the_composed_job_is_printed_as_yaml(tmp_path: Path) -> None:
    done = command("--cfg", "job", "peft=lora", "training.adam_beta1=0.8")
    assert done.returncode == 0
    assert "  _target_: peft.LoraConfig\n" in done.stdout
    assert "  adam_beta1: 0.8\n" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_part_of_the_job_is_printed_with_package(fmstune: Run) -> None:
    done = fmstune("--cfg", "job", "-p", "launcher")
    fields = ("device: auto", "device_gib: null", "device_tflops: null", "price_per_hour: null", "threads: null")
    assert done.out.startswith("\n".join(("# @package launcher", *fields, "")))
    assert "objective" not in done.out


def test_hydras_own_info_works() -> None:
    assert "fields/job" in command("--info", "defaults").stdout


@pytest.mark.sampled(2)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_shows_plain_characters(encoding: str) -> None:
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    words = [SCRIPT, "--cfg", "job", "--sources", "peft=lora"]
    done = subprocess.run(words, env=env, capture_output=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"peft/lora.yaml > ${model.lora_targets}" in done.stdout


def test_version() -> None:
    assert command("--version").stdout == "fmstune 0.1.0\n"


@pytest.mark.slow
def test_a_users_groups_stand_beside_the_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "my" / "peft").mkdir(parents=True)
    (tmp_path / "my" / "peft" / "wide.yaml").write_text(
        "_target_: peft.LoraConfig\nr: 64\ntarget_modules: all-linear\n"
    )
    done = command("--cfg", "job", "--config-dir", "my", "peft=wide", "-p", "peft.r")
    assert (done.returncode, done.stdout) == (0, "# @package peft.r\n64\n")
    assert "wide" in command("--help", "--config-dir", "my").stdout


def test_flags_may_stand_anywhere_between_the_fields(fmstune: Run, tmp_path: Path) -> None:
    (tmp_path / "my" / "peft").mkdir(parents=True)
    (tmp_path / "my" / "peft" / "wide.yaml").write_text("_target_: peft.LoraConfig\nr: 64\n")
    done = fmstune("seed=3", "--config-dir", "my", "peft=wide", "-c", "job", "name=x", "--resolve", "peft.lora_alpha=5")
    assert (done.code, done.err) == (0, "")
    assert [line for line in done.out.splitlines() if line.split(":")[0].strip() in ("r", "name", "lora_alpha")] == [
        "name: x",
        "  r: 64",
        "  lora_alpha: 5",
    ]


def test_a_users_file_with_a_shipped_name_is_not_passed_over_in_silence(fmstune: Run, tmp_path: Path) -> None:
    (tmp_path / "my" / "peft").mkdir(parents=True)
    (tmp_path / "my" / "peft" / "lora.yaml").write_text("_target_: peft.LoraConfig\nr: 64\n")
    done = fmstune("--cfg", "job", "--config-dir", "my", "peft=lora", "-p", "peft.r")
    assert done.out == "# @package peft.r\n8\n"
    assert "note: my/peft/lora.yaml is not used: peft=lora is the shipped one; choose another name" in done.err


def test_modules_are_listed_from_the_configuration_alone(fmstune: Run) -> None:
    done = fmstune("modules", "model=llama2_7b")
    assert done.code == 0
    assert "q_proj" in done.out
    assert "11008" in done.out.replace(",", "")
    assert "lm_head" not in done.out


@pytest.mark.slow
def test_a_13b_model_is_checked_offline_with_exact_counts(fmstune: Run, rows_file: Callable[..., Path]) -> None:
    rows = rows_file([{"instruction": "Add", "input": "1 2", "output": "3"}] * 5, "alpaca.json")
    done = fmstune("check", "model=llama2_13b", "peft=lora", "data=alpaca", f"data.train={rows}")
    assert done.code == 0, done.err
    assert "13,015,864,320" in done.out
    assert "6,553,600" in done.out
    assert "estimated from characters" in done.out
    assert list(Path().glob("runs")) == []


@pytest.mark.slow
def test_a_gpu_that_is_not_here_can_be_planned_for(fmstune: Run, rows_file: Callable[..., Path]) -> None:
    rows = rows_file([{"instruction": "Add", "input": "", "output": "3"}], "alpaca.json")
    words = ("model=llama2_7b", "peft=lora", "data=alpaca", f"data.train={rows}", "launcher.device=cuda")
    done = fmstune("check", *words)
    assert done.code == 0, done.err
    assert "bfloat16 weights, float32 trained, bfloat16 autocast" in done.out
    assert "note: no cuda device here" in done.out
    assert "launcher.device_gib=80 says what fits into one of 80 GiB" in done.out
    small = fmstune("check", *words, "launcher.device_gib=7", "launcher=fsdp", "launcher.num_processes=2").out
    assert " of 7.00 GiB; what would help:" in small
    assert re.search(r"launcher.num_processes=4 \(more devices\): \d\.\d+ GiB, fits", small)
    assert fmstune("train", *words).code == 2


def test_rows_are_shown_and_written_with_their_masks(fmstune: Run) -> None:
    done = fmstune("show-data", "--rows", "1", "--json", "rows.json", "data.max_rows=5")
    assert done.code == 0, done.err
    assert "row 1: " in done.out
    assert "row 2: " not in done.out
    rows = json.loads(Path("rows.json").read_text(encoding="utf-8"))
    assert len(rows) == 5
    assert set(rows[0]) == {"input_ids", "labels", "trained_text"}
    assert all(row["trained_text"].endswith("complaint</s>") for row in rows)


@pytest.mark.slow
def test_the_doctor_names_versions_devices_extras_and_the_cache(doctor_said: str) -> None:
    for word in ("transformers", "cpu", "flash-attn", "aim", "cache"):
        assert word in doctor_said


def test_the_doctor_looks_at_every_extra_but_those_of_contributors() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*doctor.EXTRAS, "dev", "docs"} == set(extras)


@pytest.mark.slow
def test_the_doctor_clears_the_cache(fmstune: Run, tmp_path: Path) -> None:
    assert fmstune("show-data", "--rows", "1", "data.max_rows=5").code == 0
    assert list((tmp_path / "cache").rglob("*.arrow"))
    done = command("doctor", "--clear-cache")
    assert done.stdout.startswith("deleted ")
    assert not list((tmp_path / "cache").rglob("*.arrow"))


@pytest.mark.slow
def test_a_run_ends_with_base_against_tuned_and_exit_code_0() -> None:
    done = command(*QUICK)
    assert done.returncode == 0, done.stderr
    assert "exact match" in done.stdout
    (folder,) = Path("runs").glob("*/*")
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_a_sweep_runs_every_point_in_one_folder_also_after_a_failed_one() -> None:
    sweep = ("-m", *QUICK, "evaluation=none", "output_dir=sweep", "training.learning_rate=1e-3,-1,1e-4")
    done = forked.run([SCRIPT, *sweep])
    assert done.returncode == 2
    assert "training.learning_rate must be above 0 and below 10, got -1" in done.stderr
    assert "1 of 3 points failed" in done.stderr
    folders = sorted(path.name for path in Path("sweep").iterdir() if path.is_dir())
    assert folders == ["0-learning_rate=0.001", "2-learning_rate=0.0001"]
    rates = [(Path("sweep") / name / "job.yaml").read_text() for name in folders]
    assert ["learning_rate: 0.001" in text for text in rates] == [True, False]
    assert not Path("runs").exists()
    assert not list(Path().glob("*.yaml"))


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 150) -> None:
    """Wait as long as it may take on a machine that does much else."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited for {what} in vain"
        time.sleep(0.05)


def started(words: Sequence[str]) -> forked.Started:
    """A long run that has logged its first step."""
    process = forked.Started([SCRIPT, *words], session=True)
    wait_for(lambda: Path("run/metrics.jsonl").exists() or process.poll() is not None, "the first step")
    assert process.poll() is None, process.communicate()
    return process


def status() -> str:
    return str(json.loads(Path("run/summary.json").read_text())["status"])


def assert_interrupted(process: forked.Started, number: signal.Signals, folder: Path) -> None:
    """Send this signal: the run says that it is interrupted, and leaves no model."""
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    assert f"interrupted: {folder}" in out
    assert "Traceback" not in err
    assert not [path for path in folder.iterdir() if "model" in path.name]


def runner_pid(parent: int) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return int(children[0])


def runner_pid_of(process: forked.Started) -> int:
    """The runner of a parent that has only just claimed its folder."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(lambda: children.read_text().strip() != "", "the runner's start")
    return runner_pid(process.pid)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_the_runner_does_not_outlive_a_killed_parent_and_none_starts_without_it() -> None:
    process = started(LONG)
    runner = runner_pid(process.pid)
    process.kill()
    process.communicate(timeout=120)
    wait_for(lambda: not alive(runner), "the runner's end")
    assert status() == "interrupted"
    orphan = {**os.environ, "FMSTUNE_PARENT": "999999"}
    assert forked.run([sys.executable, "-m", "fmstune.runner", "run/job.yaml"], env=orphan).returncode == 1


@pytest.mark.slow
def test_a_second_runner_is_kept_from_the_folder_and_sigterm_ends_the_first() -> None:
    process = started(LONG)
    second = forked.run([sys.executable, "-m", "fmstune.runner", "run/job.yaml"])
    assert second.returncode == 2
    assert "run: another process runs this job" in second.stderr
    assert status() == "running"
    assert_interrupted(process, signal.SIGTERM, Path("run"))


@pytest.mark.slow
def test_a_runner_that_is_killed_is_recorded_by_its_parent() -> None:
    process = started(LONG)
    os.kill(runner_pid(process.pid), signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode == 1
    assert status() == "failed"


def test_the_parent_starts_fast_because_it_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom fmstune.__main__ import main\nsys.argv[1:] = ['--cfg', 'job']\n"
        "try:\n    main()\nfinally:\n"
        "    print([m for m in ('torch', 'transformers', 'trl', 'peft', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def processes_of(session: int) -> list[str]:
    """The command lines of the processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # behind the name in brackets: state, parent, group, session
            if (folder / "stat").read_text().rpartition(")")[2].split()[3] == str(session):
                found.append((folder / "cmdline").read_text())
    return found


def check_in_session(*words: str) -> "subprocess.Popen[str]":
    """`fmstune check`, started anew, whose runner has begun and still imports."""
    argv = [SCRIPT, "check", *words]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: any("--early" in one for one in processes_of(process.pid)), "the runner's start")
    return process


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")
def test_a_check_that_cannot_be_composed_ends_the_runner_that_has_begun() -> None:
    process = check_in_session("seed=x")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err == "fmstune: error: seed must be a whole number, got 'x'\n"
    assert processes_of(process.pid) == []
    assert list(Path().iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")
@pytest.mark.parametrize("send", [os.killpg, os.kill], ids=["from the terminal", "to the parent"])
def test_ctrl_c_while_a_check_is_composed_ends_it_and_the_runner_that_has_begun(
    send: Callable[[int, int], None],
) -> None:
    process = check_in_session()
    send(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")
    assert processes_of(process.pid) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")
def test_the_runner_of_a_check_does_not_outlive_a_parent_that_is_killed() -> None:
    process = check_in_session()
    process.kill()
    assert process.communicate(timeout=60) == ("", "")
    wait_for(lambda: processes_of(process.pid) == [], "the runner's end")


@pytest.mark.slow
def test_a_check_is_what_it_is_without_a_runner_that_begins_early(fmstune: Run, forked_runners: None) -> None:
    done = command("check", "peft=lora", "data.max_rows=8")
    assert done.returncode == 0, done.stderr
    assert done.stdout == fmstune("check", "peft=lora", "data.max_rows=8").out


@pytest.mark.slow
def test_a_parent_that_dies_before_training_gives_the_folder_back() -> None:
    process = forked.Started([SCRIPT, *LONG])
    wait_for(lambda: Path("run/job.yaml").exists(), "the claim")
    runner = runner_pid_of(process)
    process.kill()
    process.wait()
    wait_for(lambda: not alive(runner), "the runner's end")
    assert not Path("run").exists()


@pytest.mark.slow
def test_ctrl_c_ends_the_run_of_a_sweep_in_order_and_starts_no_further_point() -> None:
    words = ("-m", *(word for word in LONG if not word.startswith("output_dir")), "seed=1,2", "output_dir=sweep")
    process = forked.Started([SCRIPT, *words])
    wait_for(lambda: Path("sweep/0-seed=1/metrics.jsonl").exists(), "the first step")
    assert_interrupted(process, signal.SIGINT, Path("sweep/0-seed=1"))
    assert [path.name for path in Path("sweep").iterdir() if path.is_dir()] == ["0-seed=1"]


def test_a_command_collects_no_garbage_when_it_ends() -> None:
    # what is registered first is done last
    source = "import atexit, gc, sys; atexit.register(lambda: print(gc.get_freeze_count() > 1000))"
    source += "; sys.argv = ['fmstune', '--version']; from fmstune.cli import main; main.main()"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["True"]


@pytest.mark.parametrize(("reader", "code", "shown"), [("cat", 3, "shown, then what is due"), ("true", 1, "")])
def test_a_process_that_takes_nothing_apart_does_what_is_due_and_shows_what_it_has_said(
    reader: str, code: int, shown: str
) -> None:
    source = """
import atexit
from fmstune.launch import parent
class Freed:
    def __del__(self):
        print("taken apart")
parent.take_nothing_apart()
atexit.register(print, "then what is due", end="")
kept = Freed()
print("shown,", end=" ")
parent.leave(3)
"""
    # the shell waits for a reader that reads nothing
    done = subprocess.run(
        ["bash", "-c", f"(sleep 0.2; exec {sys.executable} -c '{source}') | {reader}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, shown, "")


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    done = subprocess.run(
        f"{SCRIPT} check data.max_rows=4 | head -1", shell=True, capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
