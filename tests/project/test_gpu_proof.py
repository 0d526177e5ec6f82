"""The proof on a GPU, as far as it can be tried without one."""

import json
import select
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from transformers import LlamaConfig

import gpu_checks
import gpu_proof
import gpu_speed
from gpu_jobs import Failed, OutOfTime, Place, Skipped, furthest, wait

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import gpu_wheels  # noqa: E402
import make_docs  # noqa: E402


def place(folder: Path, seconds: float = 60) -> Place:
    return Place("cpu", folder, time.monotonic() + seconds)


def raises(error: Exception) -> Any:
    def run() -> dict[str, Any]:
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "outcome"),
    [
        (lambda: {"tokens_per_second": 13_000.0}, {"outcome": "passed", "figures": {"tokens_per_second": 13_000.0}}),
        (raises(Failed("too slow")), {"outcome": "failed", "why": "too slow"}),
        (
            raises(Failed("too slow", {"times": 0.9})),
            {"outcome": "failed", "why": "too slow", "figures": {"times": 0.9}},
        ),
        (raises(OutOfTime("stopped after 3 s")), {"outcome": "not run", "why": "stopped after 3 s"}),
        (raises(Skipped("needs a card")), {"outcome": "skipped", "why": "needs a card"}),
        (raises(KeyError("summary")), {"outcome": "failed", "why": "KeyError: 'summary'"}),
    ],
)
def test_what_an_item_comes_to_is_recorded_and_ends_nothing(run: Any, outcome: dict[str, Any], tmp_path: Path) -> None:
    found = gpu_proof.attempt(place(tmp_path), ("checks", "one", run))
    assert found == {"part": "checks", "name": "one", "seconds": found["seconds"], **outcome}


def test_an_item_for_which_no_time_is_left_is_named(tmp_path: Path) -> None:
    found = gpu_proof.attempt(place(tmp_path, seconds=-1), ("speed", "4x1024", raises(AssertionError())))
    assert (found["outcome"], found["why"]) == ("not run", "no time was left")


@pytest.mark.parametrize(("limit", "left", "error"), [(0.05, 60, Failed), (60, 1, OutOfTime)])
def test_a_process_past_its_limit_is_killed_with_its_children(
    limit: float, left: float, error: type[Failed], tmp_path: Path
) -> None:
    process = subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True, stdout=subprocess.PIPE)
    with pytest.raises(Failed, match="stopped after") as raised:
        wait(place(tmp_path, left), "one", process, limit)
    assert raised.type is error
    # the pipe ends when the last process that could write into it is dead
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 5)[0] and process.stdout.read() == b""
    process.stdout.close()


def test_a_model_that_cannot_be_made_fails_each_item_that_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def child(_: Place, *argv: object) -> str:
        asked.append(argv)
        raise Failed("no space left")

    monkeypatch.setattr(gpu_speed, "child", child)
    for _ in range(2):
        with pytest.raises(Failed, match="no space left"):
            gpu_speed.model(place(tmp_path), "llama_1b")
    assert len(asked) == 1


def test_items_that_are_not_chosen_stay_as_an_earlier_call_found_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def batches(_: Place) -> list[gpu_proof.Batch]:
        calls.append(len(calls))
        names, run = (("checks", "dora"), ("plan", "dora"), ("checks", "fsdp2")), calls[-1]
        return [gpu_proof.Batch(2, [(part, name, lambda: {"run": run}) for part, name in names])]

    monkeypatch.setattr(gpu_proof, "batches", batches)
    monkeypatch.setattr(gpu_speed, "model", lambda at, shape: tmp_path)
    for only in (None, ["checks: d"], ["fsdp2"]):
        gpu_proof.prove(place(tmp_path), tmp_path, only)
    found = json.loads((tmp_path / "GPU.json").read_text())["items"]
    runs = {(item["part"], item["name"]): item["figures"]["run"] for item in found}
    assert runs == {("checks", "dora"): 1, ("plan", "dora"): 0, ("checks", "fsdp2"): 2}
    assert "3 of 3" not in (page := (tmp_path / "GPU.md").read_text()) and "2 of 2 passed." in page
    assert gpu_proof.earlier(tmp_path / "GPU.json", {"card": "another"}) == []


def test_the_share_of_a_cards_peak_counts_the_work_of_lora() -> None:
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, vocab_size=32000)
    # 13,000 tokens a second of it are 39 % of 989 TFLOP/s
    assert gpu_speed.lora_flops(config, 4096) == 29_649_534_976


