"""The files that a run writes, and the reports made from them."""
