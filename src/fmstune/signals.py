"""The signals that end a run, and those that ask it to save a checkpoint and stop."""

import signal

INTERRUPTING = frozenset({signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])})
"""Signals by which somebody ends a run on purpose: Ctrl-C, a scheduler, a closed terminal."""
NOTICES = frozenset(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""Signals that ask a run to save a checkpoint and stop."""
