"""What a user types, message by message: with history and editing in a terminal, line by line from a pipe."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from fmstune import cache

GOES_ON = "\\"
"""At the end of a line: the message goes on in the next one."""


def typed_messages(history: str | None, commands: list[str]) -> Iterator[str]:
    """The messages, to the end of the input; an empty one is left out. Ctrl-C in a terminal drops what was typed."""
    edits = in_terminal()
    read = _editor(history, commands) if edits else sys.stdin.readline
    while True:
        try:
            text = _message(read)
        except KeyboardInterrupt:
            if not edits:
                raise
            print("(/quit or Ctrl-D leaves)")
            continue
        if text is None:
            return
        if text.strip():
            yield text.strip()


def in_terminal() -> bool:
    """Whether a user types, and sees what is printed."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _message(read: Callable[[], str]) -> str | None:
    """One message of one or several lines; None at the end of the input."""
    lines: list[str] = []
    with suppress(EOFError):
        while line := read():
            bare = line.removesuffix("\n")
            lines.append(bare.removesuffix(GOES_ON))
            if not bare.endswith(GOES_ON):
                break
    return "\n".join(lines) if lines else None


def _editor(history: str | None, commands: list[str]) -> Callable[[], str]:
    """Reads a message in a terminal; where prompt_toolkit is missing, as Python's input does."""
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    except ImportError:
        hint = "pip install 'fmstune[chat]' adds history and editing of several lines"
        print(f"fmstune: note: prompt_toolkit is missing; {hint}", file=sys.stderr)
        return lambda: input("> ") + "\n"
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    place = Path(history) if history is not None else cache.place() / "chat_history"
    place.parent.mkdir(parents=True, exist_ok=True)
    # what is typed may be private
    os.close(os.open(place, os.O_CREAT | os.O_APPEND, 0o600))
    completer = WordCompleter(commands, sentence=True)
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(place)), completer=completer, complete_while_typing=False, key_bindings=keys
    )
    return lambda: session.prompt("> ", prompt_continuation="  ") + "\n"
