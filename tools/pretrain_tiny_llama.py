#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Pretrain the embedded base model: a Llama of under a million parameters, with its tokenizer.

LoRA on two projections, and above all prompt tuning, can only steer what is there already. So the base
model has to read such messages and to know the shape of such tasks, and it must not know the task itself.
Each document of the corpus is one of these five, and every answer is followed by `</s>`:

sentence  4 %: a sentence of `plain_sentence`, English from outside the world of customers;
message   6 %: a message of `make_complaints`, as it stands;
coin      5 %: the message as `### Text:`, then `### Label:` and a label drawn without a look at the message,
          in half of these documents `complaint` or `no complaint`. It teaches that a label is answered with
          the words of a label and then `</s>`;
reading  22 %: the message, then four questions in random order: how things ended, in a word of that issue
          (late, early, express ...); its product, issue, form or tone; and its label under two rules.
          No two issues share a word for an ending, so nothing says which endings are the bad ones; only
          a question or a hope, where nothing has ended yet, is `open` whatever the issue;
named    63 %: a rule, then the message, then the label under that rule, then four questions as above. It
          teaches that what stands before a message decides how it is labelled, as a soft prompt does.

A rule is `### Rule: <name>`. Each name stands for one fixed relation of the ending and the issue: in the
sectors of the rule a bad ending has the first label and every other ending the second, in the remaining
sectors the other way round. So a model cannot learn the rules without telling the bad endings of a sector
from the others, but which of the two has which label changes from rule to rule, and no rule treats all
sectors alike, as the task does.

What it is never told: no message of the held-out split is read, and `complaint` or `no complaint`
under `### Label:` is independent of the truth. The coin does not look, and each of the four rules with
these words agrees with the truth on exactly half of the issues. A rule with other words agrees on three
to eleven of the fourteen issues, as many rules on few as on many. `tests/end_to_end/test_assets.py` checks all of it.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LlamaTokenizer, PreTrainedModel

from make_complaints import BRANDS, COMPLAINT, NO_COMPLAINT, WRITERS, Message, message, words

ASSETS = Path(__file__).parents[1] / "src" / "fmstune" / "assets"
HELD_OUT = ASSETS / "complaints" / "held_out.jsonl"
SEED = 11
VOCABULARY = 1536
TOKENIZER_SAMPLE = 20_000
CONTEXT = 512
BATCH = 32
STEPS = 3000
PEAK = 3e-3
ANSWER_WEIGHT = 6.0
"""How many times the loss of an answer counts the loss of a token of the text."""

OWN_LABELS = (COMPLAINT, NO_COMPLAINT)
OTHER_LABELS = (
    ("praise", "no praise"),
    ("urgent", "not urgent"),
    ("spam", "no spam"),
    ("yes", "no"),
    ("red", "blue"),
    ("true", "false"),
)
SECTORS = (
    ("delay", "crack", "size", "loss"),
    ("charge", "refund", "fee"),
    ("crash", "signal", "battery", "trip"),
    ("meal", "leak", "dirt"),
)
"""Every issue is in one sector, and any two sectors that a rule of the task's words names are half of them."""
OWN_RULES = {"amber": (0, 1), "birch": (0, 3), "cedar": (2, 1), "delta": (2, 3)}
"""Rules with the words of the task, by their sectors; each has its opposite among them."""
OTHER_RULES = {
    "river": (0,), "stone": (1,), "cloud": (2,), "field": (3,), "tower": (0, 1, 2), "wheel": (0, 1, 3),
    "maple": (0, 2, 3), "ocean": (1, 2, 3), "pearl": (0, 2), "robin": (1, 3), "tulip": (0, 1), "zebra": (2, 3),
}  # fmt: skip
"""Rules with the words of other tasks, which may have any sectors but none or all."""


class Document(NamedTuple):
    """Parts that are joined: one that is read, one that is an answer, one that is read, and so on."""

    parts: tuple[str, ...]

    @property
    def text(self) -> str:
        return "".join(self.parts)


