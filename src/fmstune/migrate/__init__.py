"""Commands of the early tool become commands of today."""
