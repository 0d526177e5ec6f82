"""One run, from a checked job to its artifacts."""
