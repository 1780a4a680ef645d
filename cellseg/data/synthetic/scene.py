"""Synthetic microscope images: the cells in the tissue, and the light that passes through their stains.

Shape suffixes: H, W the image; S stains; C colour channels.
"""

import numpy as np
from scipy import ndimage

from cellseg.data.planes import stack_masks
from cellseg.data.sample import Sample
from cellseg.data.synthetic.kinds import KINDS, STAINS, Drawing
from cellseg.data.synthetic.section import Section
from cellseg.data.synthetic.texture import fibres, smooth_noise

CELLS = (8, 25)
"""Fewest and most cells to place per ``128 * 128`` pixels of an image; large cells may leave no room for all."""

# Optical density in red, green and blue of one unit of each stain; measured values common in colour deconvolution.
_DENSITY_SC = np.array([[0.65, 0.70, 0.29], [0.05, 0.84, 0.54], [0.27, 0.57, 0.78]], dtype=np.float32)
_FULL = 0.55  # share of the image under cells at which no more are added


def generate_sample(rng: np.random.Generator, name: str, height: int, width: int) -> Sample:
    """Generate an image of ``height`` x ``width`` pixels and its cells, with all random numbers from ``rng``.

    Cells are 10 to 40 px wide whatever the size of the image. Some touch; some lie partly behind others and are
    annotated as far as they are seen. Cells of one class never share a pixel; cells of two classes do, now and then.
    """
    section = Section(height, width)
    kinds = list(KINDS.values())
    for label in _choose_labels(rng, height * width):
        if section.clear_HW.mean() < 1 - _FULL:
            break
        drawing = kinds[label - 1](rng)
        centre = _find_place(rng, section, drawing)
        if centre is not None:
            section.add(drawing, label, centre)
    masks = [(cell.mask_hw, (cell.top, cell.left), cell.label) for cell in section.cells]
    planes_PHW, labels_N = stack_masks(masks, height, width)
    return Sample(name, _expose(rng, _stain(rng, section)), planes_PHW, labels_N)


def _choose_labels(rng: np.random.Generator, area: int) -> list[int]:
    """Draw the classes of the cells to place. In a third of the images one class prevails and others may be absent."""
    count = max(1, round(rng.uniform(*CELLS) * area / 128**2))
    shares = rng.dirichlet(np.full(len(KINDS), 3.0))
    if rng.random() < 0.35:
        shares = 0.15 * shares
        shares[rng.integers(len(KINDS))] += 0.85
    return [int(label) for label in 1 + rng.choice(len(KINDS), size=count, p=shares)]


def _find_place(rng: np.random.Generator, section: Section, drawing: Drawing) -> tuple[int, int] | None:
    """Find a pixel (row, column) on which the drawing can be centred, or None if ten tries find no room."""
    height, width = section.size
    for _ in range(10):
        centre = int(rng.integers(height)), int(rng.integers(width))
        manner = rng.random()
        if manner < 0.55 or not section.cells:
            max_hidden = 0.0
        else:
            # Beside a neighbour: as near as it goes, or a little in front of it.
            max_hidden = 0.0 if manner < 0.8 else 0.2
            centre = _beside(rng, section, drawing, overlap=0 if manner < 0.8 else int(rng.integers(8, 40)))
        if 0 <= centre[0] < height and 0 <= centre[1] < width and section.has_room(drawing, centre, max_hidden):
            return centre
    return None


def _beside(rng: np.random.Generator, section: Section, drawing: Drawing, overlap: int) -> tuple[int, int]:
    """Find the place nearest to a random cell, in a random direction, where at most ``overlap`` pixels are covered."""
    cell = section.cells[rng.integers(len(section.cells))]
    middle = np.add(np.mean(np.nonzero(cell.mask_hw), axis=1), (cell.top, cell.left))
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.sin(angle), np.cos(angle)])
    far = sum(drawing.cover_hw.shape) // 2 + max(cell.mask_hw.shape) // 2
    best = middle + far * direction
    for distance in range(far - 1, 0, -1):
        nearer = middle + distance * direction
        inside = bool((nearer >= 0).all() and (nearer < section.size).all())
        if inside and section.covered(drawing, (round(nearer[0]), round(nearer[1]))) > overlap:
            break
        best = nearer
    return round(best[0]), round(best[1])


def _stain(rng: np.random.Generator, section: Section) -> np.ndarray:
    """Compute (H, W, S) amounts of stain: fibrous pink tissue, thinner around the cells, and the cells."""
    size = section.size
    density = smooth_noise(rng, size, grain=45)
    strands = fibres(rng, size, length=45, thickness=5)
    cloud, grain = smooth_noise(rng, size, grain=11), smooth_noise(rng, size, grain=2)
    tissue_HW = np.clip(1 + 0.32 * density + 0.20 * strands + 0.20 * cloud + 0.10 * grain, 0.12, None)
    tissue_HW *= 1 - 0.5 * ndimage.gaussian_filter(1 - section.clear_HW, 2.0)
    background_S = np.array([rng.uniform(0.05, 0.10), rng.uniform(0.20, 0.30), 0.01], np.float32)
    background_HWS = tissue_HW[..., None] * background_S
    strength_S = rng.uniform(0.88, 1.12, size=len(STAINS))  # no two slides are stained alike
    return (section.stain_HWS + section.clear_HW[..., None] * background_HWS) * strength_S


def _expose(rng: np.random.Generator, stain_HWS: np.ndarray) -> np.ndarray:
    """Render a stained section as (H, W, 3) uint8: absorption, uneven lamp, slight blur, shot noise."""
    size = stain_HWS.shape[0], stain_HWS.shape[1]
    light_HWC = np.exp(-stain_HWS @ _DENSITY_SC)
    light_HWC = ndimage.gaussian_filter(light_HWC, (rng.uniform(0.45, 0.75),) * 2 + (0,))
    lamp_HW = 1 + 0.04 * smooth_noise(rng, size, grain=max(size) / 1.5)
    white_C = rng.uniform(0.94, 0.99) + rng.uniform(-0.012, 0.012, size=3)
    light_HWC *= lamp_HW[..., None] * white_C
    # Photons arrive at random: the spread grows with the square root of the light, and a camera adds a little.
    spread_HWC = np.sqrt(1e-4 * np.clip(light_HWC, 0, None) + 2e-5)
    light_HWC += spread_HWC * rng.standard_normal(light_HWC.shape, dtype=np.float32)
    return np.clip(np.round(255 * light_HWC), 0, 255).astype(np.uint8)