def plain_sentence(rng: random.Random) -> str:
    """A sentence from outside the world of customers, so that the model has seen other English."""
    who = rng.choice(("The children", "My neighbours", "Two old friends", *WRITERS, "The birds", "Her students"))
    did = rng.choice(("walked to", "drew a map of", "wrote about", "slept near", "sang in", "looked for", "left"))
    what = rng.choice(("the river", "a small town", "the old bridge", "the garden", "a green hill", "the sea"))
    end = rng.choice(("before the rain", "in the evening", "because it was warm", "and then went home", "at dawn"))
    return f"{who} {did} {what} {end}."


class Rule(NamedTuple):
    """On `issues` a bad ending has the label `first` and any other `second`; elsewhere it is the reverse."""

    first: str
    second: str
    issues: frozenset[str]

    def label(self, m: Message) -> str:
        return self.first if (m.label == COMPLAINT) == (m.issue in self.issues) else self.second


def new_rule(labels: tuple[str, str], sectors: tuple[int, ...]) -> Rule:
    return Rule(*labels, frozenset(issue for sector in sectors for issue in SECTORS[sector]))


RULES = {name: new_rule(OWN_LABELS, sectors) for name, sectors in OWN_RULES.items()} | {
    name: new_rule(OTHER_LABELS[i % len(OTHER_LABELS)], sectors)
    for i, (name, sectors) in enumerate(OTHER_RULES.items())
}
NAMES = tuple(RULES)


def questions(m: Message, rng: random.Random) -> list[str]:
    """How things ended, one question more, and the labels under two rules, in any order."""
    more = rng.choice((("Product", m.product), ("Issue", m.issue), ("Form", m.form), ("Tone", m.tone)))
    asked = [(f"### {header}:", f" {answer}") for header, answer in (("Ending", m.state), more)]
    asked += [(f"### Rule: {name}\n\n### Label:", f" {RULES[name].label(m)}") for name in rng.sample(NAMES, 2)]
    rng.shuffle(asked)
    return [part for prompt, answer in asked for part in (f"</s>\n\n{prompt}", answer)]


def reading(m: Message, rng: random.Random) -> Document:
    """The text and the questions."""
    start, *rest = questions(m, rng)
    return Document((f"### Text: {m.text}" + start.removeprefix("</s>"), *rest))


def coin(m: Message, rng: random.Random) -> Document:
    """The task's own pair as often as all others together, since its words must be known."""
    pair = OWN_LABELS if rng.random() < 0.5 else rng.choice(OTHER_LABELS)
    return Document((f"### Text: {m.text}\n\n### Label:", f" {rng.choice(pair)}"))


def named(m: Message, rng: random.Random) -> Document:
    """A rule, the text, the label under that rule, and then the questions."""
    name = rng.choice(NAMES)
    prompt = f"### Rule: {name}\n\n### Text: {m.text}\n\n### Label:"
    return Document((prompt, f" {RULES[name].label(m)}", *questions(m, rng)))


TASKS = (reading, coin, named)
TASK_WEIGHTS = (24, 6, 70)


def documents(rng: random.Random, held_out: frozenset[str]) -> Iterator[Document]:
    """The endless corpus; a message with the words of a held-out one is never used."""
    kept_back = {words(text) for text in held_out}
    while True:
        m = message(rng)
        if words(m.text) in kept_back:
            continue
        roll = rng.random()
        if roll < 0.04:
            yield Document((plain_sentence(rng),))
        elif roll < 0.10:
            yield Document((m.text,))
        else:
            yield rng.choices(TASKS, TASK_WEIGHTS)[0](m, rng)


def train_tokenizer(texts: list[str]) -> LlamaTokenizer:
    """A BPE in the manner of Llama 2: single digits, bytes for what has no piece, a newline too."""
    specials = ["<unk>", "<s>", "</s>"]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n+"), "removed"),
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation("contiguous"),
        ]
    )
    room = VOCABULARY - len(specials) - len(pieces) - 1
    learner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=room, limit_alphabet=120, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    order = [*specials, *pieces, *sorted(learned["vocab"], key=learned["vocab"].get), "<pad>"]
    return LlamaTokenizer(
        vocab={piece: i for i, piece in enumerate(order)},
        merges=[tuple(merge) for merge in learned["merges"]],
        pad_token="<pad>",
        add_bos_token=True,
        padding_side="right",
        model_max_length=CONTEXT,
    )


