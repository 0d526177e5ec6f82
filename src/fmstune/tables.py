"""Text for a terminal: tables, sizes, and plain characters where the terminal lacks others."""

import codecs
import io
import sys
from collections.abc import Collection, Sequence
from itertools import groupby

MIB = 2**20
GIB = 2**30
_PICTURES = {chr(0x2400 + code): f"^{chr(0x40 + code)}" for code in range(32)}
_PLAIN = _PICTURES | dict(zip("─█·→↵⟦⟧−≈×–—‘’“”\u00a0", "-#.>$[]-~x--''\"\" ", strict=True)) | {"…": "...", "±": "+/-"}
"""What stands for the characters of fmstune's own views; all others are shown by their numbers."""


def show_plain_characters() -> None:
    """Let standard output and error show what their encoding lacks by plain characters, where they would raise."""
    codecs.register_error("fmstune.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="fmstune.plain")


def _plain(err: UnicodeError) -> tuple[str, int]:
    if not isinstance(err, UnicodeEncodeError):
        raise err
    text = err.object[err.start : err.end]
    return "".join(_PLAIN.get(one) or one.encode("ascii", "backslashreplace").decode() for one in text), err.end


def show_bytes(count: int) -> str:
    """Show a number of bytes in MiB or GiB."""
    return f"{count / GIB:,.2f} GiB" if count >= GIB else f"{count / MIB:,.1f} MiB"


def show_clock(seconds: float) -> str:
    """Show seconds as M:SS, and as H:MM:SS from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def count_of(count: int, noun: str) -> str:
    """Show so many things of a name whose plural ends in s."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def lines(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,), least: Sequence[int] = ()
) -> list[str]:
    """Heads, a rule and the rows; columns of `left` begin alike, others end alike; `least` widens the first columns."""
    wide = [*least, *[0] * len(heads)]
    widths = [max(wide[i], *(len(row[i]) for row in (heads, *rows))) for i in range(len(heads))]
    form = "  ".join(f"{{:{'<' if i in left else '>'}{width}}}" for i, width in enumerate(widths))
    head, *aligned = (form.format(*row).rstrip() for row in (heads, *rows))
    return [head, "─" * (sum(widths) + 2 * (len(widths) - 1)), *aligned]


def numbers(rows: Sequence[int]) -> str:
    """Row numbers in ascending order for a message: neighbours together, and of very many the first ones."""
    spans = [[row for _, row in pairs] for _, pairs in groupby(enumerate(rows), key=lambda pair: pair[1] - pair[0])]
    shown, rest = spans[:_MOST_SPANS], sum(map(len, spans[_MOST_SPANS:]))
    texts = [f"{span[0]} to {span[-1]}" if len(span) > 2 else ", ".join(map(str, span)) for span in shown]
    return ", ".join(texts) + (f" and {rest:,} more" if rest else "")


_MOST_SPANS = 64
"""More would hide what the message says of them."""
