"""Bytes as a reader sees them."""

MIB = 2**20
GIB = 2**30


def size(count: int) -> str:
    """Bytes for a reader, in MiB or GiB."""
    return f"{count / GIB:,.2f} GiB" if count >= GIB else f"{count / MIB:,.1f} MiB"
