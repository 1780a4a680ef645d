"""Four kinds of cells, told apart by size, shape, texture and colour, as a stained tissue section shows them.

A cell is drawn as amounts of stain, not as colours: haematoxylin (blue-purple, binds to nuclei), eosin (pink) and
brown pigment. :mod:`~cellseg.data.synthetic.scene` turns the stains of the whole section into light.

Shape suffixes: h, w the cell's own window, S stains in the order of :data:`STAINS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cellseg.data.synthetic.texture import smooth_noise

STAINS = ("haematoxylin", "eosin", "brown")


@dataclass(frozen=True, slots=True)
class Drawing:
    """One cell in its own window, not yet anywhere in an image. The window is square with the cell at its centre."""

    cover_hw: np.ndarray
    """float32 in [0, 1]: the share of each pixel that lies inside the outline."""
    stain_hwS: np.ndarray
    """(h, w, S) float32, >= 0: amounts of stain inside the cell; 1 is a strong stain."""

    @property
    def mask_hw(self) -> np.ndarray:
        """bool: the pixels that belong to the cell, those at least half covered."""
        return self.cover_hw >= 0.5


def draw_lymphocyte(rng: np.random.Generator) -> Drawing:
    """Draw a small, round, nearly black nucleus with clumped chromatin; 10 to 14 px wide."""
    radius = rng.uniform(5.2, 7.0)
    x, y = _grid(rng, radius * 1.2)
    level = _blob(rng, x, y, radius, radius * rng.uniform(0.85, 1.0), waves={2: 0.03, 3: 0.03})
    clumps = smooth_noise(rng, x.shape, grain=2.2)
    haematoxylin = rng.uniform(1.45, 1.8) * (1 + 0.16 * clumps + 0.15 * _rim(level, 1.5))
    return _drawing(level, haematoxylin, eosin=0.25, brown=0.0)


def draw_epithelial(rng: np.random.Generator) -> Drawing:
    """Draw a pale oval nucleus with a dark membrane and one or two nucleoli; 16 to 26 px wide."""
    length = rng.uniform(9.5, 13.0)
    x, y = _grid(rng, length * 1.15)
    level = _blob(rng, x, y, length, length * rng.uniform(0.68, 0.85), waves={2: 0.03, 3: 0.04})
    fine, coarse = smooth_noise(rng, x.shape, grain=1.6), smooth_noise(rng, x.shape, grain=4.0)
    haematoxylin = rng.uniform(0.34, 0.48) * (1 + 0.18 * fine + 0.18 * coarse) + 0.55 * _rim(level, 1.3)
    eosin = np.full_like(x, 0.10)
    for _ in range(rng.integers(1, 3)):
        centre_x, centre_y = rng.uniform(-0.35, 0.35, size=2) * length * 0.75
        nucleolus = _disc(x - centre_x, y - centre_y, rng.uniform(1.6, 2.3))
        haematoxylin = haematoxylin + 0.9 * nucleolus
        eosin = eosin + 0.5 * nucleolus
    return _drawing(level, haematoxylin, eosin, brown=0.0)


def draw_spindle(rng: np.random.Generator) -> Drawing:
    """Draw a long, thin, slightly bent blue nucleus with pointed ends; 24 to 38 px long, 7 to 10 px thick."""
    length, thickness = rng.uniform(13, 19), rng.uniform(3.8, 5.2)
    x, y = _grid(rng, length * 1.05)
    along, across = _turn(x, y, rng.uniform(0, np.pi))
    across = across - rng.uniform(-0.22, 0.22) * (along**2 / length - length / 3)
    level = 1 - (along / length) ** 2 - np.abs(across / thickness) ** 1.6
    streaks = smooth_noise(rng, x.shape, grain=2.6)
    haematoxylin = rng.uniform(0.85, 1.1) * (0.9 + 0.22 * streaks + 0.15 * _rim(level, 1.2))
    return _drawing(level, haematoxylin, eosin=0.0, brown=0.0)


def draw_macrophage(rng: np.random.Generator) -> Drawing:
    """Draw a large lobed cell with brown grains around a nucleus of two or three dark lobes; 24 to 38 px wide."""
    radius = rng.uniform(12.5, 17.0)
    x, y = _grid(rng, radius * 1.3)
    waves = {2: 0.05, 3: rng.uniform(0.03, 0.09), 4: 0.04, 5: rng.uniform(0.02, 0.07)}
    level = _blob(rng, x, y, radius, radius * rng.uniform(0.85, 1.0), waves)
    grains = smooth_noise(rng, x.shape, grain=1.9)
    cloud = smooth_noise(rng, x.shape, grain=7.0)
    brown = rng.uniform(0.50, 0.65) * (1 + 0.30 * np.clip(grains, -1, 2) + 0.15 * cloud + 0.4 * _rim(level, 1.6))
    nucleus = np.zeros_like(x)
    start, step = rng.uniform(0, 2 * np.pi), rng.uniform(0.9, 1.3)
    for lobe in range(rng.integers(2, 4)):
        angle = start + lobe * step
        centre_x, centre_y = 0.36 * radius * np.cos(angle), 0.36 * radius * np.sin(angle)
        nucleus = np.maximum(nucleus, _disc(x - centre_x, y - centre_y, radius * rng.uniform(0.24, 0.30)))
    haematoxylin = nucleus * (0.95 + 0.12 * grains)
    return _drawing(level, haematoxylin, eosin=0.12, brown=brown * (1 - 0.6 * nucleus))


KINDS: dict[str, Callable[[np.random.Generator], Drawing]] = {
    "lymphocyte": draw_lymphocyte,
    "epithelial": draw_epithelial,
    "spindle": draw_spindle,
    "macrophage": draw_macrophage,
}
"""Name of each class, from class 1 on, with the function that draws a cell of it."""


# Below, ``level`` is a field that is positive inside the outline, 0 on it, and 1 at the cell's centre.


def _grid(rng: np.random.Generator, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Return pixel coordinates x, y of a window that extends ``reach`` px to all sides of a centre between the
    pixels."""
    half = int(np.ceil(reach)) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    shift_x, shift_y = rng.uniform(-0.5, 0.5, size=2).astype(np.float32)
    return x + shift_x, y + shift_y


