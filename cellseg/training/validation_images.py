"""Cache of the validation images as the network sees them, for later epochs and trials."""

from weakref import WeakKeyDictionary

import numpy as np

from cellseg.config import DataConfig
from cellseg.data.batch import Item
from cellseg.data.detections import Detections
from cellseg.data.loader import plain_item
from cellseg.data.packed import PackedDataset
from cellseg.data.resize import resize_image, scaled_size, to_color

KEPT_BYTES = 512 << 20
"""Largest memory for cached images and targets in a process. The rest is recomputed each time."""

_KEPT: "WeakKeyDictionary[PackedDataset, ValidationImages]" = WeakKeyDictionary()
"""The images of the last settings, as long as the data are in use."""


class ValidationImages:
    """Scaled images, targets and truths of the samples of ``data``, each computed on first use."""

    def __init__(self, data: PackedDataset, settings: DataConfig, limit: int = KEPT_BYTES):
        self.data = data
        self.settings = settings
        self.free_bytes = limit
        self._items: dict[int, Item] = {}
        self._truths: dict[int, Detections] = {}

    @classmethod
    def of(cls, data: PackedDataset, settings: DataConfig) -> "ValidationImages":
        """Return this process's cached images of ``data``, or new ones if the settings differ."""
        kept = _KEPT.get(data)
        if kept is None or kept.settings != settings:
            # The data must not be referred to by what they are the key of: they would never be let go.
            _KEPT[data] = kept = cls(PackedDataset(data.table), settings)
        return kept

    def item(self, index: int) -> Item:
        """Image and target of a sample, see :func:`cellseg.data.loader.plain_item`. Read-only."""
        if index in self._items:
            return self._items[index]
        image_CHW, target = item = plain_item(self.data[index], self.settings)
        size = image_CHW.nbytes + sum(value.nbytes for value in target.values())
        if size <= self.free_bytes:
            self.free_bytes -= size
            self._items[index] = item
        return item

    def scaled(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """A sample's image (height, width, 3) uint8 as the network sees it at ``size``. Read-only."""
        sample = self.data[index]
        if index in self._items and size == scaled_size(*sample.size, self.settings):
            return self._items[index][0].permute(1, 2, 0).numpy()
        return resize_image(to_color(sample.image_HWC, self.settings.color), size)

    def truth(self, index: int) -> Detections:
        """The cells of a sample."""
        if index not in self._truths:
            self._truths[index] = Detections.from_sample(self.data[index])
        return self._truths[index]
