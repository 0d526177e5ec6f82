"""Runs to be proven: on texts and on conversations, each trained once."""

from pathlib import Path

import pytest

from fmstune.config import freeze
from fmstune.models.tuned import locate
from fmstune.serving.parity import plain, prove
from tests.conftest import MadeOnce, in_this_process


@pytest.fixture
def run(
    capfd: pytest.CaptureFixture[str], made_once: MadeOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The folder of a run on the shipped model, trained once."""

    def train(place: Path) -> None:
        monkeypatch.chdir(place)
        words = ("training.max_steps=40", "training.per_device_train_batch_size=4", "training.save_strategy=no")
        with pytest.MonkeyPatch.context() as patch:
            done = in_this_process(capfd, patch, [])("peft=lora", *words, "evaluation=none", "output_dir=run")
        assert done.code == 0, done.err
        monkeypatch.chdir(tmp_path)

    return made_once("parity_run", train) / "run"


@pytest.fixture
def known(run: Path) -> prove.Known:
    """Training's side, of a few rows."""
    return known_of(run)


@pytest.fixture
def known_chat(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> prove.Known:
    """Training's side of the run on conversations, whose rows lie beside it."""
    monkeypatch.chdir(tuned.parent)
    return known_of(tuned)


def known_of(run: Path) -> prove.Known:
    job = freeze.read(run / "job.yaml").job
    return prove.training_side(job, locate(str(run / "model"), None, force=False), 6)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What plain transformers answers, without the seconds that a process of its own imports them."""
    monkeypatch.setattr(prove, "answer_of_plain", plain.answer_plainly)
