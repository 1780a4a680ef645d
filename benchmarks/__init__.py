"""Measurements anyone can run: ours against the reference, in one process."""
