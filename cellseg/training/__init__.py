"""One training run: its loop, its state, and the parts of a step."""
