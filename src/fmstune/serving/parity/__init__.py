"""Proof that a model is served as it was trained."""
