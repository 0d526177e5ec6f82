"""Scores are what a slow, plain computation gives; batching and padding change nothing."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import add_fused_lm_head

from fmstune import files
from fmstune.config.job import Evaluation, Model
from fmstune.data.tokens import Segment, encode_rows
from fmstune.evaluation import generate
from fmstune.evaluation import held_out as evaluate
from fmstune.evaluation.held_out import Likelihood, Scores
from fmstune.models import load as models

ROWS = [
    ("### Text: my parcel is late\n\n### Label:", " complaint"),
    ("### Text: thank you\n\n### Label:", " no complaint"),
    ("### Text: the box of the bed had no legs in it and nobody answers the phone\n\n### Label:", " complaint"),
    ("### Text: hi\n\n### Label:", " x"),
    ("### Text: ok\n\n### Label:", " no complaint at all, rather the opposite of one"),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return models.load_tokenizer(Model(path="package:tiny_llama")).tokenizer


@pytest.fixture(scope="module")
def held_out(tokenizer: PreTrainedTokenizerBase) -> Dataset:
    encoded = encode_rows([[Segment(p, False), Segment(a, True)] for p, a in ROWS], tokenizer, 256)
    return Dataset.from_dict(
        {
            "input_ids": [row.input_ids for row in encoded],
            "labels": [row.labels for row in encoded],
            "prompt_ids": [row.input_ids[: row.labels.count(-100)] for row in encoded],
            "answer_ids": [row.input_ids[row.labels.count(-100) :] for row in encoded],
        }
    )


def load(name: str = "tiny_llama") -> PreTrainedModel:
    tiny = Model(path=f"package:{name}", tokenizer="package:tiny_llama")
    return models.load_model(tiny, models.load_tokenizer(tiny), dtype="float32", attention="sdpa")


@pytest.fixture(params=["full", "lora", "prompt"])
def model(request: pytest.FixtureRequest) -> Iterator[PreTrainedModel | PeftModel]:
    base = load()
    add_fused_lm_head(base)
    torch.manual_seed(0)
    if request.param == "lora":
        yield get_peft_model(
            base, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
        )
    elif request.param == "prompt":
        yield get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8))
    else:
        yield base


VIRTUAL = {"prompt": PromptTuningConfig, "p_tuning": PromptEncoderConfig, "prefix": PrefixTuningConfig}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", VIRTUAL)
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt_bigcode"])
def test_virtual_tokens_stand_before_every_row_of_a_batch_and_of_an_answer(
    tokenizer: PreTrainedTokenizerBase, name: str, method: str
) -> None:
    """Against the greedy answer found by whole forward passes, one row and token at a time."""
    torch.manual_seed(0)
    model = get_peft_model(load(name), VIRTUAL[method](task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    prompts = tokenizer(["### Text: hi", "### Text: I was charged twice for the", "Thanks for"])["input_ids"]
    slow = [tokenizer.decode(_greedy(model, ids, 8), skip_special_tokens=True) for ids in prompts]
    with torch.inference_mode():
        assert generate.generate(model, tokenizer, prompts, batch_size=3, max_new_tokens=8) == slow
        with model.disable_adapter():
            assert generate.generate(model, tokenizer, prompts, batch_size=3, max_new_tokens=8) != slow


@torch.no_grad()
def _greedy(model: PeftModel, ids: list[int], count: int) -> list[int]:
    answer: list[int] = []
    while len(answer) < count and 2 not in answer:
        row = torch.tensor([[*ids, *answer]])
        logits = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits
        answer.append(int(logits[0, -1].argmax()))
    return answer


@pytest.mark.sampled(3)
def test_the_loss_is_the_mean_over_all_answer_tokens(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, held_out: Dataset
) -> None:
    total, count = 0.0, 0
    with torch.inference_mode():
        model.eval()
        for row in held_out:
            ids = torch.tensor([row["input_ids"]])
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -ids.shape[1] :]
            log_probs = logits.log_softmax(-1)
            for position, label in enumerate(row["labels"]):
                if label != -100:
                    total -= log_probs[position - 1, label].item()
                    count += 1
    scores = evaluate.score(model, tokenizer, held_out, Evaluation(batch_size=3, max_new_tokens=2))
    assert scores.figures["eval_loss"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_batch_answers_as_single_rows_do(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> None:
    prompts = ["The driver", "Hello, my new lamp arrived and it", "### Text: I was charged twice for the", "Thanks"]
    alone = []
    model.eval()
    for prompt in prompts:
        encoded = tokenizer(prompt, return_tensors="pt")
        output = model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        alone.append(tokenizer.decode(output[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True))
    with torch.inference_mode():
        ids = tokenizer(prompts)["input_ids"]
        together = generate.generate(model, tokenizer, ids, batch_size=batch_size, max_new_tokens=12)
    assert together == alone
    assert len(set(alone)) == len(prompts)


def test_exact_match_counts_the_rows_that_are_answered_word_for_word(
    tokenizer: PreTrainedTokenizerBase, held_out: Dataset
) -> None:
    base = load()
    add_fused_lm_head(base)
    with torch.inference_mode():
        given = generate.generate(base, tokenizer, held_out["prompt_ids"], batch_size=5, max_new_tokens=64)
    as_answered = [answer if i < 2 else answer + "!" for i, answer in enumerate(given)]
    end = tokenizer.eos_token_id
    ids = [[*tokenizer(answer, add_special_tokens=False)["input_ids"], end] for answer in as_answered]
    rows = held_out.remove_columns("answer_ids").add_column("answer_ids", ids)
    assert evaluate.score(base, tokenizer, rows, Evaluation()).figures["exact_match"] == pytest.approx(2 / 5)


def test_the_models_own_generation_config_changes_no_score(
    tokenizer: PreTrainedTokenizerBase, held_out: Dataset
) -> None:
    base = load()
    add_fused_lm_head(base)
    plain = generate.generate(base, tokenizer, held_out["prompt_ids"], batch_size=5, max_new_tokens=8)
    base.generation_config.repetition_penalty = 5.0
    base.generation_config.min_new_tokens = 8
    own = base.generation_config
    again = generate.generate(base, tokenizer, held_out["prompt_ids"], batch_size=5, max_new_tokens=8)
    assert again == plain
    assert base.generation_config is own


def test_what_is_left_out_or_cannot_match_is_counted(tokenizer: PreTrainedTokenizerBase, held_out: Dataset) -> None:
    base = load()
    add_fused_lm_head(base)
    scores = evaluate.score(base, tokenizer, held_out, Evaluation(max_rows=3, max_new_tokens=1))
    assert (scores.figures["rows"], scores.rows_left_out) == (3, 2)
    longer = sum(len(ids) > 2 for ids in held_out["answer_ids"][:3])
    assert scores.answers_too_long == longer
    assert scores.figures["exact_match"] <= 1


def test_the_model_is_left_in_the_mode_it_was_in(tokenizer: PreTrainedTokenizerBase, held_out: Dataset) -> None:
    base = load()
    add_fused_lm_head(base)
    base.train()
    evaluate.score(base, tokenizer, held_out, Evaluation(max_new_tokens=1))
    assert base.training


def test_the_scores_of_several_sets_are_weighed_by_rows_and_tokens() -> None:
    one = Scores(("a",), ("a",), (Likelihood(-3.0, 3),), rows_left_out=2)
    nothing = Likelihood(0.0, 0)
    two = Scores(("a",) * 4, ("a", "a", "b", "b"), (Likelihood(-2.0, 1), *[nothing] * 3), answers_too_long=1)
    both = evaluate.together({"one": one, "two": two})
    assert both["eval_loss"] == pytest.approx(1.25)
    assert both["exact_match"] == pytest.approx(0.6)
    assert (both["rows"], both["rows_left_out"], both["answers_too_long"]) == (5, 2, 1)
    assert both["sets"] == {"one": one.figures, "two": two.figures}
    assert evaluate.together({"": one}) == one.figures


def test_sets_of_labels_are_measured_by_these_apart_and_together() -> None:
    likely = (Likelihood(-1.0, 2), Likelihood(-3.0, 2))
    one = Scores(labels=("a", "b"), expected=("a", "b"), answers=(" A", "c"), likelihoods=likely)
    two = Scores(labels=("a", "c"), expected=("a", "c"), answers=("c", "c"), likelihoods=likely)
    both = evaluate.together({"one": one, "two": two})
    assert (both["accuracy"], both["sets"]["one"]["accuracy"]) == (0.5, 0.5)
    # c is a label of the other set, so that as an answer it is false here, and no label alone
    assert (both["micro_f1"], both["sets"]["one"]["micro_f1"]) == (0.5, pytest.approx(2 / 3))
    assert both["macro_f1"] == pytest.approx((2 / 3 + 0 + 1 / 2) / 3)
    texts = Scores(expected=("a", "b"), answers=("a", "b"), likelihoods=likely)
    together = evaluate.together({"one": one, "two": texts})
    assert "accuracy" not in together and "accuracy" in together["sets"]["one"]


def test_answers_are_labels_where_each_is_that_of_several_rows(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (" yes", "no", " Yes", "yes")]
    assert evaluate.labels_of(Dataset.from_dict({"answer_ids": ids * 2}), tokenizer) == ["no", "yes"]
    assert evaluate.labels_of(Dataset.from_dict({"answer_ids": ids[1:3]}), tokenizer) == []
    texts = [[number] for number in range(300, 420)]
    assert evaluate.labels_of(Dataset.from_dict({"answer_ids": texts * 2}), tokenizer) == []


def test_what_ends_a_turn_ends_an_answer_too(tokenizer: PreTrainedTokenizerBase) -> None:
    end, special = tokenizer.eos_token_id, tokenizer.bos_token_id
    assert evaluate.stops([[5, end], [5, special], [5, 6]], tokenizer) == sorted({end, special})


def test_a_text_that_ends_a_turn_ends_an_answer_too(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = Path(files.resolve("package:chatml.jinja")).read_text()
    assert evaluate.stop_texts(["yes<|im_end|>", "no<|im_end|>"], chat) == ["<|im_end|>"]
    assert evaluate.stop_texts(["yes", "no"], chat) == evaluate.stop_texts(["yes<|im_end|>"], tokenizer) == []
    chat.add_special_tokens({"extra_special_tokens": ["<|im_end|>"]})
    assert evaluate.stop_texts(["yes<|im_end|>"], chat) == []


def test_the_first_rows_are_kept_with_what_was_asked_expected_and_answered(
    tokenizer: PreTrainedTokenizerBase, held_out: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "SAMPLES", 2)
    model = load()
    add_fused_lm_head(model)
    scores = evaluate.score(model, tokenizer, held_out, Evaluation(max_new_tokens=4))
    assert [(one.prompt, one.expected.strip()) for one in scores.samples] == [(p, a.strip()) for p, a in ROWS[:2]]
    assert all(one.answer for one in scores.samples)
    assert "samples" not in evaluate.together({"a": scores})["sets"]["a"]
