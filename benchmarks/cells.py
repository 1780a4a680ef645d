"""Images with any number of cells, for measuring; what they look like does not matter."""

import numpy as np

from cellseg.data.sample import Sample
from cellseg.data.synthetic.texture import smooth_noise

NUM_CLASSES = 4


def grid_sample(rng: np.random.Generator, num_cells: int, height: int, width: int, diameter: int = 12) -> Sample:
    """Discs of at most ``diameter`` pixels, each in its own field of a grid, so that all lie in one plane.

    ``cellseg.data.synthetic`` draws cells that look like cells, and stops where an image is full of them: at about 250
    in 400 x 480 pixels.
    """
    columns = max(round((num_cells * width / height) ** 0.5), 1)
    rows = -(-num_cells // columns)
    assert min(height / rows, width / columns) > diameter + 1, "no room for so many cells"
    plane_HW = np.zeros((height, width), np.uint16)
    y_HW, x_HW = np.ogrid[:height, :width]
    for number in range(num_cells):
        row, column = divmod(number, columns)
        center_y, center_x = (row + 0.5) * height / rows, (column + 0.5) * width / columns
        top, left = int(center_y - diameter / 2), int(center_x - diameter / 2)
        window = np.s_[top : top + diameter + 1, left : left + diameter + 1]
        distance = np.hypot(y_HW[window[0]] + 0.5 - center_y, x_HW[:, window[1]] + 0.5 - center_x)
        plane_HW[window][distance <= rng.uniform(0.35, 0.5) * diameter] = number + 1
    stain_HWC = np.stack([smooth_noise(rng, (height, width), grain=3) for _ in range(3)], axis=-1)
    image_HWC = np.where(plane_HW[:, :, None] > 0, 120, 210) + 20 * stain_HWC
    labels_N = rng.integers(1, NUM_CLASSES + 1, num_cells)
    return Sample("cells", image_HWC.clip(0, 255).astype(np.uint8), plane_HW[None], labels_N)
