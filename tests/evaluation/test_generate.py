"""The text of answers: behind their prompts, up to a stop text, and while they grow."""

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fmstune.config.job import Model
from fmstune.evaluation import generate
from fmstune.evaluation.generate import Continued, Streamer
from fmstune.models import load
from tests import small

TINY = Model(path="package:tiny_llama")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load.load_tokenizer(TINY).tokenizer


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load.load_model(TINY, load.load_tokenizer(TINY), dtype="float32", attention="sdpa").eval()


def prompts(tokenizer: PreTrainedTokenizerBase, *texts: str) -> list[list[int]]:
    return list(tokenizer(list(texts))["input_ids"])


@pytest.mark.parametrize(
    ("text", "stops", "left"),
    [("a b c", [], "a b c"), ("a b c", ["x"], "a b c"), ("a b c", ["c", " b"], "a"), ("ab", ["ab", "a"], "")],
)
def test_a_text_ends_before_the_first_of_its_stops(text: str, stops: list[str], left: str) -> None:
    assert generate.cut(text, stops) == left


def test_a_continuation_keeps_the_space_that_its_tokens_begin_with(tokenizer: PreTrainedTokenizerBase) -> None:
    before, whole = (tokenizer(text)["input_ids"] for text in ("The driver", "The driver was late"))
    assert whole[: len(before)] == before
    new = whole[len(before) :]
    assert Continued(tokenizer, before).of(new) == " was late"
    assert tokenizer.decode(new) == "was late"


def test_sampling_follows_the_seed_and_its_settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    def drawn(seed: int, **sampling: object) -> list[str]:
        torch.manual_seed(seed)
        return generate.generate(
            model,
            tokenizer,
            prompts(tokenizer, "The driver", "Thanks for"),
            batch_size=2,
            max_new_tokens=12,
            sampling={"do_sample": True, **sampling},
        )

    greedy = generate.generate(model, tokenizer, prompts(tokenizer, "The driver"), batch_size=1, max_new_tokens=12)
    assert drawn(1, temperature=2.0) == drawn(1, temperature=2.0)
    assert drawn(1, temperature=2.0) != drawn(2, temperature=2.0)
    assert drawn(1, top_k=1)[0] == greedy[0]


def test_stop_texts_end_each_answer_of_a_batch_by_itself(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    asked = prompts(tokenizer, "### Text: I was charged twice for the", "The driver", "Hello, my new lamp arrived")
    plain = generate.generate(model, tokenizer, asked, batch_size=3, max_new_tokens=20)
    stop = plain[0].split()[2]
    stopped = generate.generate(model, tokenizer, asked, batch_size=3, max_new_tokens=20, stop_texts=[stop])
    assert stopped == [generate.cut(text, [stop]) for text in plain]
    assert stopped[0] != plain[0]


def test_a_growing_answer_shows_neither_stop_texts_nor_half_characters() -> None:
    tokenizer = small.byte_level_tokenizer()
    ids = tokenizer("€ is a sign\nand more")["input_ids"]
    seen: list[str] = []
    streamer = Streamer(Continued(tokenizer, []), ["\nand"], seen.append)
    streamer.put(torch.tensor([[1, 2, 3]]))
    for one in ids:
        streamer.put(torch.tensor([one]))
    streamer.end()
    assert "".join(seen) == "€ is a sign"
    assert len([text for text in seen if text]) > 2