def new_model(tokenizer: LlamaTokenizer) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


class Batch(NamedTuple):
    """Documents padded on the right, and what the loss of each token counts."""

    ids: torch.Tensor
    weights: torch.Tensor


def token_weights(document: Document, spans: list[tuple[int, int]]) -> list[float]:
    """What the loss of each token counts: an answer more than a text; last comes the closing `</s>`."""
    kinds = [part % 2 for part, text in enumerate(document.parts) for _ in text]
    weights = [ANSWER_WEIGHT if end and kinds[end - 1] else 1.0 for _, end in spans]
    return [*weights, weights[-1]]


def batches(source: Iterator[Document], tokenizer: LlamaTokenizer, rng: random.Random) -> Iterator[Batch]:
    """Endless batches of documents of about one length, so that little is spent on padding."""
    while True:
        pool = [next(source) for _ in range(BATCH * 16)]
        pool.sort(key=lambda document: len(document.text))
        groups = [pool[i : i + BATCH] for i in range(0, len(pool), BATCH)]
        rng.shuffle(groups)
        for group in groups:
            encoded = tokenizer([document.text for document in group], return_offsets_mapping=True)
            rows = [[*ids, tokenizer.eos_token_id] for ids in encoded["input_ids"]]
            width = max(map(len, rows))
            ids = torch.full((len(rows), width), tokenizer.pad_token_id)
            weights = torch.zeros(len(rows), width)
            for i, (row, spans, document) in enumerate(zip(rows, encoded["offset_mapping"], group, strict=True)):
                ids[i, : len(row)] = torch.tensor(row)
                weights[i, : len(row)] = torch.tensor(token_weights(document, spans))
            yield Batch(ids, weights)


def pretrain(model: PreTrainedModel, source: Iterator[Batch], steps: int) -> None:
    """Train in place: AdamW, a short warm-up, then a cosine to a hundredth of the peak."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.98), weight_decay=0.05)
    warmup = steps // 25
    model.train()
    start = time.monotonic()
    for step in range(1, steps + 1):
        progress = max(0, step - warmup) / (steps - warmup)
        scale = min(step / warmup, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        optimizer.param_groups[0]["lr"] = PEAK * scale
        batch = next(source)
        logits = model(input_ids=batch.ids[:, :-1]).logits
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
        weights = batch.weights[:, 1:].flatten()
        loss = (losses * weights).sum() / weights.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps:
            text, answer = (losses[kind].mean().item() for kind in (weights == 1, weights > 1))
            took = time.monotonic() - start
            print(f"step {step}/{steps} loss: text {text:.3f} answer {answer:.3f}, {took:.0f}s", flush=True)


def save(model: LlamaForCausalLM, tokenizer: LlamaTokenizer, out: Path) -> None:
    model.eval()
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters")
    for path in sorted(out.iterdir()):
        print(f"{path.name} {path.stat().st_size} bytes")
    print(f"{sum(path.stat().st_size for path in out.iterdir())} bytes in all")


def held_out_texts(path: Path) -> frozenset[str]:
    """Messages that no document may hold."""
    return frozenset(json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the embedded base model and its tokenizer.")
    parser.add_argument("--out", type=Path, default=ASSETS / "tiny_llama", help="folder to write to")
    parser.add_argument("--held-out", type=Path, default=HELD_OUT, help="messages never to read")
    parser.add_argument("--steps", type=int, default=STEPS, help="batches of documents")
    parser.add_argument("--seed", type=int, default=SEED, help="of the corpus and the weights")
    args = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(args.seed)
    held_out = held_out_texts(args.held_out)
    rng = random.Random(args.seed)
    first = zip(documents(rng, held_out), range(TOKENIZER_SAMPLE), strict=False)
    sample = [document.text.replace("</s>", "") for document, _ in first]
    tokenizer = train_tokenizer([*sample, *BRANDS])
    model = new_model(tokenizer)
    pretrain(model, batches(documents(rng, held_out), tokenizer, rng), args.steps)
    save(model, tokenizer, args.out)


if __name__ == "__main__":
    main()
