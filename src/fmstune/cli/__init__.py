"""What a user types, and what the parent does with it."""
