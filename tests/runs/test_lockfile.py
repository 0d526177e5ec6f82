"""`lock.json` holds what a rerun needs, and no secret."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from fmstune.config.job import Model
from fmstune.runs import lockfile
from tests import small


@pytest.mark.slow
def test_a_run_records_files_rows_tokens_and_machine(recorded_run: Path) -> None:
    lock = json.loads((recorded_run / "lock.json").read_text())
    digest = hashlib.sha256(Path("rows.jsonl").read_bytes()).hexdigest()
    assert lock["data_hashes"] == {"data.train": digest}
    assert lock["data_files"] == {"data.train": {"rows.jsonl": digest}}
    assert lock["data_rows"] == {"data.train": 8}
    assert len(lock["tokens"]["data.train"]) == 64
    assert set(lock["model_files"]["model.path"]) >= {"config.json", "model.safetensors", "tokenizer.json"}
    weights = hashlib.sha256(Path("m/model.safetensors").read_bytes()).hexdigest()
    assert lock["model_files"]["model.path"]["model.safetensors"] == weights
    assert (lock["processes"], lock["threads"], lock["device"]) == (1, 1, "cpu")
    assert {"python", "cpu", "cpu_capability", "platform", "git_commit"} <= set(lock)
    summary = json.loads((recorded_run / "summary.json").read_text())
    tuned = hashlib.sha256((recorded_run / "model" / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert summary["weights_sha256"] == {"adapter_model.safetensors": tuned}


def test_no_variable_that_may_hold_a_secret_is_recorded() -> None:
    words = ("TOKEN", "KEY", "SECRET", "PASSWORD")
    assert not [name for name in lockfile.ENVIRONMENT if any(name.endswith(word) for word in words)]


def test_a_large_file_is_hashed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"a" * 2_000_000)
    read: list[Path] = []
    whole = lockfile.sha256_of
    monkeypatch.setattr(lockfile, "sha256_of", lambda path: (read.append(path), whole(path))[1])
    assert lockfile.hash_file(file) == lockfile.hash_file(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(read) == 1
    file.write_bytes(b"b" * 2_000_000)
    os.utime(file, ns=(1, 1))
    assert lockfile.hash_file(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(read) == 2


def test_a_model_of_the_hub_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, digest = "c" * 40, "d" * 64
    repo = tmp_path / "models--owner--name"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (repo / "blobs").mkdir()
    (repo / "blobs" / digest).write_bytes(b"weights")
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").symlink_to(repo / "blobs" / digest)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = Model(path="owner/name", tokenizer=str(small.save(tmp_path / "other")))
    assert lockfile._commits(model) == {"model.path": commit}
    files = lockfile.model_files(model)
    assert files["model.path"]["model.safetensors"] == digest
    assert set(files) == {"model.path", "model.tokenizer"}
    assert lockfile.model_folders(Model(path="owner/unknown")) == {}
