"""Smooth random fields: the irregularity of tissue and chromatin."""

import cv2
import numpy as np


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], grain: float) -> np.ndarray:
    """Generate (H, W) float32 noise of about zero mean and unit spread whose bumps are ``grain`` pixels wide."""
    height, width = size
    # Interpolating a coarse grid costs the same for every grain; a Gaussian filter would grow with it.
    knots = rng.standard_normal((int(height / grain) + 4, int(width / grain) + 4), dtype=np.float32)
    rows = np.arange(height, dtype=np.float32) / grain + 1 + rng.random(dtype=np.float32)
    columns = np.arange(width, dtype=np.float32) / grain + 1 + rng.random(dtype=np.float32)
    return _sample(knots, *np.meshgrid(rows, columns, indexing="ij"))


def fibres(rng: np.random.Generator, size: tuple[int, int], length: float, thickness: float) -> np.ndarray:
    """Generate (H, W) float32 noise of wavy strands in one random direction; sizes in pixels, about unit spread."""
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle) + 0.15 * length * smooth_noise(rng, size, length)
    along, across = (along - along.min()) / length + 1, (across - across.min()) / thickness + 1
    knots = rng.standard_normal((int(across.max()) + 3, int(along.max()) + 3), dtype=np.float32)
    return _sample(knots, across, along)


def _sample(knots: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    # Cubic interpolation of independent knots loses about an eighth of their spread.
    noise = cv2.remap(knots, columns.astype(np.float32), rows.astype(np.float32), cv2.INTER_CUBIC)
    return np.asarray(1.15 * noise, dtype=np.float32)
