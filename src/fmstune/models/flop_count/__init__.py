"""The floating-point operations of a training step: what a model takes for a position, and what a batch has of them."""
