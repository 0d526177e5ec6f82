"""Rows that begin alike: how a batch computes their beginnings once, and how an epoch brings them together."""
