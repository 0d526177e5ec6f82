"""Jobs from Python: composed, shown and checked by the command, in processes of its own."""

import copy
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import fmstune
import fmstune as python  # where a fixture has the name
from fmstune.errors import Problem
from tests.conftest import Result

IMPORTS = """
import sys
import fmstune
heavy = ("torch", "transformers", "trl", "peft", "datasets", "hydra", "omegaconf", "numpy", "pandas", "yaml")
print([name for name in heavy if name in sys.modules])
for name in fmstune.__all__:
    getattr(fmstune, name)
print([name for name in heavy if name in sys.modules])
"""


def test_importing_fmstune_imports_nothing_heavy_and_its_names_import_no_hydra() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert done.stdout == "[]\n['yaml']\n", done.stderr


def test_all_public_names_are_listed_for_an_editor() -> None:
    assert {*fmstune.__all__} <= {*dir(fmstune)}
    with pytest.raises(AttributeError, match="module 'fmstune' has no attribute 'trian'"):
        _ = fmstune.trian  # type: ignore[attr-defined]


def test_a_job_shows_its_values_and_what_has_set_them() -> None:
    job = fmstune.compose("model=tiny_llama", "peft=lora", "training.max_steps=20", "seed=7")
    assert (job.training.max_steps, job.training["max_steps"], job.seed, job.peft.r) == (20, 20, 7, 8)
    assert "seed: 7\n" in job.to_yaml()
    lines = [line.split() for line in repr(job).splitlines()]
    assert ["training.max_steps", "20", "command", "line"] in lines
    assert ["peft.r", "8", "peft/lora.yaml"] in lines
    assert {"check", "train", "training", "peft"} <= {*dir(job)} and "learning_rate" in dir(job.training)
    for copied in (copy.deepcopy(job), pickle.loads(pickle.dumps(job))):
        assert copied == job and copied.training.max_steps == 20
    assert copy.copy(job.training) == pickle.loads(pickle.dumps(job.training)) == job.training
    with pytest.raises(AttributeError, match="job.training has no max_stepz; did you mean 'max_steps'?"):
        _ = job.training.max_stepz
    with pytest.raises(AttributeError, match="a job does not change; .* job.with_\\('training.max_steps=3'\\)"):
        job.training.max_steps = 3


def test_with_puts_a_word_in_the_place_of_a_former_one() -> None:
    job = fmstune.compose("peft=lora", "+training.max_steps=20")
    again = job.with_("training.max_steps=5", "seed=2")
    assert again.words == ("peft=lora", "training.max_steps=5", "seed=2")
    assert (again.training.max_steps, again.seed, job.training.max_steps) == (5, 2, 20)
    assert again != job


def test_an_error_has_all_problems_and_says_what_the_command_prints(fmstune: Callable[..., Result]) -> None:
    words = ("peft=lorra", "training.max_stepz=3", "model.dtype=float17")
    with pytest.raises(python.UserError) as raised:
        python.compose(*words)
    run = fmstune(*words)
    assert run.code == 2 and f"{raised.value}\n" == run.err
    assert [problem.field for problem in raised.value.problems] == ["peft", "model.dtype", "training.max_stepz"]


def test_several_values_are_a_sweep() -> None:
    with pytest.raises(fmstune.UserError) as raised:
        fmstune.compose("peft=lora,full", "seed=1,2")
    hint = "fmstune.sweep runs a job for each value; a list is written in brackets"
    assert [str(problem) for problem in raised.value.problems] == [f"peft=lora,full: {hint}", f"seed=1,2: {hint}"]


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runners")
def test_a_job_that_is_tried_in_small_gives_its_small_run() -> None:
    run = fmstune.compose("debug=smoke", "peft=lora", "launcher.threads=1", "output_dir=x").train()
    assert run.folder == Path("x-smoke/run").absolute() and run.status == "finished"


def test_flags_are_arguments() -> None:
    with pytest.raises(fmstune.UserError) as raised:
        fmstune.compose("--config-dir=x", 3, "seed=1")  # type: ignore[arg-type]
    assert [problem.field for problem in raised.value.problems] == ["--config-dir=x", "3"]
    with pytest.raises(fmstune.UserError, match="--config-dir: .*nowhere is not a folder"):
        fmstune.compose(config_dir="nowhere")


def test_a_job_that_its_words_no_longer_make_is_not_checked(tmp_path: Path) -> None:
    """What was shown is what runs, also where a file of the groups is edited between two cells of a notebook."""
    group = tmp_path / "groups" / "peft"
    group.mkdir(parents=True)
    (group / "small.yaml").write_text("_target_: peft.LoraConfig\nr: 4\n")
    job = fmstune.compose("peft=small", config_dir="groups")
    assert job.peft.r == 4
    (group / "small.yaml").write_text("_target_: peft.LoraConfig\nr: 2\n")
    with pytest.raises(fmstune.UserError) as raised:
        job.check()
    hint = "a file of the groups or the environment has changed; compose it again"
    assert raised.value.problems == (Problem("peft.r", f"is 2 now, and was 4 when the job was composed: {hint}"),)


def test_jobs_composed_at_once_in_threads_are_each_their_own_and_nothing_of_the_process_changes() -> None:
    before = (os.getcwd(), dict(os.environ), [*sys.argv], signal.getsignal(signal.SIGINT))
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(fmstune.compose, ("seed=1", "seed=2"))
    assert (one.seed, other.seed) == (1, 2)
    assert before == (os.getcwd(), dict(os.environ), [*sys.argv], signal.getsignal(signal.SIGINT))
