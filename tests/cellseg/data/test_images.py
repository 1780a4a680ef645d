import io
import logging
import pickle
import re
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from cellseg.data.images import read_id_map, read_image, to_rgb
from cellseg.errors import UserError

RGB = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
ALPHA = np.full((20, 31, 1), 7, np.uint8)
GREY = RGB[..., 0]
GREY_AS_RGB = np.repeat(GREY[..., None], 3, axis=2)


def _tiff(path: Path, pixels: np.ndarray, **options) -> Path:
    tifffile.imwrite(path, pixels, **options)
    return path


@pytest.mark.parametrize(
    ("pixels", "options", "expected"),
    [
        (RGB, {"photometric": "rgb"}, RGB),
        (RGB, {"photometric": "rgb", "compression": "lzw"}, RGB),
        (RGB, {"photometric": "rgb", "tile": (16, 16), "compression": "zlib"}, RGB),
        (np.concatenate([RGB, ALPHA], axis=2), {"photometric": "rgb", "compression": "lzw"}, RGB),
        (np.concatenate([RGB, ALPHA], axis=2), {"photometric": "rgb", "extrasamples": ["unspecified"]}, RGB),
        (RGB.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}, RGB),
        (RGB.transpose(2, 0, 1), {"imagej": True, "metadata": {"axes": "CYX"}}, RGB),
        (GREY, {"photometric": "minisblack"}, GREY_AS_RGB),
        (~GREY, {"photometric": "miniswhite"}, GREY_AS_RGB),
        (
            np.stack([GREY, GREY // 2], axis=2),
            {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unassalpha"]},
            GREY_AS_RGB,
        ),
        (GREY > 99, {}, np.where(GREY_AS_RGB > 99, 255, 0)),
    ],
)
def test_every_channel_layout_becomes_the_same_rgb(tmp_path, pixels, options, expected):
    image_HWC = read_image(_tiff(tmp_path / "a.tif", pixels, **options))
    assert image_HWC.dtype == np.uint8
    np.testing.assert_array_equal(image_HWC, expected)


def test_a_palette_becomes_its_colours(tmp_path):
    colormap = np.arange(3 * 256, dtype=np.uint16).reshape(3, 256) * 85
    image_HWC = read_image(_tiff(tmp_path / "a.tif", GREY, photometric="palette", colormap=colormap))
    np.testing.assert_array_equal(image_HWC, (colormap >> 8).T[GREY])


@pytest.mark.parametrize("pixels", [RGB, GREY, np.concatenate([RGB, ALPHA], axis=2), np.stack([GREY, GREY // 2], 2)])
def test_png_is_read_without_its_alpha(tmp_path, pixels):
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
    np.testing.assert_array_equal(read_image(path), RGB if pixels.ndim == 3 and pixels.shape[2] > 2 else GREY_AS_RGB)


def test_a_file_is_judged_by_its_content_not_by_its_suffix(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(imagecodecs.jpeg8_encode(RGB, level=95))
    assert read_image(path).shape == RGB.shape


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32, np.int64, np.float16, np.float32, np.float64])
def test_other_types_are_stretched_from_their_own_range(tmp_path, dtype):
    ramp = np.linspace(-100 if np.dtype(dtype).kind != "u" else 100, 1000, 5000).reshape(50, 100).astype(dtype)
    image_HWC = read_image(_tiff(tmp_path / "a.tif", ramp)).astype(int)
    assert image_HWC.min() == 0
    assert image_HWC.max() == 255
    assert abs(image_HWC[25, 0, 0] - 127) <= 1
    assert (np.diff(image_HWC[..., 0].ravel()) >= 0).all()


def test_stretching_takes_all_channels_jointly(tmp_path):
    pixels = np.zeros((10, 10, 3), np.uint16)
    pixels[:5, :, 0], pixels[:, :, 1] = 1000, 500
    image_HWC = read_image(_tiff(tmp_path / "a.tif", pixels, photometric="rgb"))
    assert image_HWC[0, 0].tolist() == [255, 128, 0]


def test_a_single_bright_pixel_outlier_does_not_darken_the_image(tmp_path):
    pixels = np.tile(np.arange(100, dtype=np.uint16), (100, 1))
    pixels[0, 0] = 60000
    assert np.median(read_image(_tiff(tmp_path / "a.tif", pixels))) > 100


def test_a_constant_image_becomes_zeros_and_a_few_bright_pixels_on_black_survive(tmp_path):
    pixels = np.full((100, 100), 5, np.uint16)
    assert not read_image(_tiff(tmp_path / "a.tif", pixels)).any()
    pixels[3, 4:6] = 900
    assert read_image(_tiff(tmp_path / "b.tif", pixels))[3, 4].tolist() == [255, 255, 255]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_pixels_are_refused(tmp_path, value):
    pixels = np.ones((5, 5), np.float32)
    pixels[2, 3] = value
    path = _tiff(tmp_path / "a.tif", pixels)
    with pytest.raises(UserError, match=r"a\.tif: pixels must be finite, but got 1 "):
        read_image(path)
    with pytest.raises(UserError, match=r"a\.tif: pixels must be finite"):
        read_id_map(path)


@pytest.mark.parametrize(
    ("pixels", "options", "match"),
    [
        (np.zeros((5, 20, 31), np.uint8), {"photometric": "minisblack"}, "must hold one image, but got 5 pages"),
        (np.zeros((20, 31, 5), np.uint8), {"photometric": "minisblack", "planarconfig": "contig"}, "5 channels"),
        (np.zeros((20, 31, 2), np.uint8), {"photometric": "minisblack", "planarconfig": "contig"}, "2 channels"),
        (np.zeros((20, 31, 4), np.uint8), {"photometric": "separated"}, "grey or RGB, but got SEPARATED"),
        (np.zeros((20, 31), np.complex64), {}, "must hold bool, integer or floating-point pixels, but got complex64"),
        (np.zeros((8, 20, 31), np.uint8), {"volumetric": True, "photometric": "minisblack"}, "must be a flat image"),
    ],
)
def test_what_is_no_single_colour_image_is_refused(tmp_path, pixels, options, match):
    path = _tiff(tmp_path / "a.tif", pixels, **options)
    with pytest.raises(UserError, match=match) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ")


TIFF_KINDS = {
    "raw": {"photometric": "rgb"},
    "strips": {"photometric": "rgb", "rowsperstrip": 4, "compression": "lzw"},
    "lzw": {"photometric": "rgb", "compression": "lzw"},
    "zlib": {"photometric": "rgb", "compression": "zlib", "predictor": True},
    "tiles": {"photometric": "rgb", "tile": (16, 16), "compression": "lzw"},
    "jpeg": {"photometric": "rgb", "compression": "jpeg"},
}


@pytest.mark.parametrize("kept", [0.95, 0.6, 0.1, 0.003])
@pytest.mark.parametrize("kind", [*TIFF_KINDS, "png", "jpg"])
def test_a_file_that_was_cut_off_is_refused_in_one_line(tmp_path, kind, kept, capfd):
    path = tmp_path / "cut"
    if kind == "png":
        path.write_bytes(imagecodecs.png_encode(RGB))
    elif kind == "jpg":
        path.write_bytes(imagecodecs.jpeg8_encode(RGB))
    else:
        _tiff(path, RGB, **TIFF_KINDS[kind])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UserError) as caught:
        read_image(path)
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_absent_strips_are_refused_instead_of_read_as_black(tmp_path):
    path = _tiff(tmp_path / "a.tif", RGB, photometric="rgb", rowsperstrip=4, compression="lzw")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tag = tiff.pages[0].tags["StripByteCounts"]
        tag.overwrite([0, *tag.value[1:]])
    with pytest.raises(UserError, match="pixel data are missing"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "match"),
    [(None, "the file must exist"), (b"", "must be a TIFF, PNG or JPEG"), (b"GIF89a......", "must be a TIFF, PNG")],
)
def test_a_file_that_is_no_image_is_refused(tmp_path, content, match):
    path = tmp_path / "a.tif"
    if content is not None:
        path.write_bytes(content)
    for read in (read_image, read_id_map):
        with pytest.raises(UserError, match=match):
            read(path)


def _huge(kind: str) -> bytes:
    """A small file whose header claims 60,000 x 70,000 pixels."""
    if kind == "png":
        data = bytearray(imagecodecs.png_encode(np.ascontiguousarray(GREY)))
        data[16:24] = struct.pack(">II", 70_000, 60_000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "jpeg":  # two frames: the larger counts, whichever the decoder takes
        data = bytearray(imagecodecs.jpeg8_encode(np.ascontiguousarray(GREY)))
        frame = data.index(b"\xff\xc0")
        segment = data[frame : frame + 2 + int.from_bytes(data[frame + 2 : frame + 4], "big")]
        segment[5:9] = struct.pack(">HH", 60_000, 70_000 - 2**13)
        data[frame:frame] = b"\xff" + segment
    else:
        file = io.BytesIO()
        tifffile.imwrite(file, GREY, compression="zlib")
        data = bytearray(file.getvalue())
        file.seek(0)
        with tifffile.TiffFile(file) as tiff:
            for name, value in (("ImageWidth", 70_000), ("ImageLength", 60_000), ("RowsPerStrip", 60_000)):
                data_offset = tiff.pages[0].tags[name].valueoffset
                data[data_offset : data_offset + 4] = struct.pack("<I", value)
    return bytes(data)


@pytest.mark.parametrize("read", [read_image, read_id_map])
@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff"])
def test_a_header_that_claims_too_much_is_refused_before_memory_is_taken(tmp_path, kind, read):
    path = tmp_path / "a.tif"
    path.write_bytes(_huge(kind))
    with pytest.raises(UserError, match=r"at most 1,000,000,000 pixels, but got 60000 x \d+\. Cut it") as raised:
        read(path)
    assert len(raised.value.problems) == 1


@pytest.mark.parametrize("suffix", ["tif", "png", "jpg"])
def test_the_limit_of_pixels_is_a_setting(tmp_path, monkeypatch, suffix):
    encode = {"tif": None, "png": imagecodecs.png_encode, "jpg": imagecodecs.jpeg8_encode}[suffix]
    path = tmp_path / f"a.{suffix}"
    tifffile.imwrite(path, RGB) if encode is None else path.write_bytes(encode(RGB))
    monkeypatch.setenv("CELLSEG_MAX_PIXELS", "620")
    assert read_image(path).shape == (20, 31, 3)
    monkeypatch.setenv("CELLSEG_MAX_PIXELS", "619")
    with pytest.raises(UserError, match=rf"a\.{suffix}: an image must have at most 619 pixels, but got 20 x 31\. "):
        read_image(path)
    monkeypatch.setenv("CELLSEG_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="CELLSEG_MAX_PIXELS: must be a whole number of at least 1, but got 'many'"):
        read_image(path)


def test_hundreds_of_samples_count_as_pixels(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLSEG_MAX_PIXELS", "1000")
    path = _tiff(tmp_path / "a.tif", np.zeros((10, 10, 50), np.uint8), photometric="minisblack", planarconfig="contig")
    with pytest.raises(UserError, match="at most 1,000 pixels, but got 10 x 10 x 50 samples"):
        read_image(path)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="must be a readable file, but got 'Is a directory'"):
        read_image(tmp_path)


def test_the_error_travels_between_processes(tmp_path):
    with pytest.raises(UserError) as caught:
        read_image(tmp_path / "absent.tif")
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


def test_reading_leaves_the_logging_of_the_process_alone(tmp_path):
    logger = logging.getLogger("tifffile")
    before = (list(logger.handlers), logger.level, logger.propagate, list(logger.filters))
    read_image(_tiff(tmp_path / "a.tif", RGB, photometric="rgb"))
    assert (list(logger.handlers), logger.level, logger.propagate, list(logger.filters)) == before


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint64, np.float32, np.float64])
@pytest.mark.parametrize("trailing_axis", [False, True])
def test_ids_of_every_type_stay_what_they_are(tmp_path, dtype, trailing_axis):
    largest = 100 if np.dtype(dtype).itemsize == 1 else 40_000
    ids_HW = np.array([[0, 3, 3], [largest, 0, 1]])
    stored = ids_HW.astype(dtype)
    path = _tiff(tmp_path / "a.tif", stored[..., None] if trailing_axis else stored, compression="lzw")
    read_HW = read_id_map(path)
    assert read_HW.dtype == np.int64
    np.testing.assert_array_equal(read_HW, ids_HW)


def test_a_binary_map_has_ids_zero_and_one(tmp_path):
    np.testing.assert_array_equal(read_id_map(_tiff(tmp_path / "a.tif", GREY > 99)), GREY > 99)


def test_a_16_bit_png_keeps_ids_beyond_a_byte(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(np.array([[0, 256, 65535]], np.uint16)))
    assert read_id_map(path).tolist() == [[0, 256, 65535]]


@pytest.mark.parametrize(
    ("ids", "match"),
    [
        (np.array([[0, 1.5]]), "ids must be whole numbers, but got 1 pixels like 1.5"),
        (np.array([[0, -2]], np.int16), "ids must not be negative, but got -2"),
        (np.array([[0, -1.0]]), "ids must not be negative, but got -1"),
        (np.array([[0, 2**63]], np.uint64), "ids must be below"),
        (np.array([[0, 1e300]]), "ids must be below"),
        (np.zeros((4, 5, 3), np.uint8), "an id map must have one value per pixel, but got 3"),
        (np.zeros((4, 5), np.complex64), "must hold bool, integer or floating-point pixels"),
    ],
)
def test_values_that_are_no_ids_are_refused(tmp_path, ids, match):
    path = _tiff(tmp_path / "class1.tif", ids)
    with pytest.raises(UserError, match=match) as caught:
        read_id_map(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_the_released_image_is_read(shared_data):
    folder = shared_data / "hw3-sample" / "train" / "sample-0001"
    assert read_image(folder / "image.tif").shape == (397, 482, 3)
    assert len(np.unique(read_id_map(folder / "class2.tif"))) == 160


# Arrays in memory


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int64, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [0, 1, 3, 4])
def test_an_array_becomes_what_the_file_that_holds_it_becomes(tmp_path, dtype, channels):
    shape = (20, 30, channels) if channels else (20, 30)
    pixels = (np.random.default_rng(0).random(shape) * 200).astype(dtype)
    if channels == 4:
        pixels[..., 3] = 7  # alpha takes no part in the stretch
    path = _tiff(tmp_path / "a.tif", pixels, photometric="rgb" if channels >= 3 else "minisblack")
    image_HWC = to_rgb(pixels)
    assert (image_HWC.dtype, image_HWC.shape) == (np.uint8, (20, 30, 3))
    np.testing.assert_array_equal(image_HWC, read_image(path))
    assert image_HWC.max() == 255 or dtype == np.uint8


def test_a_bool_array_becomes_black_and_white():
    assert to_rgb(np.array([[True, False]])).tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize(
    "shape", [(), (20,), (20, 30, 2), (20, 30, 5), (3, 20, 30), (1, 20, 30, 3), (0, 30), (9, 0, 3)]
)
def test_arrays_of_other_shapes_are_refused(shape):
    with pytest.raises(UserError, match=rf"^image: must have pixels of the shape .* but got {re.escape(str(shape))}"):
        to_rgb(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), complex), np.full((4, 4), "a"), np.full((4, 4), None)])
def test_arrays_of_other_types_are_refused(pixels):
    with pytest.raises(UserError, match=r"^image: must hold bool, integer or floating-point pixels"):
        to_rgb(pixels)


def test_an_array_that_is_not_finite_is_refused_under_the_name_it_was_given():
    with pytest.raises(UserError, match=r"^frame 7: pixels must be finite, but got 2"):
        to_rgb(np.array([[0.5, np.nan, np.inf]]), "frame 7")


def test_an_image_of_one_pixel_is_an_image(tmp_path):
    assert read_image(_tiff(tmp_path / "one.tif", np.full((1, 1), 7, np.uint8))).tolist() == [[[7, 7, 7]]]
