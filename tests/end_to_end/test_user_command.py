"""The user's own command, word for word, from a hub on this machine to a tuned adapter."""

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmstune import files
from tests.conftest import Result
from tests.fixtures.hub import Hub, served, use_in_this_process

SCRIPT = Path(sys.executable).with_name("fmstune")


def parquet(rows: list[dict[str, Any]]) -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), content)
    return content.getvalue()


@pytest.fixture
def small_hub() -> Iterator[Hub]:
    """The names of the user's command, with a tiny model and few rows; `ought/raft` has a script on its main branch."""
    model = {path.name: path.read_bytes() for path in Path(files.resolve("package:tiny_llama")).iterdir()}
    rows = [{"instruction": f"Say {n}", "input": "", "output": f"It is {n}.", "text": ""} for n in range(8)]
    labelled = parquet([{"Tweet text": f"parcel {n} is late", "ID": n, "Label": 1 + n % 2} for n in range(4)])
    unlabelled = parquet([{"Tweet text": "?", "ID": 0, "Label": 0}])
    raft = {
        "twitter_complaints/train/0000.parquet": labelled,
        "twitter_complaints/test/0000.parquet": unlabelled,
        "banking_77/train/0000.parquet": unlabelled,
    }
    repos = {
        "models/meta-llama/Llama-2-13b-hf": {"main": model},
        "datasets/tatsu-lab/alpaca": {"main": {"README.md": b"", "data/train-00000-of-00001.parquet": parquet(rows)}},
        "datasets/ought/raft": {"main": {"raft.py": b"1/0"}, "refs/convert/parquet": raft},
    }
    with served(Hub(repos)) as found:
        yield found


def command(endpoint: str, home: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_DATASETS_CACHE")}
    env = {**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    return subprocess.run([SCRIPT, *words], env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_users_command_word_for_word_makes_a_tuned_adapter(small_hub: Hub, tmp_path: Path) -> None:
    done = command(small_hub.endpoint, tmp_path / "hf", "model=llama2_13b", "peft=lora", "data=alpaca")

    assert done.returncode == 0, done.stderr
    assert "HTTP Request" not in done.stderr
    (run,) = (tmp_path / "runs").glob("*/*")
    adapter = json.loads((run / "model" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "meta-llama/Llama-2-13b-hf"
    assert sorted(adapter["target_modules"]) == ["q_proj", "v_proj"]
    assert (run / "model" / "adapter_model.safetensors").is_file()
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_the_complaints_of_raft_are_read_from_the_revision_without_a_script(
    small_hub: Hub, tmp_path: Path, fmstune: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_in_this_process(small_hub, tmp_path / "hf", monkeypatch, "")
    done = fmstune("show-data", "data=twitter_complaints", "--rows=2")

    assert done.code == 0, done.err
    assert re.findall(r"Label:.*?⟦[· ]*(.*?complaint)", done.out) == ["complaint", "no complaint"]
    assert "rows    4 = 4 trained + 0 dropped" in done.out
    assert not any("raft.py" in asked or "test" in asked for asked in small_hub.asked)


def test_without_a_network_the_users_command_says_all_that_is_missing_within_5_seconds(tmp_path: Path) -> None:
    begun = time.process_time(), time.monotonic()
    done = command("http://127.0.0.1:9", tmp_path / "hf", "model=llama2_13b", "peft=lora", "data=alpaca")

    assert done.returncode == 2
    assert time.monotonic() - begun[1] < 15  # 5 on a machine that does nothing else
    assert "1. model.path: no folder is named meta-llama/Llama-2-13b-hf, and " in done.stderr
    assert "2. data.train: no folder is named tatsu-lab/alpaca, and " in done.stderr
    assert "hf download" in done.stderr
    assert list(tmp_path.iterdir()) == []
