"""A checkpoint is resumed from only where each of its files is as it was saved."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from fmstune.checks.model import model_problems
from fmstune.checks.requests import generation_problems
from fmstune.config.freeze import freeze
from fmstune.config.requests import Generation
from fmstune.errors import UserError
from fmstune.runs import checkpoints, manifest
from fmstune.runs.checkpoints import CheckpointFacts
from fmstune.training.trainer import RunMixin
from tests.composing import composed_tree

FILES = (
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "config.json",
    "trainer_state.json",
    "figures.json",
    "deeper/part.distcp",
)


def saved(run: Path, step: int) -> Path:
    """A checkpoint as a run writes it."""
    made = run / checkpoints.SAVING / f"checkpoint-{step}"
    (made / "deeper").mkdir(parents=True)
    save_file({"weight": torch.arange(256.0)}, made / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.arange(256.0)}, made / name)
    (made / "config.json").write_text('{"hidden_size": 64}')
    (made / "figures.json").write_text('{"tokens": 3}')
    (made / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))
    (made / "deeper/part.distcp").write_bytes(b"sharded state")
    checkpoints.publish_checkpoint(made, run / made.name, CheckpointFacts(step, 1, 8, sharded=False))
    return run / made.name


def flip(path: Path) -> None:
    """One bit of the file's middle, where neither size nor time shows it."""
    content, facts = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def fill(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size))


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = (flip, cut, empty, fill, to_folder, Path.unlink)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_taken(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    before, newest = saved(tmp_path, 2), saved(tmp_path, 4)
    damage(newest / name)
    chosen = checkpoints.choose_whole(tmp_path)
    assert chosen.checkpoint == before
    (note,) = chosen.notes
    assert note.startswith(f"{newest} is damaged and passed over: {name} ")


@pytest.mark.parametrize("damage", [flip, cut, empty, fill, to_folder])
def test_a_damaged_manifest_is_damage_too(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    before, newest = saved(tmp_path, 2), saved(tmp_path, 10)
    damage(newest / checkpoints.MARKER)
    chosen = checkpoints.choose_whole(tmp_path)
    assert (chosen.checkpoint, len(chosen.notes)) == (before, 1)
    assert f"{newest} is damaged and passed over: complete.json " in chosen.notes[0]


def test_every_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    whole = saved(tmp_path, 2)
    text = (whole / checkpoints.MARKER).read_bytes()
    noticed = 0
    for place in range(len(text)):
        changed = bytearray(text)
        changed[place] ^= 1
        (whole / checkpoints.MARKER).write_bytes(changed)
        noticed += bool(manifest.find_damage(whole))
    # a blank may become another, and a new line a blank
    assert noticed >= len(text) - sum(chr(byte).isspace() for byte in text)


def test_a_run_without_a_whole_checkpoint_is_refused_with_the_damage_of_each(tmp_path: Path) -> None:
    flip(saved(tmp_path, 2) / "optimizer.pt")
    (saved(tmp_path, 4) / "scheduler.pt").unlink()
    with pytest.raises(UserError) as raised:
        checkpoints.choose_whole(tmp_path)
    assert str(raised.value) == (
        f"output_dir: no checkpoint in {tmp_path} is whole, so the run cannot be resumed (checkpoint-4: scheduler.pt "
        "is missing; checkpoint-2: optimizer.pt has changed since it was saved (its checksum differs)); remove these "
        "folders to start again at step 0, or choose another output_dir"
    )


def test_a_checkpoint_that_the_job_names_is_refused_where_it_is_damaged(tmp_path: Path) -> None:
    named = saved(tmp_path, 2)
    assert checkpoints.check_whole(named) == (named, ())
    cut(named / "model.safetensors")
    size = (named / "model.safetensors").stat().st_size
    with pytest.raises(
        UserError, match=f"is damaged: model.safetensors has {size} bytes and not [0-9,]+; give another"
    ):
        checkpoints.check_whole(named)


@pytest.mark.parametrize("planted", ["pytorch_model.bin", "scaler.pt", "adapter_model.safetensors", "deeper/x.pkl"])
def test_a_file_that_would_be_loaded_and_was_not_saved_is_damage(tmp_path: Path, planted: str) -> None:
    named = saved(tmp_path, 2)
    (named / planted).write_bytes(b"x")
    (named / "notes.txt").write_text("of the user")
    assert manifest.find_damage(named) == [f"{planted} was not there when the checkpoint was saved"]


def test_an_unfinished_checkpoint_is_passed_over_with_a_note(tmp_path: Path) -> None:
    (saved(tmp_path, 4) / checkpoints.MARKER).unlink()
    (tmp_path / "checkpoint-6").write_text("a file")
    checkpoint, notes = checkpoints.choose_whole(tmp_path)
    assert checkpoint is None
    assert notes == (f"{tmp_path}/checkpoint-4 is passed over: it has no complete.json, so it is not complete",)


def test_a_checkpoint_of_the_model_alone_is_passed_over_with_a_note(tmp_path: Path) -> None:
    made = tmp_path / "made"
    shutil.copytree(saved(tmp_path, 2), made)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (made / name).unlink()
    shutil.rmtree(tmp_path / "checkpoint-2")
    checkpoints.publish_checkpoint(made, tmp_path / "checkpoint-2", CheckpointFacts(2, 1, 8, sharded=False))
    checkpoint, (note,) = checkpoints.choose_whole(tmp_path)
    assert checkpoint is None
    assert note.endswith("is passed over: training.save_only_model left out optimizer and schedule")


OLD = '{"step": 2, "processes": 1, "rows_per_step": 8, "sharded": false}\n'
"""The manifest of a checkpoint before it listed the files."""


@pytest.mark.parametrize("marker", [OLD, None])
def test_a_checkpoint_without_checksums_is_opened_and_taken_with_a_note(tmp_path: Path, marker: str | None) -> None:
    old = saved(tmp_path, 2)
    (old / checkpoints.MARKER).unlink()
    if marker is not None:
        (old / checkpoints.MARKER).write_text(marker)
    assert checkpoints.check_whole(old) == (
        old,
        (f"{old} has no checksums, so its files were opened and not compared",),
    )


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, damage) for name in FILES[:-3] for damage in (cut, empty, fill)),
        *((name, damage) for name in FILES[:4] for damage in (Path.unlink, to_folder)),
        # torch's files have checksums of their own
        *((name, flip) for name in FILES[1:4]),
    ],
)
def test_most_damage_shows_without_checksums_too(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    old = saved(tmp_path, 2)
    (old / "deeper/part.distcp").unlink()
    (old / checkpoints.MARKER).write_text(OLD)
    damage(old / name)
    with pytest.raises(UserError, match=f"is damaged: {name} "):
        checkpoints.check_whole(old)


def test_a_damaged_checkpoint_is_neither_tuned_further_nor_taken_as_the_best(tmp_path: Path) -> None:
    whole = saved(tmp_path, 2)
    job = freeze(composed_tree(f"model.path={whole}")).job
    damaged = f"{whole} is a damaged checkpoint (model.safetensors "
    assert not any(damaged in str(one) for one in model_problems(job))
    flip(whole / "model.safetensors")
    assert any(str(one).startswith(f"model.path: {damaged}") for one in model_problems(job))
    best = SimpleNamespace(state=SimpleNamespace(best_model_checkpoint=str(whole)))
    with pytest.raises(UserError, match=r"^training\.load_best_model_at_end: .*checkpoint-2, the best checkpoint"):
        RunMixin._load_best_model(best)


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_model_is_not_read_from_a_damaged_checkpoint(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """`generate`, `evaluate` and `merge` read the model alone: what else is damaged does not matter to them."""
    whole = saved(tmp_path, 2)
    flip(whole / "optimizer.pt")
    asked = Generation(model=str(whole), text="x")
    assert [str(one) for one in generation_problems(asked, None)] == []
    damage(whole / "model.safetensors")
    (problem,) = map(str, generation_problems(asked, None))
    assert problem.startswith(f"--model: {whole} is a damaged checkpoint (model.safetensors ")
    (whole / checkpoints.MARKER).unlink()
    assert [str(one) for one in generation_problems(asked, None)] == []
