#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write the customer messages of the embedded default task, `complaint` or `no complaint`.

Every message is drawn from the grammar below, whose sentences were written for this project, so the
data carries no licence but the project's own. The label is a property of what happened, never of a
word: a message names an issue (a late parcel, a double charge), says it in one of nine forms, and it is
a complaint when the issue really happened to the writer and nobody put it right. The same form, with the same
clauses in another order or with another ending, gives the other label:

    at the other shop my parcel came early, with you my parcel came late    complaint
    at the other shop my parcel came late, with you my parcel came early    no complaint

The held-out split contains triples of issue, form and label that the training split never shows, so a
model that memorises phrases does worse on it than one that reads.
"""

import argparse
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

COMPLAINT = "complaint"
NO_COMPLAINT = "no complaint"
SEED = 20240607
TRAIN_ROWS = 480
HELD_OUT_ROWS = 120
NEAR = 0.75
"""Two messages that share this part of their words (Jaccard) count as near-identical."""


@dataclass(frozen=True)
class Issue:
    """One thing that can go wrong, and the clauses that tell it from every side.

    `{p}` in a clause is one of `products`; `states` are the words for how things ended: bad, good, mended.
    """

    key: str
    products: str
    states: str
    bad: tuple[str, ...]
    good: tuple[str, ...]
    fix: tuple[str, ...]
    nofix: tuple[str, ...]
    blame: tuple[str, ...]
    praise: tuple[str, ...]
    why: tuple[str, ...]
    ask: tuple[str, ...]
    wish: tuple[str, ...]


ISSUES = (
    Issue(
        "delay", "parcel/order/letter/delivery", "late early express",
        ("my {p} came {n} days late", "the {p} was {n} days late"),
        ("my {p} came {n} days early", "the {p} was not late at all", "the {p} was a day early"),
        ("a courier brought it the same evening", "you sent an express van right away"),
        ("no courier has called me since", "the express van never came"),
        ("leaving my {p} in a van for {n} days", "bringing the {p} {n} days late"),
        ("bringing the {p} {n} days early", "getting the late {p} here by express"),
        ("why is my {p} {n} days late", "how can one {p} take {n} days longer than you said"),
        ("what happens if a {p} is more than {n} days late", "can I pick up the {p} early"),
        ("the {p} to come early", "the {p} not to be late"),
    ),
    Issue(
        "crack", "phone/tablet/mug/mirror", "cracked whole replaced",
        ("my {p} arrived cracked", "there was a long crack in the {p}"),
        ("my {p} arrived without a crack", "there was no crack in the {p}"),
        ("you replaced it the same day", "a new one was here by noon"),
        ("nobody has replaced it", "the new one was cracked too"),
        ("sending me a cracked {p}", "a {p} with a crack from top to bottom"),
        ("replacing my cracked {p} in a day", "a {p} without a single crack"),
        ("why did my {p} arrive cracked", "how does a {p} crack inside its own box"),
        ("do you replace a cracked {p}", "what should I do if the {p} arrives cracked"),
        ("a {p} without a crack", "the {p} to arrive in one piece"),
    ),
    Issue(
        "charge", "ticket/meal/magazine/subscription", "double single reversed",
        ("you charged me twice for one {p}", "the {p} was billed to my card twice"),
        ("you charged me only once for the {p}", "the {p} was billed just the once"),
        ("one charge was reversed within the hour", "you gave me the {e} € back at once"),
        ("the second charge was not reversed", "I have not seen my {e} € again"),
        ("charging me twice for the same {p}", "billing one {p} two times"),
        ("reversing the double charge on my {p}", "not charging me twice for the {p}"),
        ("why was I charged twice for one {p}", "how can one {p} cost me {e} € two times"),
        ("am I charged twice if I press pay again for the {p}", "is the {p} billed once or twice a year"),
        ("a single charge for the {p}", "the {p} to be billed only once"),
    ),
    Issue(
        "refund", "coat/lamp/keyboard/tent", "unpaid refunded settled",
        ("the refund for my {p} did not come", "you kept the {e} € for the {p} I returned"),
        ("the refund for my {p} came", "you paid back the {e} € for the {p} I returned"),
        ("one call settled it", "your desk paid it while I was on the phone"),
        ("{n} calls have not settled it", "your desk hung up while I was on the phone"),
        ("keeping the refund for my {p}", "a refund that never came for the {p}"),
        ("the quick refund for my {p}", "a refund that came before the {p} was back"),
        ("why is there no refund for the {p}", "how often must I ask for the {e} € for my {p}"),
        ("how long does the refund for a {p} take", "is there a refund if I return the {p} unopened"),
        ("the refund for the {p} to come", "my {e} € for the {p}"),
    ),
    Issue(
        "crash", "app/game/map/camera", "crashing stable patched",
        ("the {p} crashed whenever I opened it", "your {p} crashed {n} times"),
        ("the {p} opened and never crashed", "your {p} did not crash once in {n} days"),
        ("the patch cured it", "your update put that right overnight"),
        ("the patch did not cure it", "your update made that worse overnight"),
        ("a {p} that crashes every morning", "crashing the {p} in the middle of my call"),
        ("a {p} that never crashes", "the patch that stopped the {p} crashing"),
        ("why does the {p} crash on every new phone", "who tested a {p} that crashes {n} times a day"),
        ("does the {p} still crash on old phones", "where do I report it if the {p} crashes"),
        ("a {p} that does not crash", "the new {p} to be stable"),
    ),
    Issue(
        "meal", "soup/pizza/curry/crème brûlée", "cold hot reheated",
        ("the {p} was cold when it came", "you served the {p} stone cold"),
        ("the {p} was hot when it came", "you served the {p} piping hot"),
        ("the cook made me a fresh one", "a hot one was on the table in minutes"),
        ("the cook refused to make me a fresh one", "the next one was no hotter"),
        ("serving the {p} cold", "the cold {p}"),
        ("serving the {p} hot", "swapping the cold {p} for a hot one"),
        ("why was the {p} cold again", "who sends out a cold {p} after {n} quarters of an hour"),
        ("can I order the {p} cold", "do you keep the {p} hot until we arrive"),
        ("a hot {p}", "the {p} not to be cold"),
    ),
    Issue(
        "trip", "train/bus/ferry/flight", "cancelled running rebooked",
        ("you cancelled my {p} to Zürich", "the {p} was cancelled {n} minutes before it was due"),
        ("you did not cancel my {p} to Zürich", "the {p} ran and left {n} minutes before it was due"),
        ("you put me on the next one for free", "I was rebooked within minutes"),
        ("you made me pay for the next one", "I was never rebooked"),
        ("cancelling my {p} to Köln", "a {p} that was cancelled without a word"),
        ("not cancelling my {p} to Köln", "rebooking us after the cancelled {p}"),
        ("why was my {p} cancelled without a word", "how do I get home when you cancel each {p}"),
        ("will the {p} be cancelled if it snows", "can I cancel the {p} to Köln up to a day before"),
        ("the {p} not to be cancelled", "the {p} to run in this snow"),
    ),
    Issue(
        "loss", "bag/suitcase/pram/guitar", "lost safe found",
        ("you lost my {p}", "my {p} never came off the plane"),
        ("you did not lose my {p}", "my {p} was the first off the plane"),
        ("you found it within the hour", "a driver brought it to my hotel"),
        ("you have not found it", "no one brought it to my hotel"),
        ("losing my {p} on a direct flight", "sending the {p} to another country"),
        ("finding my lost {p}", "not losing my {p} on {n} flights"),
        ("where is my {p} after {n} days", "how do you lose a {p} on a direct flight"),
        ("what happens if my {p} is lost", "where do I drop off a {p} before the flight"),
        ("the {p} not to be lost", "my {p} to come off the plane first"),
    ),
    Issue(
        "size", "shirt/jacket/dress/boot", "tight fitting swapped",
        ("you sent the {p} in the wrong size", "the {p} was {n} sizes too small"),
        ("you sent the {p} in the right size", "the {p} was not too small, it fitted"),
        ("you swapped it at no cost", "the right size came the next day"),
        ("you want {e} € to swap it", "the right size is sold out, you say"),
        ("a {p} that is {n} sizes too small", "sending me the wrong size of {p}"),
        ("a {p} that fits", "swapping the {p} for the right size"),
        ("why is the {p} {n} sizes too small", "who labels a tiny {p} as large"),
        ("is the {p} too small for a tall man", "can I swap the {p} if the size is wrong"),
        ("a {p} that is not too small", "the {p} to fit"),
    ),
    Issue(
        "fee", "loan/account/card/transfer", "hidden free waived",
        ("you added a hidden fee of {e} € to my {p}", "the {p} cost {e} € more than you said"),
        ("you added no hidden fee to my {p}", "the {p} cost {e} € less than you said"),
        ("you waived it on the spot", "your bank dropped the fee"),
        ("you refused to waive it", "your bank kept the fee"),
        ("hiding a fee of {e} € in my {p}", "the hidden fee on the {p}"),
        ("waiving the fee on my {p}", "a {p} without a hidden fee"),
        ("why is there a fee of {e} € on my {p}", "who hides a fee in a free {p}"),
        ("is there a fee of {e} € on the {p}", "do you waive the fee on a {p} for students"),
        ("a {p} without a hidden fee", "the {p} to be free"),
    ),
    Issue(
        "signal", "wifi/internet/hotspot/phone line", "down fast repaired",
        ("the {p} was down for {n} hours", "our {p} dropped every evening"),
        ("the {p} was not down for a minute", "our {p} never dropped in the evening"),
        ("your engineer repaired it before lunch", "it was back before I hung up"),
        ("your engineer did not turn up", "it was down again before I hung up"),
        ("a {p} that is down all weekend", "dropping our {p} in the middle of my exam"),
        ("a {p} that never drops", "repairing our {p} on a Sunday"),
        ("why is the {p} down for {n} hours every week", "how do I work when the {p} drops all day"),
        ("will the {p} be down during the works", "how do I test whether our {p} drops"),
        ("the {p} not to drop", "a fast {p}"),
    ),
    Issue(
        "battery", "watch/laptop/scooter/drill", "flat charged exchanged",
        ("the battery of my {p} was dead after {n} hours", "the {p} did not last an hour"),
        ("the battery of my {p} was full after {n} hours", "the {p} lasted the whole day"),
        ("you exchanged the battery for free", "a fresh battery came by post"),
        ("you say a fresh battery costs {e} €", "no fresh battery came by post"),
        ("selling me a {p} with a dead battery", "a battery that dies before my {p} starts"),
        ("selling me a {p} that lasts all day", "the free battery for my {p}"),
        ("why is the battery of my {p} dead again", "how can a new {p} not last an hour"),
        ("does the battery of the {p} last all day", "can I change a dead battery in the {p} myself"),
        ("a {p} that lasts all day", "the battery of the {p} not to die"),
    ),
    Issue(
        "leak", "dishwasher/boiler/kettle/roof tent", "leaking dry sealed",
        ("the {p} leaked all over my floor", "water ran out of the {p}"),
        ("the {p} did not leak on my floor", "no water ran out of the {p}"),
        ("your plumber sealed it in ten minutes", "a free seal solved it"),
        ("your plumber wants {e} € to look at it", "a seal for {e} € did not solve it"),
        ("a {p} that leaks on day one", "the lake my {p} left on the floor"),
        ("a {p} that does not leak after {n} years", "stopping the leak in my {p}"),
        ("why does a new {p} leak", "who pays for my floor now that the {p} leaks"),
        ("does the {p} leak if it lies on its side", "how do I seal a {p} that leaks"),
        ("a {p} that does not leak", "the {p} to stay dry"),
    ),
    Issue(
        "dirt", "bathroom/hire car/kitchen/pool", "dirty spotless cleaned",
        ("there was hair all over the {p}", "the {p} was dirty and it smelled"),
        ("there was not one hair in the {p}", "the {p} was not dirty, it shone"),
        ("two people cleaned it at once", "you cleaned it and gave me {e} € off"),
        ("no one came to clean it", "you charged me {e} € for cleaning"),
        ("the hair in the {p}", "a dirty {p} for {e} € a day"),
        ("the spotless {p}", "cleaning the dirty {p} within minutes"),
        ("why was the {p} dirty when we came", "who cleans the {p} and leaves hair in it"),
        ("do I pay {e} € if the {p} is dirty", "who cleans the {p} after we leave"),
        ("a {p} that is not dirty", "a clean {p}"),
    ),
)  # fmt: skip

OPENINGS = {
    "polite": ("Hi, ", "Hello team, ", "Good morning, ", "Dear {b}, ", "hi there, ", "@{b} hello, "),
    "plain": ("", "", "", "", "@{b} ", "so, ", "FYI, ", "@{b}: "),
    "loud": ("Wow, ", "OMG ", "@{b} hey!! ", "honestly, ", "hey @{b}, ", "Well well, "),
}
ENDINGS = {
    "polite": (". Please let me know.", ". Kind regards, {w}", ". Thank you, {w}", ". Best wishes, {w}", "."),
    "plain": ("", "", ".", ".", " #{b}", " ({w})", ", order {o}", " ..."),
    "loud": ("!", "!!!", " 🙄", " 😅", "!! #{b}", " 🤯", ", really!", " 👀"),
}
BRANDS = ("ParcelPost", "NordAir", "CaféLuna", "MüllerBank", "FixIt24", "GoRail", "Casa_Bleu", "tele_one")
WRITERS = ("Zoë", "Jürgen", "Ana", "Liam", "Priya", "José", "Mei", "Tom", "Aïcha", "Olga")
NUMBERS = ("two", "three", "four", "five", "six", "2", "3", "4", "5", "7")
PRICES = ("4.99", "9", "12", "19.50", "25", "30", "48", "60", "75", "120")
WHEN = ("this morning", "yesterday", "on Tuesday", "last night", "at 7 pm", "on Friday", "today", "at 9:30")
RIVALS = ("at the other shop", "with your rival", "at my old firm", "at the place next door")
YOURS = ("with you", "with your firm", "here", "at your place")
BEFORE = ("last year", "last time", "in spring", "before")
NOW = ("this year", "this time", "now", "this week")
REMARKS = ("you made my day", "just what I needed", "I will tell my friends", "that was quick", "what a week")
NOTES = (
    "just ordered the {p}, see you {f}", "on my way to you for the {p}", "my sister bought the {p} you sell",
    "I booked the {p} for {f}", "reading your page about the {p}",
)  # fmt: skip
FUTURE = ("next week", "tomorrow", "on Monday", "for the holidays", "in June")


class Message(NamedTuple):
    """One message with everything the grammar knows about it."""

    text: str
    label: str
    issue: str
    product: str
    form: str
    tone: str
    state: str


class Draw:
    """The choices behind one message: which issue, which product, and a random source for the rest."""

    def __init__(self, issue: Issue, rng: random.Random) -> None:
        self.issue = issue
        self.rng = rng
        self.product = rng.choice(issue.products.split("/"))

    def any(self, options: tuple[str, ...]) -> str:
        """One option with its slots filled."""
        rng = self.rng
        return rng.choice(options).format(
            p=self.product, n=rng.choice(NUMBERS), e=rng.choice(PRICES), b=rng.choice(BRANDS),
            w=rng.choice(WRITERS), o=rng.randint(1000, 9999), f=rng.choice(FUTURE),
        )  # fmt: skip

    def sides(self, complaint: bool) -> tuple[str, str]:
        """What did not happen (or not here, or not now), then what did."""
        bad, good = self.any(self.issue.bad), self.any(self.issue.good)
        return (good, bad) if complaint else (bad, good)


def story(d: Draw, complaint: bool) -> str:
    _, fact = d.sides(complaint)
    when = d.any(WHEN)
    return d.rng.choice((f"{when} {fact}", f"{fact} {when}", fact))


def repair(d: Draw, complaint: bool) -> str:
    end = d.any(d.issue.nofix if complaint else d.issue.fix)
    bad = d.any(d.issue.bad)
    return d.rng.choice((f"{bad} and {end}", f"{bad}, {end}", f"{d.any(WHEN)} {bad}, {end}", f"{bad}. {end}"))


def thanks(d: Draw, complaint: bool) -> str:
    deed = d.any(d.issue.blame if complaint else d.issue.praise)
    remark = d.any(REMARKS)
    return d.rng.choice((f"thanks for {deed}, {remark}", f"{remark}, thanks for {deed}", f"thank you for {deed}"))


def question(d: Draw, complaint: bool) -> str:
    return d.any(d.issue.why if complaint else d.issue.ask) + "?"


def wish(d: Draw, complaint: bool) -> str:
    _, fact = d.sides(complaint)
    hope = d.any(d.issue.wish)
    ends = [f"I was hoping for {hope} and {fact}", f"{fact}, I was hoping for {hope}"]
    if not complaint:
        ends.append(f"I am hoping for {hope} {d.any(FUTURE)}")
    return d.rng.choice(ends)


def compare(d: Draw, complaint: bool) -> str:
    elsewhere, here = d.sides(complaint)
    elsewhere = re.sub(r"\byou(r?)\b", lambda m: "their" if m[1] else "they", elsewhere)
    parts = [f"{d.any(RIVALS)} {elsewhere}", f"{d.any(YOURS)} {here}"]
    d.rng.shuffle(parts)
    return d.rng.choice((", ", ", but ", " and ")).join(parts)


def change(d: Draw, complaint: bool) -> str:
    before, now = d.sides(complaint)
    parts = [f"{d.any(BEFORE)} {before}", f"{d.any(NOW)} {now}"]
    d.rng.shuffle(parts)
    return d.rng.choice((", ", ", but ", " and ")).join(parts)


def belief(d: Draw, complaint: bool) -> str:
    thought, fact = d.sides(complaint)
    return d.rng.choice(
        (f"I thought {thought}, but {fact}", f"at first it looked as if {thought}, in fact {fact}",
         f"{fact}, and I was sure {thought}")
    )  # fmt: skip


def note(d: Draw, complaint: bool) -> str:
    return d.any(d.issue.bad) + " again" if complaint else d.any(NOTES)


FORMS: dict[str, Callable[[Draw, bool], str]] = {
    form.__name__: form for form in (story, repair, thanks, question, wish, compare, change, belief, note)
}


def state_of(issue: Issue, form: str, body: str, complaint: bool) -> str:
    """The word for how things stand once the message is read; `open` where nothing has happened yet."""
    bad, good, mended = issue.states.split()
    if complaint:
        return bad
    if form in ("question", "note") or body.startswith("I am hoping"):
        return "open"
    return mended if form == "repair" else good


def misspell(text: str, rng: random.Random) -> str:
    """Swap two inner letters of one word, as a thumb does."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not long:
        return text
    i = rng.choice(long)
    at = rng.randint(1, len(words[i]) - 3)
    word = words[i]
    words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def typed(text: str, rng: random.Random) -> str:
    """The message as a thumb types it: casing and a misspelling, whatever the label."""
    roll = rng.random()
    if roll < 0.30:
        text = text.lower()
    elif roll < 0.33:
        text = text.upper()
    elif roll < 0.80:
        text = text[0].upper() + text[1:]
    return misspell(text, rng) if rng.random() < 0.12 else text


