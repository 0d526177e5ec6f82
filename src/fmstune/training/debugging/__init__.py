"""Callbacks of the group `debug`, which find out what is wrong with a job."""
