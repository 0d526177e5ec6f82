"""`fmstune chat`: messages from a pipe are answered as `fmstune generate` answers them, and commands are obeyed."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from fmstune.serving import talk, typed_lines
from tests.conftest import Result
from tests.serving.conftest import QUESTIONS, TOKENS, generated

Fmstune = Callable[..., Result]
Said = Callable[..., Result]


@pytest.fixture
def said(fmstune: Fmstune, monkeypatch: pytest.MonkeyPatch) -> Said:
    """Let a model answer these lines."""

    def say(*words: Any, lines: list[str]) -> Result:
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
        return fmstune("chat", *map(str, words))

    return say


def saved(name: str) -> list[Any]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def test_answers_stand_side_by_side_in_columns() -> None:
    shown = talk.side_by_side({"tuned": "We are sorry about it.", "base": "No\n\nyes"}, 27)
    assert shown == [
        "tuned          base",
        "-----          ----",
        "We are sorry   No",
        "about it.",
        "               yes",
    ]


def test_a_terminal_takes_several_lines_keeps_a_private_history_and_ctrl_c_drops_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(typed_lines, "in_terminal", lambda: True)
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("a\x1b\rb\r" + "dropped\x03" + "c\\\rd\r" + "e\\\r" + "\x04\x04")
        assert list(typed_lines.typed_messages("history", [])) == ["a\nb", "c\nd", "e"]
    assert "(/quit or Ctrl-D leaves)" in capsys.readouterr().out
    assert "+a\n+b\n" in Path("history").read_text()
    assert Path("history").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_a_conversation_goes_on_begins_anew_and_is_saved(said: Said, tuned: Path) -> None:
    lines = [
        QUESTIONS[0],
        "/save a.jsonl",
        "And\\",
        "again?",
        "/save a.jsonl",
        "/system Be kind.",
        "Hi",
        "/save b.jsonl",
    ]
    done = said(tuned, f"--max_new_tokens={TOKENS}", lines=[*lines, "/reset", "/save c.jsonl", "/quit", "never asked"])
    assert done.code == 0, done.err
    assert done.out.startswith(generated(tuned, "answers.json")[QUESTIONS[0]])
    first, second = saved("a.jsonl")
    assert [turn["role"] for turn in second["messages"]] == ["user", "assistant"] * 2
    assert second["messages"][:2] == first["messages"] and second["messages"][2]["content"] == "And\nagain?"
    assert saved("b.jsonl")[0]["messages"][0] == {"role": "system", "content": "Be kind."}
    assert saved("c.jsonl")[0]["messages"] == [{"role": "system", "content": "Be kind."}]
    assert done.out.count("\n") == len(done.out.split("\n")) - 1 and "never asked" not in done.out


@pytest.mark.slow
def test_the_base_answers_alone_or_beside_the_tuned_model(said: Said, tuned: Path) -> None:
    lines = ["/base", QUESTIONS[0], "/save base.jsonl", "/reset", "/compare", QUESTIONS[0], "/save both.jsonl", "/bas"]
    done = said(tuned, f"--max_new_tokens={TOKENS}", lines=lines)
    (base,), (one, other) = saved("base.jsonl"), saved("both.jsonl")
    assert (one["model"], other["model"]) == ("tuned", "base")
    assert one["messages"][1]["content"] == generated(tuned, "answers.json")[QUESTIONS[0]]
    assert other["messages"] == base["messages"] != one["messages"]
    assert "\ntuned " in done.out and done.out.split("\ntuned ")[1].split("\n")[0].strip() == "base"
    assert "error: unknown command /bas; did you mean '/base'?; /help lists them" in done.err


@pytest.mark.slow
def test_ctrl_c_stops_an_answer_and_not_the_talk(said: Said, tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        if text and shown.count("interrupted") == 0:
            shown.append("interrupted")
            raise KeyboardInterrupt

    monkeypatch.setattr(talk, "_show", show)
    done = said(tuned, "--temperature=1.9", "--max_new_tokens=400", lines=["Hi", "/reset", QUESTIONS[1]])
    assert done.code == 0
    assert " [stopped]" in shown and len(shown) > shown.index(" [stopped]") + 1


@pytest.mark.slow
def test_a_model_without_a_chat_template_continues_texts_and_takes_no_system_turn(said: Said) -> None:
    done = said("package:tiny_llama", "--max_new_tokens=4", lines=["The driver", "/system Be kind.", "/base", "/help"])
    assert done.code == 0
    assert "fmstune: note: the model has no chat template, so it continues texts" in done.err
    assert "error: /system is for a model with a chat template" in done.err
    assert "error: /base: only tuned is there; name it with --base_model_name_or_path" in done.err
    assert all(command in done.out for command in talk.COMMANDS)