def _turn(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _blob(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, length: float, width: float, waves: dict[int, float]
) -> np.ndarray:
    """Compute the level of a rotated ellipse (semi-axes in px) with ``k`` waves of a share of its radius around it."""
    along, across = _turn(x, y, rng.uniform(0, np.pi))
    theta = np.arctan2(across, along)
    swing = 1 + sum(share * np.cos(k * theta + rng.uniform(0, 2 * np.pi)) for k, share in waves.items())
    return 1 - np.hypot(along / length, across / width) / swing


def _depth(level: np.ndarray) -> np.ndarray:
    """Compute the distance to the outline in px, positive inside; exact to first order, so accurate at the edge."""
    slope = np.hypot(*np.gradient(level))
    return level / np.maximum(slope, 1e-3)


def _rim(level: np.ndarray, thickness: float) -> np.ndarray:
    """Draw the membrane: 1 on the outline, falling to 0 over ``thickness`` px inwards."""
    return np.exp(-((np.maximum(_depth(level), 0) / thickness) ** 2))


def _disc(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Compute the cover of a disc around the origin."""
    return np.clip(radius - np.hypot(x, y) + 0.5, 0, 1)


def _drawing(
    level: np.ndarray, haematoxylin: np.ndarray | float, eosin: np.ndarray | float, brown: np.ndarray | float
) -> Drawing:
    stains = np.stack([np.broadcast_to(stain, level.shape) for stain in (haematoxylin, eosin, brown)], axis=-1)
    cover = np.clip(_depth(level) + 0.5, 0, 1)
    return Drawing(cover.astype(np.float32), np.maximum(stains, 0).astype(np.float32))
