"""Trackers: one class in one module each, named by the `_target_` of a file in conf/tracking."""
