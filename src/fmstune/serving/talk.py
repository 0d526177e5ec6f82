"""`fmstune chat` in the runner: messages are answered in the terminal, by the tuned model, its base, or both."""

import json
import queue
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fmstune.config.after_training.serving import Talk
from fmstune.errors import UserError, did_you_mean
from fmstune.files import explain_write_errors
from fmstune.serving.engine import Engine, Piece, Question
from fmstune.serving.served_models import BASE, TUNED, Served, load_served
from fmstune.serving.typed_lines import typed_messages
from fmstune.tables import count_of

COMMANDS = {
    "/reset": "begin a new conversation",
    "/system TEXT": "begin a new conversation with this system turn; without TEXT, without one",
    "/base": "let the base answer from here on",
    "/tuned": "let the tuned model answer from here on",
    "/compare": "let both answer, side by side",
    "/save FILE": "add the conversation to a file of JSON lines, as a row of data=chat",
    "/help": "show this list",
    "/quit": "leave, as Ctrl-D does",
}
GAP = 3
"""Columns between the answers of two models."""


def hold_talk(request: Talk) -> int:
    """Answer messages until the input ends; raises UserError where the model cannot be loaded."""
    served = load_served(request)
    if request.compare and BASE not in served.models:
        raise UserError("--compare", ": the base is not known; name it with --base_model_name_or_path")
    engine = Engine(served.models, served.asker.tokenizer, batch_size=1)
    # again and again: Ctrl-C stops an answer, and not the talk
    signal.signal(signal.SIGINT, signal.default_int_handler)
    talk = Conversation(served, engine, request)
    words = [command.partition(" ")[0] for command in COMMANDS]
    try:
        for line in talk.greeting():
            print(line, file=sys.stderr, flush=True)
        for text in typed_messages(request.history, words):
            try:
                if text.startswith("/"):
                    if not talk.obey(text):
                        break
                else:
                    talk.say(text)
            except UserError as err:
                print(f"fmstune: error: {err}", file=sys.stderr, flush=True)
            except KeyboardInterrupt:
                print(flush=True)
    finally:
        engine.close(timeout=5)
    return 0


