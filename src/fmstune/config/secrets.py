"""Texts that are written down or shown, without the secrets that an address may hold."""

import re


def left_out(text: str) -> str:
    """The text with `://user:password@` and tokens of the hub left out."""
    hidden = re.sub(r"://[^\s/@:]*:[^\s/@]*@", "://…@", text)
    return re.sub(r"\bhf_[A-Za-z0-9]{20,}", "hf_…", hidden)
