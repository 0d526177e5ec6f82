"""The tests mirror the rooms of src/fmstune; end_to_end, bad_inputs and project hold what belongs to no one room."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The checkout."""
