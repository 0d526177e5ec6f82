"""Files become rows, rows become tokens, tokens are cached; importing it needs no torch."""
