"""Tables and sizes as text for a terminal."""

from collections.abc import Collection, Sequence

MIB = 2**20
GIB = 2**30


def show_bytes(count: int) -> str:
    """Show a number of bytes in MiB or GiB."""
    return f"{count / GIB:,.2f} GiB" if count >= GIB else f"{count / MIB:,.1f} MiB"


def lines(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,), least: Sequence[int] = ()
) -> list[str]:
    """Heads, a rule and the rows; columns of `left` begin alike, others end alike; `least` widens the first columns."""
    wide = [*least, *[0] * len(heads)]
    widths = [max(wide[i], *(len(row[i]) for row in (heads, *rows))) for i in range(len(heads))]
    form = "  ".join(f"{{:{'<' if i in left else '>'}{width}}}" for i, width in enumerate(widths))
    head, *aligned = (form.format(*row).rstrip() for row in (heads, *rows))
    return [head, "─" * (sum(widths) + 2 * (len(widths) - 1)), *aligned]
