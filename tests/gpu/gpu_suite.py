"""Whether the suite for a GPU runs on one, or shows on a CPU that it would run."""

import os

DRY_RUN = os.environ.get("CELLSEG_GPU_DRY_RUN") == "1"
"""Set by hand: the same tests on a CPU that acts as a GPU, smaller and without what only CUDA can tell."""