def message(rng: random.Random) -> Message:
    """Draw one message; the label, the issue, the form and the tone are drawn independently."""
    complaint = rng.random() < 0.5
    issue = rng.choice(ISSUES)
    form = rng.choice([*FORMS][:-1]) if rng.random() < 0.95 else "note"
    tone = rng.choice((*OPENINGS,))
    d = Draw(issue, rng)
    body = FORMS[form](d, complaint)
    text = typed(d.any(OPENINGS[tone]) + body + d.any(ENDINGS[tone]), rng)
    text = re.sub(r"\?[.,]+", "?", text)
    state = state_of(issue, form, body, complaint)
    return Message(text, COMPLAINT if complaint else NO_COMPLAINT, issue.key, d.product, form, tone, state)


def triple(m: Message) -> tuple[str, str, str]:
    return m.issue, m.form, m.label


def reserved(seed: int) -> frozenset[tuple[str, str, str]]:
    """The triples of issue, form and label that only the held-out split may show: one in six."""
    triples = sorted(
        (issue.key, form, label) for issue in ISSUES for form in FORMS for label in (COMPLAINT, NO_COMPLAINT)
    )
    return frozenset(random.Random(f"reserved {seed}").sample(triples, len(triples) // 6))


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def near(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) >= NEAR * len(one | other)


def pick(rng: random.Random, taken: list[frozenset[str]], allowed: Callable[[Message], bool]) -> Iterator[Message]:
    """Endless messages that are allowed and not near-identical to anything taken or drawn so far."""
    seen = list(taken)
    while True:
        m = message(rng)
        bag = words(m.text)
        if allowed(m) and not any(near(bag, other) for other in seen):
            seen.append(bag)
            yield m


def balanced(source: Iterator[Message], rows: int) -> list[Message]:
    """The first messages of `source` with as many complaints as not."""
    room = {COMPLAINT: rows // 2, NO_COMPLAINT: rows - rows // 2}
    chosen: list[Message] = []
    while len(chosen) < rows:
        m = next(source)
        if room[m.label]:
            room[m.label] -= 1
            chosen.append(m)
    return chosen


def splits(seed: int = SEED) -> tuple[list[Message], list[Message]]:
    """The training rows, then the held-out rows, half of which show a reserved triple."""
    rng = random.Random(seed)
    kept_back = reserved(seed)
    train = balanced(pick(rng, [], lambda m: triple(m) not in kept_back), TRAIN_ROWS)
    bags = [words(m.text) for m in train]
    known = balanced(pick(rng, bags, lambda m: triple(m) not in kept_back), HELD_OUT_ROWS // 2)
    bags += [words(m.text) for m in known]
    novel = balanced(pick(rng, bags, lambda m: triple(m) in kept_back), HELD_OUT_ROWS // 2)
    held_out = known + novel
    rng.shuffle(held_out)
    return train, held_out


def line(m: Message) -> str:
    """One JSON line; `output` is what a model is trained on."""
    row = {"text": m.text, "label": m.label, "output": f"### Text: {m.text}\n\n### Label: {m.label}"}
    return json.dumps(row, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write train.jsonl and held_out.jsonl of the complaints task.")
    home = Path(__file__).parents[1] / "src" / "fmstune" / "assets" / "complaints"
    parser.add_argument("--out", type=Path, default=home, help="folder to write to")
    parser.add_argument("--seed", type=int, default=SEED, help="the same seed writes the same bytes")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("train", "held_out"), splits(args.seed), strict=True):
        path = args.out / f"{name}.jsonl"
        path.write_text("".join(map(line, rows)), encoding="utf-8", newline="\n")
        print(f"{path.name}: {len(rows)} rows, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
