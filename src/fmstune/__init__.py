"""fmstune: compose, check, train and compare fine-tuning runs of causal language models."""

__version__ = "0.1.0"