def test_the_page_names_the_card_each_figure_and_each_failure() -> None:
    items = [
        {"part": "checks", "name": "fsdp2", "outcome": "failed", "why": "exit code 1 | trace", "seconds": 3.0},
        {"part": "speed", "name": "2x4096", "outcome": "passed", "figures": {"times": 1.25}, "seconds": 50.0},
    ]
    facts = {"device": "cuda", "card": "H100", "cuda": "13.0", "python": "3.12", "versions": {"torch": "2.11.0"}}
    page = gpu_proof.page({**facts, "outside_the_ranges": ["torch 2.11.0 (>=2.13.0)"], "items": items, "seconds": 60})
    assert page.startswith("# Proof on a GPU\n")
    assert "- card: H100; CUDA 13.0" in page and "- outside the ranges of pyproject.toml: torch 2.11.0" in page
    assert "| fsdp2 | failed | exit code 1 / trace | 3.0 |" in page
    assert "| 2x4096 | passed | times 1.25 | 50.0 |" in page
    assert "0 of 1 passed (1 failed)." in page and "1 of 1 passed." in page


@pytest.mark.parametrize(
    ("asked", "said"),
    [("torch>=2", None), ("torch>=99", " (>=99)"), ("no-such-package>=1", "no-such-package is not installed")],
)
def test_a_package_outside_its_range_is_named(asked: str, said: str | None) -> None:
    found = gpu_proof._outside(Requirement(asked))
    assert found == said or (said is not None and found is not None and found.endswith(said))


def test_a_trial_on_a_cpu_is_no_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_docs, "GPU", tmp_path / "GPU.json")
    assert make_docs.gpu() == make_docs.gpu_in_short() == make_docs.NOT_MEASURED
    facts = {"card": "H100", "cuda": "13.0", "versions": {"torch": "2.11.0"}}
    items = [{"part": "speed", "name": "2x4096", "outcome": "passed", "figures": {"tokens_per_second": 14_000.0}}]
    (tmp_path / "GPU.json").write_text(json.dumps({**facts, "device": "cpu", "items": items}))
    assert make_docs.gpu() == make_docs.NOT_MEASURED
    (tmp_path / "GPU.json").write_text(json.dumps({**facts, "device": "cuda", "items": items}))
    assert "| 2x4096 | passed | tokens per second 14,000.0 |" in make_docs.gpu()
    assert make_docs.gpu_in_short() == "On one H100: 1 passed, 0 failed, 0 skipped, 0 not run, of 1 items."


def test_two_runs_are_compared_step_by_step() -> None:
    one, other = ({"log": [{"loss": 2.0}, {"loss": last}]} for last in (1.1, 1.0))
    assert furthest(one, other, "loss") == pytest.approx(0.1)
    with pytest.raises(Failed, match="no step was logged"):
        furthest({"log": []}, {"log": []}, "loss")


def test_rows_are_those_of_their_name(tmp_path: Path) -> None:
    gpu_speed._write_rows(tmp_path / "rows.jsonl", gpu_speed.SPEEDS["shared beginnings of 512 tokens"].rows(3), 1)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [len(row["input_ids"]) for row in rows] == [560, 560, 560]
    assert len({tuple(row["input_ids"][:512]) for row in rows}) == 1
    assert len({tuple(row["input_ids"][512:]) for row in rows}) == 3
    assert all(row["labels"][:512] == [-100] * 512 and row["labels"][512:] == row["input_ids"][512:] for row in rows)


def test_a_thinned_wheel_has_one_library(tmp_path: Path) -> None:
    wheel = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    names = [
        "bitsandbytes/__init__.py",
        "bitsandbytes/libbitsandbytes_cuda130.so",
        "bitsandbytes/libbitsandbytes_rocm.so",
    ]
    with zipfile.ZipFile(wheel, "w") as whole:
        for name in names:
            whole.writestr(name, "")
    gpu_wheels.thin(wheel, "libbitsandbytes_cuda130.so")
    assert zipfile.ZipFile(wheel).namelist() == names[:2]


def test_the_proof_has_its_parts() -> None:
    assert len(gpu_checks.CHECKS) == len({check.__name__ for check in gpu_checks.CHECKS}) == 16
    assert len(gpu_speed.PLANNED) == 12 and len(gpu_speed.SPEEDS) == 7


def tried(folder: Path, *words: str) -> list[dict[str, Any]]:
    """What the proof says of these items, which must all pass."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gpu_proof", "--device", "cpu", "--out", str(folder), "--only", *words])
        gpu_proof.main()
    found: list[dict[str, Any]] = json.loads((folder / "GPU.json").read_text())["items"]
    assert {item["name"]: item["outcome"] for item in found} == dict.fromkeys(words, "passed")
    assert "A trial on a CPU" in (folder / "GPU.md").read_text()
    return found


@pytest.mark.slow
def test_a_check_runs_on_a_cpu(tmp_path: Path) -> None:
    (check,) = tried(tmp_path, "bf16_lora")
    assert check["part"] == "checks"


@pytest.mark.soak
def test_one_item_of_the_other_parts_runs_on_a_cpu(tmp_path: Path) -> None:
    found = tried(tmp_path, "full, 16 rows", "2x4096 with Liger")
    (speed,) = (item["figures"] for item in found if item["part"] == "speed")
    assert speed["tokens_per_second"] > 0 and speed["trl_tokens_per_second"] > 0
