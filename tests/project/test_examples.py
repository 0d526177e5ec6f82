# SPDX-License-Identifier: Apache-2.0
"""Each example runs: its own script, in small by default and as it is under soak."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tools import make_complaints

from fmstune.migrate.shell import shell_commands
from tests import ROOT
from tests.conftest import Result

PLACE = ROOT / "examples"
NAMES = sorted(path.parent.name for path in PLACE.glob("*/run.sh"))
SMALL = (
    "training.max_steps=1",
    "training.per_device_train_batch_size=2",
    "training.gradient_accumulation_steps=1",
    "data.max_rows=8",
    "evaluation.max_rows=1",
    "evaluation.max_new_tokens=2",
    "launcher.threads=1",
)
"""In place of `"$@"`."""
NOT_COMPARED = ("fsdp_two_processes", "learning_rate_sweep")
"""Where base and tuned model are not compared in small: the others show that it works."""
REAL = {"tiny_llama": "llama2_7b", "tiny_gpt_bigcode": "gpt_bigcode"}
"""The word to change for the real model."""


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the example that the test is about, to work in."""
    name = request.getfixturevalue("name") if "name" in request.fixturenames else "prompt_tuning_twitter_complaints"
    place = tmp_path / name
    shutil.copytree(PLACE / name, place)
    monkeypatch.chdir(place)
    return place


def commands(folder: Path) -> list[list[str]]:
    """The commands of its script, as a shell reads them."""
    return [list(command.words) for command in shell_commands((folder / "run.sh").read_text(), {})]


def test_the_examples_are_these() -> None:
    assert NAMES == [
        "fsdp_two_processes",
        "full_gpt_bigcode",
        "learning_rate_sweep",
        "lora_alpaca",
        "prompt_tuning_twitter_complaints",
    ]
    listed = (PLACE / "README.md").read_text()
    assert all(f"({name}/README.md)" in listed for name in NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs_in_small(name: str, folder: Path, fmstune: Callable[..., Result]) -> None:
    small = (*SMALL, "evaluation=none") if name in NOT_COMPARED else SMALL
    found = commands(folder)
    assert any(words[0] == "fmstune" for words in found)
    for program, *words in found:
        if program == "python":
            subprocess.run([sys.executable, *words], check=True)
            continue
        assert program == "fmstune"
        result = fmstune(*(word for given in words for word in (small if given == "$@" else (given,))))
        assert result.code == 0, f"{words}\n{result.out}\n{result.err}"
    models = list(folder.glob("out/model/*.safetensors"))
    points = list(folder.glob("sweep/*/model/*.safetensors"))
    assert (len(models), len(points)) == ((0, 3) if name == "learning_rate_sweep" else (1, 0))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NAMES)
def test_one_word_makes_it_the_real_model(name: str, folder: Path, fmstune: Callable[..., Result]) -> None:
    """The job of the real model composes, and its fields are checked; its weights are not here."""
    text = (folder / "run.sh").read_text()
    (word,) = re.findall(r"^MODEL=(\w+)$", text, re.MULTILINE)
    (folder / "run.sh").write_text(text.replace(f"MODEL={word}\n", f"MODEL={REAL[word]}\n"))
    words = next(words for words in commands(folder) if words[0] == "fmstune")
    result = fmstune("--cfg", "job", *(one for one in words[1:] if one not in ("-m", "$@") and "=3e-4," not in one))
    assert result.code == 0, result.err
    assert f"model_type: {'gpt_bigcode' if 'gpt' in word else 'llama'}" in result.out


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_the_script_itself_runs(name: str, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(["sh", "run.sh"], env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_readme_shows_how_its_script_is_started() -> None:
    for name in NAMES:
        text = (PLACE / name / "README.md").read_text()
        assert re.findall(r"```bash\n(.*?)```", text, re.DOTALL) == ["sh run.sh\n"], name
        files = set(re.findall(r"`([\w.]+\.(?:csv|json|jsonl|py))`", text)) - {"train.csv", "alpaca_data.json"}
        assert all((PLACE / name / file).is_file() for file in files if "summary" not in file and "metrics" not in file)


@cache
def messages() -> list[make_complaints.Message]:
    return make_complaints.splits()[0][:6]


def converted(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "convert.py", source, "rows.json"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("as_json", [False, True], ids=["csv", "json"])
@pytest.mark.parametrize("by_number", [False, True], ids=["words", "numbers"])
def test_the_rows_are_those_of_the_early_recipe(folder: Path, as_json: bool, by_number: bool) -> None:
    """From RAFT's columns to the `output` that tools/make_complaints.py writes for the same messages."""
    names = {"complaint": 1, "no complaint": 2} if by_number else {}
    rows = [{"Tweet text": m.text, "ID": n, "Label": names.get(m.label, m.label)} for n, m in enumerate(messages())]
    rows.append({"Tweet text": "not yet read", "ID": 6, "Label": 0 if by_number else "Unlabeled"})
    if as_json:
        (folder / "raft").write_text(json.dumps(rows))
    else:
        lines = [f'"{row["Tweet text"]}",{row["ID"]},{row["Label"]}\n' for row in rows]
        (folder / "raft").write_text("Tweet text,ID,Label\n" + "".join(lines))
    done = converted(folder, "raft")
    assert done.stdout == "rows.json: 6 rows; 1 without a label were left out\n", done.stderr
    found = [json.loads(line) for line in (folder / "rows.json").read_text().splitlines()]
    assert [row["output"] for row in found] == [json.loads(make_complaints.line(m))["output"] for m in messages()]
    assert [row["text_label"] for row in found] == [m.label for m in messages()]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "raft: no column 'Tweet text'; the columns are a, b"),
        ("Tweet text,Label\nx,maybe\n", "raft: the label 'maybe' is none of Unlabeled, complaint, no complaint, …"),
    ],
)
def test_other_rows_are_refused(folder: Path, text: str, says: str) -> None:
    (folder / "raft").write_text(text)
    done = converted(folder, "raft")
    assert done.returncode == 2 and done.stderr.startswith(says.partition("…")[0])
    assert not (folder / "rows.json").exists()
