"""What is sent of a run, an adapter and a merged model, and what is said to stay."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fmstune.config.after_training.sharing import Push
from fmstune.errors import UserError
from fmstune.serving.parcel import Parcel, pack_model
from fmstune.serving.redaction import change_lines

CARD = "---\nbase_model: llama\nlibrary_name: peft\n---\n\n# first\n\n`fmstune data.train=/gpfs/me/rows.jsonl`\n"


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that tuned an adapter on a base in a folder."""
    job = {
        "name": "first",
        "output_dir": "/gpfs/me/first",
        "model": {"path": "/gpfs/me/llama"},
        "data": {"train": "r.csv"},
    }
    model = {
        "README.md": CARD,
        "adapter_config.json": {"base_model_name_or_path": "/gpfs/me/llama", "r": 8},
        "adapter_model.safetensors": "weights",
        "base.json": {"id": "/gpfs/me/llama", "local": True, "revision": None, "config_sha256": "1", "config": {}},
        "chat_template.jinja": "{{ messages }}",
        "tokenizer.json": '{"/home/me/x": 1}',
        "training_args.bin": "pickle",
    }
    files = {
        "job.yaml": yaml.safe_dump(job),
        "lock.json": {"command": "fmstune data.train=/gpfs/me/rows.jsonl", "seed": 1},
        "log.txt": "",
        "checkpoint-3/model.safetensors": "",
        **{f"model/{name}": content for name, content in model.items()},
    }
    return write(tmp_path / "first", files)


def packed(place: Path, **flags: Any) -> Parcel:
    return pack_model(Push(run=str(place), repo="me/first", **flags))


def text(parcel: Parcel, name: str) -> str:
    (file,) = (file for file in parcel.files if file.name == name)
    return (file.path.read_bytes() if file.content is None else file.content).decode()


def test_a_run_is_its_model_with_tokenizer_template_card_job_and_lock_and_all_else_is_listed(run: Path) -> None:
    parcel = packed(run)
    assert [file.name for file in parcel.files] == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
        "chat_template.jinja",
        "job.yaml",
        "lock.json",
        "tokenizer.json",
    ]
    assert parcel.left_out == ("training_args.bin", "checkpoint-3/", "log.txt")
    assert parcel.is_adapter


def test_no_file_names_a_folder_of_this_machine_and_each_change_is_listed(run: Path) -> None:
    parcel = packed(run)
    # a tokenizer is sent as it is: its texts are tokens
    sent = {file.name: text(parcel, file.name) for file in parcel.files if file.name != "tokenizer.json"}
    assert [name for name, content in sent.items() if "/gpfs" in content] == []
    assert change_lines(parcel.changes) == [
        "job.yaml  output_dir: left out: it is about this machine",
        "job.yaml  model.path: /gpfs/me/llama → llama",
        "lock.json  command: secrets and paths of this machine are left out of the command",
        "adapter_config.json  base_model_name_or_path: /gpfs/me/llama → llama",
        "base.json  id: /gpfs/me/llama → llama",
        "README.md: secrets and paths of this machine are left out of the text",
        "README.md  base_model: left out: a folder of this machine",
    ]
    assert text(parcel, "README.md") == ("---\nlibrary_name: peft\n---\n\n# first\n\n`fmstune data.train=rows.jsonl`\n")
    assert parcel.local_base == "/gpfs/me/llama"


def test_the_hub_id_of_the_base_is_named_in_every_file_that_names_the_base(run: Path) -> None:
    parcel = packed(run, base_model_name_or_path="meta-llama/Llama-2-7b")
    assert json.loads(text(parcel, "adapter_config.json"))["base_model_name_or_path"] == "meta-llama/Llama-2-7b"
    base = json.loads(text(parcel, "base.json"))
    assert (base["id"], base["local"], base["config_sha256"]) == ("meta-llama/Llama-2-7b", False, "1")
    assert yaml.safe_load(text(parcel, "job.yaml"))["model"]["path"] == "meta-llama/Llama-2-7b"
    assert "base_model: meta-llama/Llama-2-7b\n" in text(parcel, "README.md")
    assert parcel.local_base is None


def test_a_base_of_the_hub_is_named_as_it_is_and_no_other(run: Path) -> None:
    base = {"id": "meta-llama/Llama-2-7b", "local": False, "revision": None, "config_sha256": "1", "config": {}}
    write(run, {"model/base.json": base, "model/README.md": CARD.replace("llama", "meta-llama/Llama-2-7b")})
    assert packed(run).base == "meta-llama/Llama-2-7b"
    assert "base_model: meta-llama/Llama-2-7b\n" in text(packed(run), "README.md")
    with pytest.raises(UserError, match="--base_model_name_or_path is me/other, and the model was tuned on meta-llama"):
        packed(run, base_model_name_or_path="me/other")


def test_the_folder_of_the_model_alone_takes_job_and_lock_of_its_run(run: Path) -> None:
    assert {"job.yaml", "lock.json"} <= {file.name for file in packed(run / "model").files}


def test_a_merged_model_takes_job_and_lock_of_the_run_of_its_one_adapter(run: Path, tmp_path: Path) -> None:
    record = {"adapters": [{"model": str(run / "model"), "weight": 1.0}], "base": {"id": "a/b", "local": False}}
    merged = write(tmp_path / "merged", {"config.json": {}, "model.safetensors": "w", "merge.json": record})
    parcel = packed(merged)
    assert {"job.yaml", "lock.json", "merge.json"} <= {file.name for file in parcel.files}
    assert not parcel.is_adapter
    assert json.loads(text(parcel, "merge.json"))["adapters"][0]["model"] == "first/model"

    record["adapters"] = record["adapters"] * 2
    write(merged, {"merge.json": record})
    assert "job.yaml" not in {file.name for file in packed(merged).files}


def test_what_needs_no_change_is_sent_from_its_file(run: Path) -> None:
    contents = {file.name: file.content for file in packed(run).files}
    assert [name for name, content in contents.items() if content is None] == [
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
    ]


def test_a_folder_without_weights_is_refused(run: Path) -> None:
    (run / "model" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"^push: .*first/model has no weights \(\*\.safetensors\); give a run, an"):
        packed(run)


def test_a_file_that_cannot_be_read_is_named(run: Path) -> None:
    (run / "model" / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json: cannot be read as JSON"):
        packed(run)
