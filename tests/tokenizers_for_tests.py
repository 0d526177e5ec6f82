"""Small tokenizers of the kinds that language models have, trained here, so that no test needs a download."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GPT2Tokenizer, LlamaTokenizer, PreTrainedTokenizerFast

CORPUS = [
    "### Text: the screen of my phone broke again\n\n### Label: complaint",
    "### Text: thanks, the café was lovely :) :)\n\n### Label: no complaint",
    "### Label:yes ### Label:yes ### Label:no",
    "Below is an instruction that describes a task. ### Response: 日本 naïve",
] * 20


@cache
def llama_style() -> LlamaTokenizer:
    """SentencePiece-style BPE: spaces are ▁, one is put before the text, unknown characters become bytes."""
    learner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    # a line break is a byte token, as in Llama's vocabulary
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\n+"), "removed"), metaspace])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learned = _learn(learner, vocab_size=400, special_tokens=special, max_token_length=9)
    return LlamaTokenizer(**learned, add_bos_token=True)


@cache
def llama_style_with_end() -> LlamaTokenizer:
    """The same, but it puts end-of-sequence behind the text itself."""
    model = json.loads(llama_style().backend_tokenizer.to_str())["model"]
    tokenizer = LlamaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


@cache
def gpt2_style() -> GPT2Tokenizer:
    """Byte-level BPE: every token is some bytes of the text, and nothing is put around it."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    return GPT2Tokenizer(**_learn(learner, vocab_size=340, special_tokens=special, initial_alphabet=alphabet))


@cache
def normalising() -> PreTrainedTokenizerFast:
    """Drops and folds characters before it tokenises, and puts special tokens on both sides of the text."""
    learner = Tokenizer(models.BPE(unk_token="[UNK]"))
    steps = [normalizers.Replace("#", ""), normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()]
    learner.normalizer = normalizers.Sequence(steps)
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    _learn(learner, vocab_size=120, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[END]"])
    learner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=learner, unk_token="[UNK]", eos_token="[END]")


ALL: list[Callable[[], Any]] = [llama_style, llama_style_with_end, gpt2_style, normalising]


def _learn(learner: Tokenizer, **settings: Any) -> dict[str, Any]:
    learner.train_from_iterator(CORPUS, trainers.BpeTrainer(show_progress=False, **settings))
    model = json.loads(learner.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}
