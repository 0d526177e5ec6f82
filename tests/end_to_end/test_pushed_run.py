"""A run is pushed to a hub on this machine, and asked, repeated and tuned further from there."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Result
from tests.fixtures.hub import Hub, served, use_in_this_process

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")]

TOKEN = "hf_" + "a" * 30
Run = Callable[..., Result]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with served(Hub({}, writers={TOKEN: "me"})) as found:
        use_in_this_process(found, tmp_path / "hf", monkeypatch, TOKEN)
        yield found


def test_a_pushed_run_is_asked_repeated_and_tuned_further(
    recorded_run: Path, hub: Hub, fmstune: Run, tmp_path: Path
) -> None:
    def done(*words: str) -> Result:
        found = fmstune(*words)
        assert found.code == 0, found.err
        assert TOKEN not in found.out + found.err
        return found

    sent = done("push", str(recorded_run), "--repo", "me/first")
    assert sent.out.startswith("left out of the files\n  job.yaml  output_dir: left out: it is about this machine\n")
    assert "parity: plain transformers serves " in sent.out and "Loading weights" not in sent.err
    assert "note: the base is a folder here (m), which others do not have; name its copy on the hub with" in sent.out
    files = hub.repos["models/me/first"]["main"]
    assert {"adapter_model.safetensors", "base.json", "job.yaml", "lock.json", "tokenizer.json"} <= files.keys()
    assert [name for name, content in files.items() if str(tmp_path).encode() in content] == []

    asked = ["--text", "### Text: parcel", "--max_new_tokens", "2"]
    done("generate", "--model", "me/first", "--out_file", "hub.json", *asked)
    done("generate", "--model", str(recorded_run), "--out_file", "here.json", *asked)
    assert json.loads(Path("hub.json").read_text()) == json.loads(Path("here.json").read_text())

    done("evaluate", "--model", "me/first", "--max_rows", "2", "--out_file", "hub.json")
    done("evaluate", "--model", str(recorded_run), "--max_rows", "2", "--out_file", "here.json")
    hub_rows, own_rows = (json.loads(Path(file).read_text()) for file in ("hub.json", "here.json"))
    assert hub_rows["answers"] == own_rows["answers"] and hub_rows["answers"][0].keys() == {"wanted", "tuned", "base"}

    again = done("train", "--from", "hf:me/first", "output_dir=again")
    assert again.summary["train_loss"] == json.loads((recorded_run / "summary.json").read_text())["train_loss"]
    assert json.loads(Path("again/lock.json").read_text())["command"] == "fmstune --from=hf:me/first output_dir=again"

    further = done("train", "--from", "hf:me/first", "model.adapter=me/first", "output_dir=further")
    assert further.summary["train_loss"] < again.summary["train_loss"]
