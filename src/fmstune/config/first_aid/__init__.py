"""Verbs that look after runs and the files of a job, and start no run."""