class Conversation:
    """What was said so far, to each model that answers, and what is set for the next answer."""

    def __init__(self, served: Served, engine: Engine, request: Talk) -> None:
        self.served, self.engine, self.request = served, engine, request
        self.answering = [TUNED, BASE] if request.compare else [TUNED]
        self.system: str | None = None
        self.turns: dict[str, list[dict[str, Any]]] = {}
        if request.system is not None:
            self._begin_with(request.system)
        self._reset()

    def greeting(self) -> list[str]:
        """What the terminal says first."""
        asker, models = self.served.asker, " and ".join(self.served.models)
        how = "with the conversation so far" if asker.is_chat else f"alone, in the format {asker.name}"
        if asker.format is None:
            how = "alone, and continued as a text"
        lines = [f"fmstune: {self.request.model}: {models}; each message is asked {how}"]
        if sys.stdin.isatty():
            lines.append("fmstune: Alt+Enter begins a line, Ctrl-C stops an answer, /help lists commands")
        return lines

    def obey(self, text: str) -> bool:
        """Do what a command says; False where it ends the talk. Raises UserError."""
        word, _, rest = text.partition(" ")
        match word:
            case "/quit" | "/exit":
                return False
            case "/help":
                print("\n".join(f"{command:<14}{what}" for command, what in COMMANDS.items()))
            case "/reset":
                self._reset()
            case "/system":
                self._begin_with(rest.strip() or None)
                self._reset()
            case "/base" | "/tuned" | "/compare":
                self._let_answer([TUNED, BASE] if word == "/compare" else [word[1:]])
            case "/save":
                self._save(rest.strip())
            case _:
                known = [command.partition(" ")[0] for command in COMMANDS]
                raise UserError("", f"unknown command {word}{did_you_mean(word, known)}; /help lists them")
        return True

    def say(self, text: str) -> None:
        """Have a message answered, and print the answers; raises UserError for one that cannot be asked."""
        turn = {"role": "user", "content": text}
        asked = {name: self._question(name, turn) for name in self.answering}
        several = len(asked) > 1
        answers = {}
        for name, question in asked.items():
            answers[name] = self._answer(question, (lambda _: None) if several else _show)
            self.turns[name] = [*self.turns[name], turn, {"role": "assistant", "content": answers[name]}]
        print("\n".join(side_by_side(answers, shutil.get_terminal_size().columns)) if several else "", flush=True)

    def _begin_with(self, system: str | None) -> None:
        if system is not None and not self.served.asker.is_chat:
            text = f"is for a model with a chat template, and this one is asked with {self.served.asker.name}"
            raise UserError("/system", text)
        self.system = system

    def _reset(self) -> None:
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        self.turns = {name: list(first) for name in self.served.models}

    def _let_answer(self, names: list[str]) -> None:
        if missing := [name for name in names if name not in self.served.models]:
            hint = "name it with --base_model_name_or_path" if not self.request.no_base else "leave --no_base out"
            raise UserError(f"/{missing[0]}", f": only {' and '.join(self.served.models)} is there; {hint}")
        # who comes in goes on from what the one before has heard
        heard = self.turns[self.answering[0]]
        self.turns = {name: turns if name in self.answering else list(heard) for name, turns in self.turns.items()}
        self.answering = names
        print(f"fmstune: {' and '.join(names)} will answer", file=sys.stderr, flush=True)

    def _save(self, file: str) -> None:
        if not file:
            raise UserError("/save", "needs a file, such as /save talk.jsonl")
        rows = [{"messages": self.turns[name], "model": name} for name in self.answering if self.turns[name]]
        place = Path(file).expanduser()
        with explain_write_errors("/save", place), place.open("a", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        print(f"fmstune: added {count_of(len(rows), 'conversation')} to {place}", file=sys.stderr, flush=True)

    def _question(self, name: str, turn: dict[str, Any]) -> Question:
        asker, request = self.served.asker, self.request
        if asker.format is None:
            ids = asker.of_text(turn["content"]).ids
        else:
            ids = asker.of_messages([*(self.turns[name] if asker.is_chat else []), turn]).ids
        room = request.max_new_tokens if self.served.positions is None else self.served.positions - len(ids)
        if room < 1:
            text = f"the conversation has {len(ids):,} tokens of {self.served.positions:,} that the model takes"
            raise UserError("", f"{text}; /reset begins a new one")
        return Question(
            model=name,
            prompt=tuple(ids),
            max_new_tokens=min(room, request.max_new_tokens),
            stops=(asker.tokenizer.eos_token_id, *asker.ends.tokens),
            stop_texts=tuple(asker.ends.texts),
            temperature=request.temperature or 0.0,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=request.seed,
            grows=True,
        )

    def _answer(self, question: Question, show: Callable[[str], None]) -> str:
        """The answer, shown as it grows, up to its end or to Ctrl-C; raises UserError where the model fails."""
        told: queue.SimpleQueue[Piece | Exception] = queue.SimpleQueue()
        tickets = self.engine.ask([(question, told.put)])
        said, finish = "", None
        while finish is None:
            try:
                piece = told.get()
                if isinstance(piece, Exception):
                    raise UserError("", f"the model failed to answer: {piece}")
                said, finish = said + piece.text, piece.finish
                show(piece.text)
            except KeyboardInterrupt:
                self.engine.cancel(tickets)
        if finish == "cancelled":
            show(" [stopped]")
        elif finish == "length":
            show(" […]")
        return said


def _show(text: str) -> None:
    print(text, end="", flush=True)


def side_by_side(answers: dict[str, str], width: int) -> list[str]:
    """The answers in columns under their names, wrapped to the width of the terminal."""
    wide = max((width - GAP * (len(answers) - 1)) // len(answers), 12)
    columns: list[Sequence[str]] = []
    for name, answer in answers.items():
        lines = [line for part in answer.split("\n") for line in textwrap.wrap(part, wide) or [""]]
        columns.append([name, "-" * len(name), *lines])
    return [(" " * GAP).join(f"{cell:<{wide}}" for cell in row).rstrip() for row in zip_longest(*columns, fillvalue="")]
