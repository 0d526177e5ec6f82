"""FSDP and DDP for real, over two gloo processes: sharded, and equal to one process with the same global batch.

All jobs run one after the other in the same two processes (tests/fixtures/rank.py), and then in this one. Weights may
differ by 5e-6 and losses by 1e-6: the processes add the same numbers in another order.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fmstune import runner
from fmstune.config import freeze
from tests import small
from tests.composing import composed_tree
from tests.conftest import MadeOnce
from tests.fixtures import forked, process_state

pytestmark = pytest.mark.slow

QUICK = (
    "++data.max_rows=32",
    "++training.max_steps=3",
    "++training.logging_steps=1",
    "++training.save_strategy=no",
    "++training.learning_rate=1e-3",
    "++training.warmup_steps=0",
    "++training.gradient_accumulation_steps=1",
    # two batches for one process; of two, one has a row more
    "++evaluation.max_rows=3",
    "++evaluation.max_new_tokens=2",
    "++evaluation.batch_size=2",
    "++launcher.device=cpu",
)
LORA = ("peft=lora", "++peft.lora_dropout=0")
SAVES = ("++training.save_strategy=steps", "++training.save_steps=2")
EVALUATES = (
    *("++training.eval_strategy=steps", "++training.eval_steps=1", "++training.max_steps=2"),
    "++training.per_device_eval_batch_size=24",
)
PACKED = ("++training.packing=true", "++data.max_length=64", "++training.max_steps=2")
# what `model.dtype=auto` comes to on a GPU, for a full model and under an adapter
HALF = {
    "half": ("++training.bf16=true",),
    "half_lora": ("++training.bf16=true", "++model.dtype=bfloat16", *LORA, "++training.learning_rate=1e-2"),
}
RESUMED = ("full", "lora")
METHODS = {"full": ("peft=full",), "lora": LORA, "prompt": ("peft=prompt_tuning",)}
BATCHES = {1: "++training.per_device_train_batch_size=8", 2: "++training.per_device_train_batch_size=4"}
SINGLE = {
    **{f"one-{name}": (*words, BATCHES[1]) for name, words in METHODS.items()},
    "one-packed": (*PACKED, "++training.per_device_train_batch_size=2", "evaluation=none"),
    "one-evaluated": (*EVALUATES, BATCHES[1], "evaluation=none"),
    **{f"one-{name}": (*words, BATCHES[1]) for name, words in HALF.items()},
    "one-big_code": ("BIG_CODE", BATCHES[1], "evaluation=none"),
    "one-big_code_lora": ("BIG_CODE", *LORA, BATCHES[1], "evaluation=none"),
}
FSDP = ("launcher=fsdp", "++launcher.num_processes=2")
DDP = ("launcher=ddp", "++launcher.num_processes=2")
DOUBLE = {
    **{f"fsdp-{name}": (*FSDP, *words, BATCHES[2], *SAVES) for name, words in METHODS.items()},
    # in a folder of its own, where the base is evaluated again before the checkpoint is loaded
    "fsdp-resumed-full": (*FSDP, *METHODS["full"], BATCHES[2], "RESUMES fsdp-full"),
    "fsdp-resumed-lora": (*FSDP, *LORA, BATCHES[2], "evaluation=none", "RESUMES fsdp-lora"),
    **{f"ddp-{name}": (*DDP, *words, BATCHES[2]) for name, words in METHODS.items()},
    "fsdp-accumulated_recomputed": (
        *FSDP,
        "++training.per_device_train_batch_size=2",
        "++training.gradient_accumulation_steps=2",
        "++training.activation_checkpointing=true",
        "evaluation=none",
    ),
    "fsdp-packed": (*FSDP, *PACKED, "++training.per_device_train_batch_size=1", "evaluation=none"),
    "fsdp-evaluated": (*FSDP, *EVALUATES, BATCHES[2], "evaluation=none"),
    "fsdp-grad_op_every_copy": (
        *FSDP,
        "++launcher.sharding_strategy=shard_grad_op",
        "++launcher.cpu_ram_efficient_loading=false",
        BATCHES[2],
        "evaluation=none",
    ),
    **{f"fsdp-{name}": (*FSDP, *words, BATCHES[2]) for name, words in HALF.items()},
    "fsdp-big_code": (*FSDP, "BIG_CODE", BATCHES[2], "evaluation=none"),
    "fsdp-big_code_lora": (*FSDP, "BIG_CODE", *LORA, BATCHES[2], "evaluation=none"),
}
SAME = [
    *((f"{kind}-{name}", f"one-{name}") for kind in ("fsdp", "ddp") for name in METHODS),
    *((f"fsdp-resumed-{name}", f"one-{name}") for name in RESUMED),
    ("fsdp-accumulated_recomputed", "one-full"),
    ("fsdp-packed", "one-packed"),
    ("fsdp-grad_op_every_copy", "one-full"),
    ("fsdp-evaluated", "one-evaluated"),
    ("fsdp-big_code", "one-big_code"),
    ("fsdp-big_code_lora", "one-big_code_lora"),
]


@pytest.fixture(scope="module")
def runs(made_once: MadeOnce) -> Path:
    """The folder of all runs."""
    return made_once("fsdp", run_all)


def run_all(place: Path) -> None:
    big_code = small.save(place / "big_code", architecture=small.BIGCODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FMSTUNE_CACHE", str(place / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        for name, words in {**SINGLE, **DOUBLE}.items():
            freeze_into(place / name, words, big_code)
        two_processes(place, list(DOUBLE))
        for name in SINGLE:
            with process_state.kept():
                assert runner.main([str(place / name / "job.yaml")]) == 0, name


def freeze_into(folder: Path, words: Sequence[str], big_code: Path) -> None:
    model = ("model=causal_lm", f"++model.path={big_code}", "++model.layer_cls=GPTBigCodeBlock")
    given = [word for given in words for word in (model if given == "BIG_CODE" else (given,))]
    former = folder.parent / words[-1].removeprefix("RESUMES ")
    given = [f"++training.resume={former}/checkpoint-2" if one.startswith("RESUMES ") else one for one in given]
    # the words of a job come after those of all
    tree = composed_tree(*QUICK, *given)
    folder.mkdir()
    freeze.write(dataclasses.replace(freeze.freeze(tree).job, output_dir=str(folder)), folder / "job.yaml")


def two_processes(place: Path, names: Sequence[str]) -> None:
    words = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "tests.fixtures.rank"]
    done = forked.run([sys.executable, *words, *(place / name / "job.yaml" for name in names)], timeout=400)
    codes = {name: [(place / name / f"CODE.{rank}").read_text() for rank in (0, 1)] for name in names}
    assert codes == {name: ["0", "0"] for name in names}, done.stderr[-6000:]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = (folder / "model").glob("*.safetensors")
    return load_file(path)


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def logged(folder: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    # where the embedding grew, one process saves the tied output layer again under its own name
    assert other.keys() - one.keys() <= {"base_model.model.lm_head.weight"}
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=0, atol=5e-6, msg=lambda said, key=key: f"{key}: {said}")


@pytest.mark.parametrize(("two", "one"), SAME)
def test_two_processes_do_what_one_does_with_the_same_global_batch(runs: Path, two: str, one: str) -> None:
    assert_same(weights(runs / two), weights(runs / one))
    losses = logged(runs / two, "loss")
    assert losses == pytest.approx(logged(runs / one, "loss"), abs=1e-6)
    assert losses[0] != losses[-1]


def test_the_matrix_is_whole() -> None:
    assert len(SAME) + len(HALF) == len(DOUBLE) == 16


@pytest.mark.parametrize("name", HALF)
def test_in_half_precision_two_processes_agree_as_far_as_it_goes(runs: Path, name: str) -> None:
    """One process keeps the sums between blocks in float32, under autocast; shards are computed with in bfloat16."""
    two, one = runs / f"fsdp-{name}", runs / f"one-{name}"
    losses = logged(two, "loss")
    assert losses == pytest.approx(logged(one, "loss"), rel=0.02)
    # no loss is itself rounded: float16 has three bits more than bfloat16
    assert all(float(torch.tensor(loss).half()) != loss for loss in losses)
    for which in ("base", "tuned"):
        assert summary(two)[which]["eval_loss"] == pytest.approx(summary(one)[which]["eval_loss"], rel=0.02)
    assert summary(two)["tuned"]["eval_loss"] < summary(two)["base"]["eval_loss"]
    kept, expected = weights(two), weights(one)
    assert kept.keys() == expected.keys()
    assert {weight.dtype for weight in kept.values()} == {torch.float32}


@pytest.mark.parametrize("name", [name for name in DOUBLE if name.startswith("fsdp")])
def test_fsdp_leaves_each_process_half_of_the_weights(runs: Path, name: str) -> None:
    found = summary(runs / name)
    assert found["processes"] == 2
    base = 2 if name == "fsdp-half_lora" else 4
    trained = 4 * (found["total_parameters"] - found["base_parameters"])
    for held in found["weight_bytes_by_rank"]:
        assert held == pytest.approx((base * found["base_parameters"] + trained) / 2, rel=0.01)


def test_ddp_leaves_each_process_all_weights(runs: Path) -> None:
    found = summary(runs / "ddp-full")
    assert found["weight_bytes_by_rank"] == [4 * found["total_parameters"]] * 2


@pytest.mark.parametrize("kind", ["fsdp", "ddp"])
@pytest.mark.parametrize("method", METHODS)
def test_base_and_tuned_are_scored_alike_and_all_rows_count_once(runs: Path, kind: str, method: str) -> None:
    two, one = summary(runs / f"{kind}-{method}"), summary(runs / f"one-{method}")
    for which in ("base", "tuned"):
        assert two[which]["rows"] == one[which]["rows"] == 3
        assert two[which]["exact_match"] == one[which]["exact_match"]
        assert two[which]["eval_loss"] == pytest.approx(one[which]["eval_loss"], abs=2e-6)
    assert two["tokens_trained_on"] == one["tokens_trained_on"]


def test_evaluation_between_steps_gives_the_same_loss(runs: Path) -> None:
    losses = logged(runs / "fsdp-evaluated", "eval_loss")
    assert len(losses) == 2
    assert losses == pytest.approx(logged(runs / "one-evaluated", "eval_loss"), abs=2e-6)


@pytest.mark.parametrize("name", ["fsdp-full", "fsdp-big_code"])
def test_a_sharded_model_is_saved_for_plain_transformers(runs: Path, name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(runs / name / "model")
    tokenizer = AutoTokenizer.from_pretrained(runs / name / "model")
    kept = weights(runs / name)
    assert sum(w.numel() for w in kept.values()) == summary(runs / name)["total_parameters"]
    state = model.state_dict()
    assert all(torch.equal(state[key], kept[key]) for key in kept)
    assert tokenizer.pad_token is not None


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_only_the_adapter_is_saved_of_a_sharded_model(runs: Path, method: str) -> None:
    found = summary(runs / f"fsdp-{method}")
    for folder in (runs / f"fsdp-{method}" / "model", runs / f"fsdp-{method}" / "checkpoint-3"):
        kept = load_file(folder / "adapter_model.safetensors")
        assert sum(w.numel() for w in kept.values()) == found["trainable_parameters"]


def test_the_main_process_alone_writes(runs: Path) -> None:
    names = {path.name for path in (runs / "fsdp-full").iterdir() if path.name != ".lock"}
    assert names == {"job.yaml", "lock.json", "metrics.jsonl", "loss.png", "summary.json", "model"} | {
        "samples.json",
        "checkpoint-2",
        "checkpoint-3",
        "CODE.0",
        "CODE.1",
        "log.txt",
        "rows.parquet",
        "fingerprints.json",
    }
    assert logged(runs / "fsdp-full", "step") == sorted(logged(runs / "fsdp-full", "step"))
