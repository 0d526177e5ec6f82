"""Small tokenizers of the two kinds that language models have, trained here, so that no test needs a download."""

import json
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GPT2Tokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

CORPUS = [
    "### Text: the screen of my phone broke again\n\n### Label: complaint",
    "### Text: thanks, the café was lovely :) :)\n\n### Label: no complaint",
    "### Label:yes ### Label:yes ### Label:no",
    "Below is an instruction that describes a task. ### Response: 日本 naïve",
] * 20


@cache
def llama_style(add_eos_token: bool = False) -> PreTrainedTokenizerBase:
    """SentencePiece-style BPE: spaces are ▁, one is put before the text, unknown characters become bytes."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False, max_token_length=9)
    # byte tokens must not be made of the text, and no token spans a line
    trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\n+"), "removed"), trained.pre_tokenizer])
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    return LlamaTokenizer(
        vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]], add_bos_token=True, add_eos_token=add_eos_token
    )


@cache
def gpt2_style() -> PreTrainedTokenizerBase:
    """Byte-level BPE: every token is some bytes of the text, and nothing is put around it."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    return GPT2Tokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]])


@cache
def normalising() -> PreTrainedTokenizerBase:
    """Drops characters before it tokenises, and puts tokens on both sides of the text."""
    trained = Tokenizer(models.BPE(unk_token="[UNK]"))
    trained.normalizer = normalizers.Sequence(
        [normalizers.Replace("#", ""), normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()]
    )
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    trained.decoder = decoders.BPEDecoder()
    special = ["[UNK]", "[CLS]", "[SEP]", "[END]"]
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False))
    trained.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=trained, unk_token="[UNK]", eos_token="[END]")
