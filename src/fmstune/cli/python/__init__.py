"""The command from Python: each function starts it as a process of its own, and gives its answer as an object."""
