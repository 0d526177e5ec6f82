"""Objectives that a model can be trained for: rows, trainer and scores of each."""
