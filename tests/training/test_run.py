"""Training for real on the tiny model: what a run leaves, and that it can be read back, repeated and trusted."""

import json
import re
from collections.abc import Callable
from itertools import cycle, product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from fmstune import files as package_files
from fmstune.cli.help import choices
from fmstune.errors import UserError
from tests import small
from tests.conftest import Result

pytestmark = pytest.mark.slow

Run = Callable[..., Result]
TWO_STEPS = ("training.max_steps=2", "training.per_device_train_batch_size=4", "launcher.threads=1")
QUICK = (*TWO_STEPS, "evaluation.max_rows=4", "evaluation.max_new_tokens=4", "data.max_rows=16")
TINY = package_files.resolve("package:tiny_llama")


MADE: dict[str, Result] = {}
AS_MADE = ("training.learning_rate=1e-2", "training.warmup_steps=0", "seed=7")


@pytest.fixture
def made(fmstune: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """The run of a method that many tests look at, at a rate that changes every weight; trained once."""

    def run(peft: str) -> Result:
        if peft not in MADE:
            place = tmp_path_factory.mktemp(peft) / "run"
            MADE[peft] = fmstune(f"peft={peft}", *QUICK, *AS_MADE, f"output_dir={place}")
        return MADE[peft]

    return run


@pytest.mark.parametrize("peft", ["full", "lora", "prompt_tuning"])
def test_a_run_leaves_all_that_is_promised(made: Run, peft: str) -> None:
    run = made(peft)
    assert run.code == 0, run.err
    names = {path.name for path in run.folder.iterdir() if path.name != ".lock"}
    assert names == {"job.yaml", "lock.json", "metrics.jsonl", "loss.png", "summary.json", "model", "checkpoint-2"} | {
        "samples.json",
        "sources.json",
        "log.txt",
        "rows.parquet",
        "fingerprints.json",
    }
    assert not list((run.folder / "model").rglob("training_args.bin"))
    assert not [p for p in (run.folder / "model").rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]
    assert (run.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "held-out rows: 4" in run.out


SPEED = ("tokens_per_second", "tokens_per_second_per_device", "tflops_per_device")


def test_the_summary_says_what_came_out_and_what_it_took(made: Run) -> None:
    summary = made("lora").summary
    assert summary["status"] == "finished"
    assert summary["error"] is None
    assert summary["steps"] == 2
    for key in ("train_loss", "tokens_per_second", "peak_memory_bytes", "load_seconds", "train_seconds"):
        assert summary[key] > 0, key
    assert summary["total_parameters"] == summary["plan"]["base_parameters"] + summary["plan"]["adapter_parameters"]
    assert summary["trainable_parameters"] == summary["plan"]["trainable_parameters"]
    # the plan takes steps of rows of the mean length
    assert summary["model_flops"] == pytest.approx(summary["plan"]["speed"]["flops"], rel=0.05)
    assert "mfu" not in summary
    assert summary["tflops_per_device"] * 1e12 / summary["tokens_per_second_per_device"] == pytest.approx(
        summary["model_flops"] / summary["tokens_trained_on"], rel=0.05
    )
    for scores in (summary["base"], summary["tuned"]):
        assert scores["eval_loss"] > 0
        assert 0 <= scores["exact_match"] <= 1
        assert scores["rows"] == 4
    ledger = summary["data"]["train"]
    assert ledger["rows_read"] == ledger["rows_trained"] + ledger["rows_dropped"] == 16
    assert 0 < summary["tokens_padded"] < summary["tokens_trained_on"]


def test_metrics_hold_one_object_a_logged_step_with_trainers_keys(made: Run) -> None:
    run = made("full")
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert all({"epoch", "loss", "learning_rate", "grad_norm", *SPEED} <= set(line) for line in steps)


def test_a_full_model_loads_in_plain_transformers_and_differs_from_the_base(made: Run) -> None:
    run = made("full")
    tuned = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    base = AutoModelForCausalLM.from_pretrained(TINY)
    assert AutoTokenizer.from_pretrained(run.folder / "model").pad_token == "<pad>"
    changed = [not torch.equal(a, b.to(a.dtype)) for a, b in zip(tuned.parameters(), base.parameters(), strict=True)]
    assert all(changed)


@pytest.mark.parametrize("peft", ["full", "lora"])
def test_the_weights_can_be_read_by_whom_the_configuration_can_be(made: Run, peft: str) -> None:
    folder = made(peft).folder
    for place in (folder / "model", *folder.glob("checkpoint-*")):
        files = [*place.glob("*config.json"), *place.glob("*.safetensors")]
        assert len(files) >= 3 and len({path.stat().st_mode for path in files}) == 1


@pytest.mark.parametrize("peft", ["lora", "prompt_tuning"])
def test_an_adapter_loads_in_plain_peft_and_holds_nothing_of_the_base(made: Run, peft: str) -> None:
    run = made(peft)
    weights = load_file(run.folder / "model" / "adapter_model.safetensors")
    assert sum(w.numel() for w in weights.values()) == run.summary["trainable_parameters"]
    tuned = AutoPeftModelForCausalLM.from_pretrained(run.folder / "model")
    assert isinstance(tuned, PeftModel)
    ids = torch.tensor([[1, 20, 30, 40]])
    tuned.eval()
    with torch.no_grad(), tuned.disable_adapter():
        before = tuned(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    with torch.no_grad():
        after = tuned(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert not torch.allclose(before[:, -1], after[:, -1])


def test_the_base_is_scored_without_its_adapter(made: Run) -> None:
    """A new prompt is random, so that the base answers differently with it; a new LoRA adapter changes nothing."""
    losses = [made(peft).summary["base"]["eval_loss"] for peft in ("full", "lora", "prompt_tuning")]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-4)


def test_the_loss_falls_and_only_answers_are_learnt(fmstune: Run) -> None:
    run = fmstune("training.max_steps=30", "evaluation=none", "launcher.threads=1", "training.learning_rate=1e-3")
    before, after = (
        _losses_on_held_out(AutoModelForCausalLM.from_pretrained(place), 16) for place in (TINY, run.folder / "model")
    )
    assert after.answer < 0.5 * before.answer
    # trained too, the tokens of the prompt would be learnt as well
    assert after.prompt > before.prompt
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_second_run_does_not_tokenise_again_and_a_changed_template_does(fmstune: Run) -> None:
    words = (*TWO_STEPS, "evaluation=none", "data.max_rows=8", "training.save_strategy=no")
    first = fmstune(*words, "output_dir=first")
    second = fmstune(*words, "output_dir=second")
    third = fmstune(*words, "output_dir=third", 'data.response_template="### Label:"')
    assert [run.summary["data"]["from_cache"] for run in (first, second, third)] == [False, True, False]


@pytest.mark.parametrize("peft", ["full", "lora"])
def test_from_repeats_a_run_bit_for_bit(fmstune: Run, made: Run, peft: str) -> None:
    first = made(peft)
    again = fmstune("train", "--from", str(first.folder), "output_dir=again")
    assert again.code == 0, again.err
    name = "model.safetensors" if peft == "full" else "adapter_model.safetensors"
    assert (first.folder / "model" / name).read_bytes() == (again.folder / "model" / name).read_bytes()
    jobs = [(run.folder / "job.yaml").read_text().splitlines() for run in (first, again)]
    assert [pair for pair in zip(*jobs, strict=True) if pair[0] != pair[1]] == [
        (f"output_dir: {first.folder}", "output_dir: again")
    ]


def test_another_seed_gives_another_model(fmstune: Run, made: Run) -> None:
    first = made("lora")
    runs = [first, fmstune("train", "--from", str(first.folder), "seed=8", "output_dir=other")]
    one, other = (load_file(run.folder / "model" / "adapter_model.safetensors") for run in runs)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_a_checkpoint_is_gone_on_with_to_the_same_weights(fmstune: Run) -> None:
    words = ("peft=lora", *QUICK, "training.max_steps=4", "training.save_strategy=steps", "training.save_steps=2")
    whole = fmstune(*words, "output_dir=whole")
    rest = fmstune(*words, "output_dir=rest", "training.resume=whole/checkpoint-2")
    assert rest.code == 0, rest.err
    files = [run.folder / "model" / "adapter_model.safetensors" for run in (whole, rest)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert (rest.summary["steps"], rest.summary["steps_here"]) == (4, 2)


@pytest.mark.parametrize(
    ("setting", "checkpoint", "steps"), [("train_sampling_strategy=group_by_length", 14, 36), ("packing=true", 7, 15)]
)
def test_rows_that_are_grouped_or_packed_come_in_the_same_order_after_a_resume(
    fmstune: Run, setting: str, checkpoint: int, steps: int
) -> None:
    """Three epochs, resumed in the middle of the second."""
    words = (
        "peft=lora",
        f"training.{setting}",
        "training.num_train_epochs=3",
        "training.per_device_train_batch_size=2",
        "training.save_strategy=steps",
        "training.save_steps=7",
        "data.max_rows=24",
        "data.max_length=100",
        "evaluation=none",
        "launcher.threads=1",
    )
    whole = fmstune(*words, "output_dir=whole")
    rest = fmstune(*words, "output_dir=rest", f"training.resume=whole/checkpoint-{checkpoint}")
    assert rest.code == 0, rest.err
    assert whole.summary["steps"] == rest.summary["steps"] == steps
    files = [run.folder / "model" / "adapter_model.safetensors" for run in (whole, rest)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_checkpoint_with_nothing_left_or_of_another_method_is_refused(fmstune: Run, made: Run) -> None:
    place = made("lora").folder / "checkpoint-2"
    resumed = (*AS_MADE, f"training.resume={place}", "output_dir=more")
    done = fmstune("peft=lora", *QUICK, *resumed)
    assert done.code == 2
    assert f"training.resume: {place} is at step 2, so training.max_steps=2 leaves nothing to train" in done.err
    full = fmstune(*QUICK, "training.max_steps=4", *resumed)
    assert full.code == 2
    assert "is not a checkpoint folder of this peft method (no model*.safetensors)" in full.err
    epochs = ("training.max_steps=-1", "training.num_train_epochs=0.1")
    none_left = fmstune("peft=lora", *QUICK, *epochs, *resumed)
    assert none_left.code == 2
    assert "nothing is left to train; raise training.num_train_epochs" in none_left.err
    assert not Path("more").exists()


def test_added_tokens_of_a_tied_model_keep_the_mean_and_it_is_said(fmstune: Run) -> None:
    run = fmstune("peft=lora", *QUICK, "model.special_tokens.extra_special_tokens=['<user>']")
    assert run.code == 0, run.err
    note = "note: 1 added token: its embedding keeps the mean of the old ones under an adapter"
    assert f"{note}; peft.trainable_token_indices=[1536] trains it\n" in run.out
    table = load_file(run.folder / "model" / "adapter_model.safetensors")
    (embedding,) = (weight for key, weight in table.items() if "embed_tokens" in key)
    torch.testing.assert_close(embedding[-1], embedding[:-1].mean(dim=0))
    assert run.summary["plan"]["base_parameters"] == run.summary["base_parameters"]


def test_added_tokens_of_a_tied_model_are_trained_where_their_rows_are_named(fmstune: Run) -> None:
    words = ("model.special_tokens.extra_special_tokens=['<user>']", "peft.trainable_token_indices=[1536]")
    run = fmstune("peft=lora", *QUICK, *words)
    assert run.code == 0, run.err
    assert "keeps the mean" not in run.out
    for folder in (run.folder / "model", run.folder / "checkpoint-2"):
        table = load_file(folder / "adapter_model.safetensors")
        (rows,) = (tensor for key, tensor in table.items() if "trainable_tokens_delta" in key)
        (embedding,) = (tensor for key, tensor in table.items() if tensor.shape[0] == 1537)
        assert not torch.equal(rows[0], embedding[1536])
    merged = fmstune("merge", "--model", str(run.folder), "--out", "merged")
    assert merged.code == 0, merged.err
    weights = AutoModelForCausalLM.from_pretrained("merged").get_input_embeddings().weight
    torch.testing.assert_close(weights[1536], rows[0])


def test_the_folder_of_another_run_is_refused_and_left_as_it_is(fmstune: Run, made: Run) -> None:
    folder = made("full").folder
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = fmstune(*QUICK, f"output_dir={folder}")
    assert again.code == 2
    assert f"output_dir: {folder} holds another run (job.yaml, " in again.err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_best_model_is_loaded_at_the_end(fmstune: Run) -> None:
    run = fmstune(
        *QUICK,
        "training.max_steps=4",
        "training.eval_strategy=steps",
        "training.eval_steps=1",
        "training.save_strategy=steps",
        "training.save_steps=1",
        "training.load_best_model_at_end=true",
        # the rate climbs from 0 to where it ruins the model
        "training.lr_scheduler_type=constant_with_warmup",
        "training.warmup_steps=4",
        "training.learning_rate=4",
    )
    assert run.code == 0, run.err
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    best = min(losses, key=lambda step: losses[step])
    assert best != 4
    kept = load_file(run.folder / "model" / "model.safetensors")
    checkpoint = load_file(run.folder / f"checkpoint-{best}" / "model.safetensors")
    assert all(torch.equal(kept[key], checkpoint[key]) for key in checkpoint)


@pytest.mark.parametrize("peft", ["full", "lora"])
def test_recomputing_activations_changes_no_weight(fmstune: Run, peft: str) -> None:
    words = (f"peft={peft}", *QUICK, *(["peft.lora_dropout=0"] if peft == "lora" else []))
    runs = [
        fmstune(*words, f"training.activation_checkpointing={on}", f"output_dir=run-{on}") for on in ("true", "false")
    ]
    name = "model.safetensors" if peft == "full" else "adapter_model.safetensors"
    one, other = (load_file(run.folder / "model" / name) for run in runs)
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-6)


def test_packing_keeps_the_response_mask(fmstune: Run) -> None:
    words = ("training.num_train_epochs=1", "evaluation=none", "launcher.threads=1", "data.max_rows=32")
    run = fmstune(*words, "training.packing=true", "training.save_strategy=no", "training.logging_steps=1")
    assert run.code == 0, run.err
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    # over all tokens of a message the loss is several times that of its two answer tokens
    assert max(losses) < 1.5


def test_tokens_that_are_added_are_saved_with_the_adapter_and_load_again(fmstune: Run, tmp_path: Path) -> None:
    rows = len(small.byte_level_tokenizer())
    base = small.save(tmp_path / "base", architecture={**small.LLAMA, "vocab_size": rows})
    words = ("model=causal_lm", f"model.path={base}", "peft=lora", "peft.target_modules=[q_proj]", *QUICK)
    run = fmstune(*words, "model.special_tokens.extra_special_tokens=['<user>']")
    assert run.code == 0, run.err
    weights = load_file(run.folder / "model" / "adapter_model.safetensors")
    assert any("embed_tokens" in key for key in weights)
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "model")
    assert len(tokenizer) == rows + 2
    tuned = AutoPeftModelForCausalLM.from_pretrained(run.folder / "model")
    assert tuned.get_input_embeddings().weight.shape[0] == rows + 2


def test_provenance_names_versions_data_and_seed(made: Run) -> None:
    lock: dict[str, Any] = json.loads((made("full").folder / "lock.json").read_text())
    assert lock["seed"] == 7
    assert lock["packages"]["torch"].startswith("2.")
    assert set(lock["data_hashes"]) == {"data.train", "data.eval"}
    assert all(len(value) == 64 for value in [*lock["data_hashes"].values(), lock["model_config_hash"]])


def test_a_run_that_breaks_says_so_and_leaves_no_model(fmstune: Run) -> None:
    run = fmstune(*QUICK, "training.learning_rate=9", "training.max_steps=20", "training.max_grad_norm=0")
    assert run.code == 2
    assert re.search(
        r"error: step \d+ \(training rows \d+(( to |, )\d+){1,3}\): loss is nan; lower training.learning_rate", run.err
    )
    assert "Traceback" not in run.err
    assert run.summary["status"] == "failed"
    assert run.summary["error"]["kind"] == "user"
    assert not (run.folder / "model").exists()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_full_memory_names_the_step_the_rows_and_what_to_change(
    fmstune: Run, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from trl import SFTTrainer

    def full(*_args: object, **_kwargs: object) -> None:
        raise error

    monkeypatch.setattr(SFTTrainer, "training_step", full)
    run = fmstune(*QUICK)
    assert run.code == 2
    assert re.search(
        r"step 1: out of memory on a batch of 4 x \d+ tokens \(training rows \d+(( to |, )\d+){1,3}\); set", run.err
    )
    assert run.summary["status"] == "failed"


def test_an_error_in_training_is_recorded_and_no_half_model_stays(
    fmstune: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fmstune.training import run as module

    def no_permission(*_args: object, **_kwargs: object) -> None:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(module, "draw_loss", no_permission)
    run = fmstune(*QUICK)
    assert run.code == 1
    assert run.summary["status"] == "failed"
    assert run.summary["error"] == {"kind": "internal", "message": "PermissionError: [Errno 13] Permission denied"}


@pytest.mark.parametrize(
    ("peft", "at_least"),
    [
        ("full", 0.9),
        pytest.param("lora", 0.8, marks=pytest.mark.soak),
        pytest.param("prompt_tuning", 0.75, marks=pytest.mark.soak),
    ],
)
def test_the_default_learns_its_task(fmstune: Run, peft: str, at_least: float) -> None:
    """Half of the held-out rows are complaints, so 0.5 is what guessing gives, and the base, whatever tunes it."""
    once = [] if peft == "full" else ["evaluation.base=false"]
    summary = fmstune(f"peft={peft}", *once).summary
    assert summary["tuned"]["rows"] == 120
    assert summary["tuned"]["exact_match"] >= at_least
    base = {"exact_match": 0.5167, "eval_loss": 0.5494}
    if peft == "full":
        assert {key: summary["base"][key] for key in base} == pytest.approx(base, abs=1e-3)
    assert summary["tuned"]["eval_loss"] < base["eval_loss"]


METHODS = [peft for peft in choices("peft") if peft != "full"]


# the other methods train two steps on the second model below
LEARNING = [
    *(pytest.param("tiny_llama", peft) for peft in METHODS),
    *(pytest.param("tiny_gpt_bigcode", peft, marks=[pytest.mark.soak] * (peft != "lora")) for peft in METHODS),
]


@pytest.mark.parametrize(("model", "peft"), LEARNING)
def test_a_method_learns_and_its_adapter_loads_in_plain_peft_to_the_same_answers(
    fmstune: Run, model: str, peft: str
) -> None:
    steps = ("training.max_steps=12", "training.per_device_train_batch_size=8", "training.warmup_steps=0")
    quick = ("training.save_strategy=no", "launcher.threads=1", "evaluation.max_rows=8", "evaluation.max_new_tokens=4")
    run = fmstune(f"model={model}", f"peft={peft}", "data.max_rows=96", *steps, *quick)
    assert run.code == 0, run.err
    assert "Warning" not in run.err
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-4:]) < sum(losses[:4])
    tuned = run.summary["tuned"]
    assert "held-out rows: 8" in run.out
    assert tuned["eval_loss"] != run.summary["base"]["eval_loss"] > 0
    base = AutoModelForCausalLM.from_pretrained(package_files.resolve(f"package:{model}"))
    loaded = PeftModel.from_pretrained(base, run.folder / "model").eval()
    assert _losses_on_held_out(loaded, 8).answer == pytest.approx(tuned["eval_loss"], rel=1e-4, abs=1e-5)


class Losses(NamedTuple):
    """Mean loss of a token, by nothing but transformers and PEFT."""

    prompt: float
    answer: float


def _losses_on_held_out(model: PreTrainedModel | PeftModel, count: int) -> Losses:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    lines = Path(package_files.resolve("package:complaints/held_out.jsonl")).read_text().splitlines()[:count]
    prompts, answers = [], []
    for text in (json.loads(line)["output"] for line in lines):
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        answer = len(ids[0]) - len(tokenizer(text[: text.index("### Label:") + len("### Label:")])["input_ids"])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
        # the logits of virtual tokens stand before those of the text
        logits = logits[-ids.shape[1] :]
        losses = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
        prompts.append(losses[:-answer])
        answers.append(losses[-answer:])
    return Losses(torch.cat(prompts).mean().item(), torch.cat(answers).mean().item())


ROWS = {
    "alpaca": [{"instruction": "Add the numbers", "input": i % 2 * "1 2", "output": "3"} for i in range(8)],
    "text": [{"output": f"### Text: parcel {i} is late\n\n### Response: complaint"} for i in range(8)],
    "twitter_complaints": [{"Tweet text": f"parcel {i} is late", "text_label": "complaint"} for i in range(8)],
    "input_output": [{"input": f"parcel {i} is late:", "output": " complaint"} for i in range(8)],
    "template": [{"text": f"parcel {i} is late", "label": "complaint"} for i in range(8)],
    "chat": [
        {"messages": [{"role": "user", "content": f"late {i}"}, {"role": "assistant", "content": "so sorry"}]}
        for i in range(8)
    ],
    "tokenized": [{"input_ids": [1, 5 + i, 7, 2], "labels": [-100, -100, 7, 2]} for i in range(8)],
}
MORE_WORDS = {"template": ["data.format.template_file=row.jinja"], "chat": ["model.chat_template=package:chatml.jinja"]}
TINY_MODELS = [name for name in choices("model") if name.startswith("tiny_")]
# every method on the models on which the test above does not train it, with one of the formats after the other, and
# every format without an adapter
COMBINATIONS = [
    *zip(product((name for name in TINY_MODELS if name != "tiny_llama"), choices("peft")), cycle(ROWS)),
    *((("tiny_llama", "full"), data) for data in ROWS),
]
NAMED = sorted({(model, peft, data) for (model, peft), data in COMBINATIONS})


def test_every_model_meets_every_method_and_every_format() -> None:
    learnt = {("tiny_llama", peft) for peft in METHODS}
    assert {(model, peft) for model, peft, _ in NAMED} | learnt == {*product(TINY_MODELS, choices("peft"))}
    assert {(model, data) for model, _, data in NAMED} == {*product(TINY_MODELS, ROWS)}


@pytest.mark.parametrize(("model", "peft", "data"), NAMED)
def test_every_format_and_every_method_trains_two_steps_on_a_tiny_model(
    fmstune: Run, rows_file: Callable[..., Path], model: str, peft: str, data: str
) -> None:
    """On all shipped formats; the complaints are trained on above."""
    rows = rows_file(ROWS[data])
    Path("row.jinja").write_text("{{ text }}:{% generation %} {{ label }}{% endgeneration %}")
    words = [f"model={model}", f"peft={peft}", f"data={data}", f"data.train={rows}", *MORE_WORDS.get(data, [])]
    run = fmstune(*words, *TWO_STEPS, "training.save_strategy=no")
    assert run.code == 0, run.err
    assert run.summary["steps"] == 2
    assert run.summary["data"]["train"]["rows_trained"] == 8
    assert (run.folder / "model").is_dir()


def test_processes_take_the_checkpoint_of_the_main_one_and_have_read_the_same_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fmstune.training import run as module

    def told(values: list[Any]) -> None:
        values[:] = ["run/checkpoint-2", {"data.train": "a", "data.eval": "b"}]

    monkeypatch.setattr(module, "broadcast_object_list", told)
    assert module._agree(None, {"data.train": "a", "data.eval": "b"}) == Path("run/checkpoint-2")
    with pytest.raises(UserError) as raised:
        module._agree(None, {"data.train": "a", "data.eval": "c"})
    assert str(raised.value) == ("data.eval changed while the processes started; start again when nothing writes to it")
