"""A run as a Slurm job: its script as text; and a real Slurm of one node that runs, sweeps, preempts and requeues."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmstune.config import freeze
from fmstune.config.job import Job
from fmstune.errors import UserError
from fmstune.launch import slurm
from tests.cli.test_main import SCRIPT, wait_for
from tests.config.test_freeze import tree
from tests.conftest import FSDP_JOB, Result
from tests.fixtures import slurm_cluster

ON_TWO_NODES: dict[str, Any] = {
    "strategy": "fsdp",
    "num_machines": 2,
    "slurm": {"partition": "gpu", "time": "1-12", "gpus_per_node": "a100:4", "cpus_per_task": 8, "mem": "200G"},
}


def job(launcher: dict[str, Any], **changes: Any) -> Job:
    return freeze.freeze(tree(launcher=launcher, **changes)).job


def script(launcher: dict[str, Any]) -> list[str]:
    text = slurm.script(job(launcher), Path("/shared/my run"), ["--trust=mine"], place=Path("/home/me"))
    return text.splitlines()


def test_the_script_asks_for_what_the_job_says_and_starts_one_runner_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/env/bin/python")
    options = {**ON_TWO_NODES["slurm"], "sbatch": ["--exclusive"], "setup": ["ml cuda"]}
    assert script({**ON_TWO_NODES, "slurm": options}) == [
        "#!/bin/bash",
        "#SBATCH --job-name=try",
        '#SBATCH --output="/shared/my run/slurm-%j.log"',
        "#SBATCH --open-mode=append",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks=8",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --partition=gpu",
        "#SBATCH --time=1-12",
        "#SBATCH --gpus-per-node=a100:4",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=200G",
        "#SBATCH --signal=USR1@120",
        "#SBATCH --requeue",
        "#SBATCH --exclusive",
        "# written by fmstune from job.yaml in the same folder; submitted again, it resumes from the newest checkpoint",
        "",
        "cd /home/me || exit 1",
        "ml cuda",
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((SLURM_CPUS_ON_NODE / 4))}",
        "# scancel ends this shell too, which first says so in the run folder, and does not go back into the queue",
        "requeue=--requeue; trap requeue= TERM",
        "",
        "rm -rf '/shared/my run/.ranks' && mkdir '/shared/my run/.ranks' || exit 1",
        "export FMSTUNE_RANKS='/shared/my run/.ranks'",
        'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "export MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))",
        "# one process tokenises, then all of them start",
        "/env/bin/python -m fmstune.runner '/shared/my run/job.yaml' --prepare --trust=mine &&",
        "  srun --kill-on-bad-exit=1 --cpus-per-task=8 bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID "
        'WORLD_SIZE=$SLURM_NTASKS; trap "" TERM USR1 USR2; export FMSTUNE_AGENT=1 '
        'TORCHELASTIC_ERROR_FILE=$FMSTUNE_RANKS/$SLURM_PROCID.json; exec "$@"\' rank \\',
        "  /env/bin/python -m fmstune.launch.preemption /env/bin/python -m fmstune.runner '/shared/my run/job.yaml' "
        "--trust=mine",
        "code=$?",
        "",
        "# records how the run ended; 75 means that its checkpoint can be resumed",
        "/env/bin/python -m fmstune.launch.slurm_end '/shared/my run/job.yaml' $code $requeue",
        "code=$?",
        'if [ $code -eq 75 ] && [ "$requeue" ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        "exit $code",
    ]


def test_one_process_needs_no_rendezvous_and_no_other_to_tokenise() -> None:
    lines = script({"device": "cpu", "threads": 3, "slurm": {"requeue": False}})
    text = "\n".join(lines)
    assert "#SBATCH --ntasks=1" in lines
    assert {"export OMP_NUM_THREADS=3", "export CUDA_VISIBLE_DEVICES="} <= {*lines}
    assert "MASTER_ADDR" not in text and "RANK=" not in text and "--prepare" not in text
    assert "#SBATCH --no-requeue" in lines and "scontrol requeue" not in text


def test_a_percent_sign_in_a_folder_is_no_pattern() -> None:
    text = slurm.script(job({"slurm": {}}), Path("/shared/50%"))
    assert '#SBATCH --output="/shared/50%%/slurm-%j.log"' in text
    assert "runner /shared/50%/job.yaml" in text


def fake(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of the cluster that does what the text says, first on the PATH."""
    place = Path("bin")
    place.mkdir(exist_ok=True)
    (place / name).write_text(f"#!/bin/sh\n{text}\n")
    (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place.absolute()}:{os.environ['PATH']}")


