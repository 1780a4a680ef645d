"""Inputs that are broken at random places: they are read, or refused as the user's error; nothing else happens."""

import io
from pathlib import Path
from tempfile import TemporaryDirectory

import imagecodecs
import numpy as np
import tifffile
from examples import JUNK, as_json, broken, damaged, property_test
from hypothesis import strategies as st

from cellseg.config import DataConfig
from cellseg.data.dataset import open_dataset
from cellseg.data.images import read_id_map, read_image
from cellseg.errors import UserError

IMAGE_HWC = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
COCO = {
    "info": {"description": "cells"},
    "images": [{"id": 7, "file_name": "a.png", "height": 12, "width": 16}],
    "categories": [{"id": 30, "name": "spindle"}, {"id": 4, "name": "round"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 4, "segmentation": [[2, 1, 6, 1, 6, 5, 2, 5]], "bbox": [2, 1, 4, 4]},
        {
            "id": 2,
            "image_id": 7,
            "category_id": 30,
            "iscrowd": 1,
            "area": 12,
            "segmentation": {"size": [12, 16], "counts": [30, 12, 150]},
        },
        {"id": 3, "image_id": 7, "category_id": 4, "segmentation": {"size": [12, 16], "counts": "PP`02N2N"}},
    ],
}


def tiff(**options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, IMAGE_HWC, photometric="rgb", **options)
    return buffer.getvalue()


IMAGES = {
    "grey.png": imagecodecs.png_encode(IMAGE_HWC[..., 0].astype(np.uint16) * 99),
    "colour.png": imagecodecs.png_encode(IMAGE_HWC),
    "colour.jpg": imagecodecs.jpeg_encode(IMAGE_HWC),
    "plain.tif": tiff(),
    "tiles.tif": tiff(tile=(16, 16), compression="zlib"),
    "strips.tif": tiff(rowsperstrip=4, compression="lzw"),
}


@property_test(few=60, many=3000, content=st.one_of(broken(COCO), broken(COCO), JUNK))
def test_a_broken_annotation_file_is_the_users_error_and_nothing_else(content):
    with TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "images").mkdir()
        (root / "images" / "a.png").write_bytes(IMAGES["colour.png"])
        (root / "annotations.json").write_bytes(as_json(content))
        try:
            for source in open_dataset(DataConfig(root=folder)).sources:
                source.load()
        except UserError as error:
            assert error.problems


@property_test(few=30, many=2000, data=damaged(as_json(COCO)))
def test_a_damaged_annotation_file_is_the_users_error_and_nothing_else(data):
    with TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "images").mkdir()
        (root / "images" / "a.png").write_bytes(IMAGES["colour.png"])
        (root / "annotations.json").write_bytes(data)
        try:
            for source in open_dataset(DataConfig(root=folder)).sources:
                source.load()
        except UserError as error:
            assert error.problems


@st.composite
def damaged_images(draw: st.DrawFn) -> tuple[str, bytes]:
    name = draw(st.sampled_from(sorted(IMAGES)))
    return name, draw(damaged(IMAGES[name]))


@property_test(
    few=80, many=5000, image=st.one_of(damaged_images(), st.tuples(st.just("x.png"), st.binary(max_size=40)))
)
def test_a_damaged_image_is_the_users_error_and_nothing_else(image):
    name, data = image
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        for read in (read_image, read_id_map):
            try:
                pixels = read(path)
            except UserError as error:
                assert str(path) in str(error)
            else:
                assert pixels.dtype in (np.uint8, np.int32, np.uint16, np.uint32, np.int64)
                assert pixels.size > 0
