"""Rows that hurt: an order of the training rows of a run by their losses, and what is shown of the first."""
