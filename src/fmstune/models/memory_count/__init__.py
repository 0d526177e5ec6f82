"""The memory of a training step, counted without numbers."""
