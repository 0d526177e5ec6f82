"""What is known before a weight is read."""