def test_a_submitted_job_leaves_its_script_its_number_and_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    fake("sbatch", "echo '42;cluster'", monkeypatch)
    Path("run").mkdir()
    assert slurm.submit(job({"slurm": {}}), Path("run")) == "42"
    assert Path("run/job.sbatch").read_text() == slurm.script(job({"slurm": {}}), Path("run").resolve())
    assert Path("run/slurm_job_id").read_text() == "42\n"
    assert json.loads(Path("run/summary.json").read_text())["status"] == "queued"


@pytest.mark.parametrize("former", [None, '{"status": "interrupted"}'])
def test_where_sbatch_refuses_the_folder_is_as_it_was(former: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("sbatch", "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1", monkeypatch)
    Path("run").mkdir()
    if former is not None:
        Path("run/summary.json").write_text(former)
    with pytest.raises(UserError, match=r"launcher.slurm: sbatch refuses the job \(invalid partition specified: gpu\)"):
        slurm.submit(job({"slurm": {}}), Path("run"))
    left = {path.name: path.read_text() for path in Path("run").iterdir() if path.name != ".lock"}
    assert left == ({} if former is None else {"summary.json": former})


def test_a_job_that_waits_or_runs_is_not_submitted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("run").mkdir()
    Path("run/slurm_job_id").write_text("42\n")
    fake("squeue", "echo PENDING", monkeypatch)
    with pytest.raises(UserError, match="run is the run of Slurm job 42, which is PENDING; wait for it"):
        slurm.submit(job({"slurm": {}}), Path("run"))
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    slurm.raise_if_queued(Path("run"))


def test_a_job_that_has_ended_is_submitted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("run").mkdir()
    Path("run/slurm_job_id").write_text("42\n")
    fake("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", monkeypatch)
    fake("sbatch", "echo 43", monkeypatch)
    assert slurm.submit(job({"slurm": {}}), Path("run")) == "43"


def test_without_sbatch_nothing_is_made(fmstune: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = fmstune("launcher=slurm", "launcher.num_processes=2", "output_dir=run")
    assert (done.code, done.out) == (2, "")
    assert "launcher.slurm: no sbatch on the PATH; submit from a machine of the cluster" in done.err
    assert not Path("run").exists()


@pytest.mark.slow
def test_the_check_shows_the_script_and_submits_nothing(fmstune: Callable[..., Result]) -> None:
    done = fmstune("check", "launcher=slurm", "launcher.num_processes=2", "data.max_rows=4", "output_dir=run")
    assert done.code == 0, done.err
    plan, _, text = done.out.partition("no problems found\n\n")
    assert "sharded over 2" in plan
    assert text.startswith("#!/bin/bash\n#SBATCH --job-name=fmstune\n") and text.endswith("exit $code\n")
    assert "the plan is for a device of this machine" in done.err
    assert not Path("run").exists()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration of a Slurm that runs."""
    why = slurm_cluster.missing()
    if why is not None:
        pytest.skip(why)
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm")) as conf:
        yield conf


SMALL = ("launcher.device=cpu", "launcher.threads=1", "data.max_rows=64", "evaluation=none")


def command(folder: Path, *words: str, conf: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """A command of a user's in this folder, of fmstune's unless the first word is another's."""
    env = {**os.environ, "FMSTUNE_CACHE": str(folder / "cache"), **({} if conf is None else {"SLURM_CONF": str(conf)})}
    own = shutil.which(words[0]) is None
    argv = [str(SCRIPT), *words] if own else [*words]
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=200)


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def log(run: Path) -> str:
    return "\n".join(path.read_text() for path in run.glob("slurm-*.log"))


def wait_for_status(run: Path, status: str, seconds: float = 180) -> None:
    ends = {status, "failed", "finished"}
    wait_for(lambda: summary(run)["status"] in ends, f"the status {status} of {run}", seconds)
    assert summary(run)["status"] == status, log(run)


@pytest.mark.slow
def test_each_point_of_a_sweep_is_a_slurm_job(cluster: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    swept = ("-m", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=low", "training.learning_rate=1e-3,1e-4")
    quick = (*SMALL, "training.max_steps=2", "training.save_strategy=no", "output_dir=sweep")
    done = command(tmp_path, *swept, *quick, conf=cluster)
    assert done.returncode == 0, done.stderr + done.stdout
    folders = [tmp_path / "sweep" / f"{number}-learning_rate={rate}" for number, rate in enumerate(("0.001", "0.0001"))]
    assert [summary(folder)["status"] for folder in folders] == ["finished", "finished"]
    assert re.findall(r"^\d .* finished  training.learning_rate=([\d.]+)", done.stdout, re.MULTILINE) == [
        "0.001",
        "0.0001",
    ]
    assert "the points are jobs, which log into sweep/.submitit/*" in done.stderr

    def completed() -> int:
        jobs = command(tmp_path, "scontrol", "show", "job", "--oneliner", conf=cluster).stdout.splitlines()
        return sum("ArrayTaskId=" in one and "Partition=low" in one and "JobState=COMPLETED" in one for one in jobs)

    # a point's summary is written before Slurm has ended its job
    wait_for(lambda: completed() == 2, "both jobs of the array", 60)


@pytest.mark.slow
def test_a_preempted_job_of_two_tasks_is_requeued_and_comes_to_the_weights_of_two_processes(
    cluster: Path, two_processes: Path, tmp_path: Path
) -> None:
    words = ("launcher=slurm", *FSDP_JOB[1:])
    done = command(tmp_path, *words, conf=cluster)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("submitted: Slurm job ")
    twice = command(tmp_path, *words, conf=cluster)
    assert twice.returncode == 2
    assert "output_dir: run is the run of Slurm job " in twice.stderr
    run = tmp_path / "run"
    wait_for(lambda: heeding(run) == 2, "both processes", 90)
    high = command(tmp_path, "sbatch", "--partition=high", "--ntasks=2", "--wrap=true", conf=cluster)
    assert high.returncode == 0, high.stderr
    wait_for(lambda: summary(run)["error"] is not None or summary(run)["status"] == "finished", "the preemption", 120)
    wait_for_status(run, "queued")
    said = summary(run)["error"]["message"]
    assert said.startswith("preempted; a checkpoint was saved at step ")
    wait_for_status(run, "running")
    wait_for_status(run, "finished")
    ended = summary(run)
    assert 0 < ended["steps_here"] < ended["steps"] == 24
    assert len(set(ended["weight_bytes_by_rank"])) == 1
    wait_for(lambda: "finished: " in log(run), "the report in the log", 30)
    assert said in log(run)
    weights = Path("run", "model", "model.safetensors")
    assert (tmp_path / weights).read_bytes() == (two_processes / weights).read_bytes()


def heeding(run: Path) -> int:
    """How many processes of the run would take notice of SIGTERM (proc(5), SigCgt)."""
    count = 0
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "fmstune.runner" in words and str(run / "job.yaml") in words and "--prepare" not in words:
            found = re.search(r"^SigCgt:\s+(\w+)", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
            count += found is not None and bool(int(found[1], 16) >> (signal.SIGTERM - 1) & 1)
    return count
