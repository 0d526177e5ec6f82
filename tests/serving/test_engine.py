"""Questions are answered alone and together alike, up to their ends, and one that fails takes no other with it."""

import queue
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import pytest
from peft import PromptTuningConfig, get_peft_model
from transformers import PreTrainedTokenizerBase

from fmstune.config.job import Model
from fmstune.evaluation import generate
from fmstune.models import load
from fmstune.serving.engine import Engine, Piece, Question, QueueFull, Ticket

TINY = Model(path="package:tiny_llama")
TEXTS = ["The driver", "Thanks for", "I was charged twice for the", "Hello, my new lamp"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load.load_tokenizer(TINY).tokenizer


@pytest.fixture(scope="module")
def model() -> load.PreTrainedModel:
    return load.load_model(TINY, load.load_tokenizer(TINY), dtype="float32", attention="sdpa").eval()


def ended(engine: Engine, questions: list[Question]) -> list[list[Piece]]:
    """The pieces of each answer."""
    told: queue.SimpleQueue[tuple[int, Piece | Exception]] = queue.SimpleQueue()

    def tell(number: int) -> object:
        return lambda piece: told.put((number, piece))

    engine.ask([(question, tell(number)) for number, question in enumerate(questions)])  # type: ignore[misc]
    found: list[list[Piece]] = [[] for _ in questions]
    while not all(pieces and pieces[-1].finish for pieces in found):
        number, piece = told.get(timeout=60)
        assert isinstance(piece, Piece), piece
        found[number].append(piece)
    return found


@pytest.fixture
def engine(model: load.PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[Engine]:
    made = Engine({"tuned": lambda: nullcontext(model)}, tokenizer, batch_size=4, max_waiting=8)
    yield made
    made.close()


def question(tokenizer: PreTrainedTokenizerBase, text: str, **how: object) -> Question:
    ids = tuple(tokenizer(text)["input_ids"])
    usual = {"model": "tuned", "max_new_tokens": 12, "stops": (tokenizer.eos_token_id,)}
    return Question(prompt=ids, **{**usual, **how})  # type: ignore[arg-type]


def test_greedy_answers_are_those_of_generate_together_and_with_ends_of_their_own(
    engine: Engine, model: load.PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    alone = generate.generate(model, tokenizer, ids, batch_size=1, max_new_tokens=12, behind_prompt=True)
    word = alone[1].split()[-1]
    how = [{"grows": True}, {"stop_texts": (word,)}, {"max_new_tokens": 3}, {"top_logprobs": 2}]
    made = ended(engine, [question(tokenizer, text, **one) for text, one in zip(TEXTS, how, strict=True)])
    assert "".join(piece.text for piece in made[0]) == alone[0] and len(made[0]) > 2
    assert (made[1][-1].text, made[1][-1].finish) == (alone[1].partition(word)[0], "stop")
    assert (made[2][-1].count, made[2][-1].finish) == (3, "length") and alone[2].startswith(made[2][-1].text)
    assert "".join(token.text for token in made[3][-1].tokens) == made[3][-1].text == alone[3]


def test_rows_behind_a_learned_prompt_are_not_padded(tokenizer: PreTrainedTokenizerBase) -> None:
    base = load.load_model(TINY, load.load_tokenizer(TINY), dtype="float32", attention="sdpa").eval()
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    prompted = get_peft_model(base, config).eval()
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    alone = generate.generate(prompted, tokenizer, ids, batch_size=1, max_new_tokens=8, behind_prompt=True)
    engine = Engine({"tuned": lambda: nullcontext(prompted)}, tokenizer, batch_size=4)
    made = ended(engine, [question(tokenizer, text, max_new_tokens=8) for text in TEXTS])
    engine.close()
    assert [pieces[-1].text for pieces in made] == alone


def test_a_seed_decides_what_is_drawn(engine: Engine, tokenizer: PreTrainedTokenizerBase) -> None:
    def drawn(seed: int) -> str:
        ((piece,),) = ended(engine, [question(tokenizer, TEXTS[0], temperature=1.5, seed=seed)])
        return piece.text

    assert drawn(1) == drawn(1) != drawn(2)
    ((piece,),) = ended(engine, [question(tokenizer, TEXTS[0], temperature=1.5, top_p=0.0)])
    ((greedy,),) = ended(engine, [question(tokenizer, TEXTS[0])])
    assert piece.text == greedy.text


def test_a_full_queue_takes_none_of_several_and_a_cancelled_question_frees_its_place(
    model: load.PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    told: queue.SimpleQueue[Piece | Exception] = queue.SimpleQueue()
    engine = Engine({"tuned": lambda: nullcontext(model)}, tokenizer, max_waiting=2)
    long = question(tokenizer, TEXTS[0], max_new_tokens=400, stops=(), grows=True)
    running: list[Ticket] = engine.ask([(long, told.put)])
    told.get(timeout=60)
    waiting = engine.ask([(long, told.put)])
    with pytest.raises(QueueFull):
        engine.ask([(long, told.put)] * 2)
    engine.cancel(waiting)
    assert engine.waiting == 0
    engine.cancel(running)
    found = [told.get(timeout=60)]
    while [piece.finish for piece in found if isinstance(piece, Piece)].count("cancelled") < 2:
        found.append(told.get(timeout=60))
    engine.close()
    assert not engine.is_alive


def test_a_failure_is_told_and_the_next_question_is_answered(
    model: load.PreTrainedModel, tokenizer: PreTrainedTokenizerBase, capfd: pytest.CaptureFixture[str]
) -> None:
    fails = iter([False, True, False])

    def give() -> AbstractContextManager[load.PreTrainedModel]:
        if next(fails):
            raise RuntimeError("out of memory")
        return nullcontext(model)

    engine = Engine({"tuned": give}, tokenizer)
    told: queue.SimpleQueue[Piece | Exception] = queue.SimpleQueue()
    engine.ask([(question(tokenizer, TEXTS[0]), told.put)])
    assert isinstance(told.get(timeout=60), RuntimeError)
    ((piece,),) = ended(engine, [question(tokenizer, TEXTS[0])])
    engine.close()
    assert piece.finish in ("stop", "length")
