"""Sweeps whose points Hydra's other launchers run: checked here first, and what became of them comes back."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fmstune import hardware
from fmstune.config.overrides import parse_overrides
from fmstune.errors import UserError
from fmstune.runs import processes, sweep_folder
from fmstune.sweeps import callback
from tests.cli.test_main import QUICK, SCRIPT


def test_points_of_another_launcher_are_checked_here_first() -> None:
    given = parse_overrides(["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "++seed=1,2"])
    assert callback.runs_elsewhere(given)
    assert callback.without_launcher(given) == [given[-1]]
    assert not callback.runs_elsewhere(parse_overrides(["hydra/launcher=basic", "++seed=1,2"]))
    assert not callback.runs_elsewhere(parse_overrides(["++seed=1,2"]))


def test_another_launcher_without_a_sweep_is_refused() -> None:
    with pytest.raises(UserError, match="hydra/launcher=submitit_slurm runs the points of a sweep; add -m"):
        callback.raise_if_no_sweep(parse_overrides(["hydra/launcher=submitit_slurm"]))


def test_the_folder_of_a_sweep_that_others_run_records_the_process_that_waits() -> None:
    hydra = {"sweep": {"dir": "sweep"}, "runtime": {"choices": {"hydra/launcher": "joblib"}}}
    with callback.Sweep.waiting:
        callback.Sweep().on_multirun_start(OmegaConf.create({"hydra": hydra}))
        found = processes.read_process(Path("sweep"))
        assert found is not None and found.pid == os.getpid() and found.lives
    assert processes.read_process(Path("sweep")) is None
    callback.Sweep.away.clear()


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runners")
def test_a_point_is_a_process_of_submitits_and_its_code_comes_back() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    Path("rows.jsonl").write_text('{"output": "no template here"}\n' * 4)
    words = ("-m", "hydra/launcher=submitit_local", "output_dir=sweep", "seed=1")
    rows = ("data=text", "data.train=rows.jsonl", 'data.response_template="Label:"', "evaluation=none")
    done = subprocess.run([SCRIPT, *words, *rows], capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (log,) = Path("sweep/.submitit").rglob("*_log.err")
    assert "response_template" in log.read_text()


@pytest.mark.slow
def test_a_wrong_point_is_named_before_any_is_submitted() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    words = ("-m", "hydra/launcher=submitit_local", "output_dir=sweep", "training.learning_rate=1e-3,-1,-2")
    two = ("launcher=slurm", "launcher.num_processes=2")
    done = subprocess.run([SCRIPT, *words, *two], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "3 errors" in done.stderr
    assert "launcher.slurm: hydra/launcher makes each point a job already; leave one of the two out" in done.stderr
    assert "training.learning_rate must be above 0 and below 10, got -1" in done.stderr
    assert "training.learning_rate must be above 0 and below 10, got -2" in done.stderr
    assert not Path("sweep").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runners")
def test_a_search_runs_its_points_side_by_side_and_shares_the_cores_out() -> None:
    pytest.importorskip("optuna")
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    words = ("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra/sweeper=optuna", "output_dir=sweep")
    search = ("hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", "training.learning_rate=interval(1e-4,1e-3)")
    done = subprocess.run(
        [SCRIPT, *words, *search, *QUICK, "evaluation=none"], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = sweep_folder.read_points(Path("sweep"))
    assert [(point.number, point.status) for point in found] == [(0, "finished"), (1, "finished")]
    assert "best: sweep/" in done.stdout
    for point in found:
        lock = json.loads(Path("sweep", point.folder, "lock.json").read_text())
        assert lock["threads"] == max(hardware.cores() // 2, 1)


@pytest.mark.parametrize(
    ("words", "points"),
    [
        (("training.learning_rate=1e-4,1e-3,1e-2", "peft.r=4,8", "seed=1"), 6),
        (("training.learning_rate=1e-4", "peft.r=range(1,5)"), 4),
        (("seed=1",), 1),
    ],
)
def test_the_points_that_share_the_risk_are_those_of_the_grid(words: tuple[str, ...], points: int) -> None:
    assert callback.count_points(None, parse_overrides(words)) == points
