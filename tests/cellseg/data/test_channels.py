import json

import numpy as np
import pytest
import tifffile

from cellseg.config import DataConfig, TrialConfig
from cellseg.data import check
from cellseg.data.channels import PlaneChoice
from cellseg.data.dataset import open_dataset
from cellseg.data.images import read_image, read_size, to_rgb
from cellseg.data.packed import open_packed
from cellseg.errors import UserError

RNG = np.random.default_rng(0)
STACK_ZCYX = RNG.integers(0, 250, (4, 5, 20, 30), dtype=np.uint8)


def rgb(*channels):
    return np.stack([np.zeros((20, 30), np.uint8) if each is None else each for each in channels], axis=-1)


def write(path, pixels, **options):
    tifffile.imwrite(path, pixels, **options)
    return path


@pytest.mark.parametrize(
    ("pixels", "options", "choice", "expected"),
    [
        (STACK_ZCYX[0], {"imagej": True, "metadata": {"axes": "CYX"}}, ("3,2,1", None), STACK_ZCYX[0][[2, 1, 0]]),
        (STACK_ZCYX[0], {"imagej": True, "metadata": {"axes": "CYX"}}, ("4", None), STACK_ZCYX[0][[3, 3, 3]]),
        (STACK_ZCYX[0], {"ome": True, "metadata": {"axes": "CYX"}}, ("0,2,1", None), [None, *STACK_ZCYX[0][[1, 0]]]),
        (STACK_ZCYX[0], {"ome": True, "metadata": {"axes": "CYX"}}, ("5,1", None), [*STACK_ZCYX[0][[4, 0]], None]),
        (STACK_ZCYX[0, :3], {"ome": True, "metadata": {"axes": "CYX"}}, (None, None), STACK_ZCYX[0, :3]),
        (STACK_ZCYX[:, 0], {"imagej": True, "metadata": {"axes": "ZYX"}}, (None, "max"), [STACK_ZCYX[:, 0].max(0)] * 3),
        (STACK_ZCYX[:, 0], {"ome": True, "metadata": {"axes": "ZYX"}}, (None, "middle"), [STACK_ZCYX[2, 0]] * 3),
        (
            STACK_ZCYX,
            {"imagej": True, "metadata": {"axes": "ZCYX"}},
            ("2,3,1", "mean"),
            np.rint(STACK_ZCYX.mean(axis=0))[[1, 2, 0]],
        ),
        (STACK_ZCYX, {"ome": True, "metadata": {"axes": "ZCYX"}}, ("1", "max"), STACK_ZCYX.max(0)[[0, 0, 0]]),
        (
            STACK_ZCYX.swapaxes(0, 1)[None],
            {"ome": True, "metadata": {"axes": "TCZYX"}},
            ("1", "max"),
            STACK_ZCYX.max(0)[[0, 0, 0]],
        ),
        (STACK_ZCYX[0], {"photometric": "minisblack"}, ("2", None), STACK_ZCYX[0][[1, 1, 1]]),
        (STACK_ZCYX[0], {"photometric": "minisblack"}, (None, "max"), [STACK_ZCYX[0].max(0)] * 3),
        (
            STACK_ZCYX[0].transpose(1, 2, 0),
            {"photometric": "minisblack", "planarconfig": "contig"},
            ("1,5", None),
            [*STACK_ZCYX[0][[0, 4]], None],
        ),
        (STACK_ZCYX[0, :3].transpose(1, 2, 0), {"photometric": "rgb"}, ("3,2,1", None), STACK_ZCYX[0][[2, 1, 0]]),
        (
            STACK_ZCYX[:, 0],
            {"volumetric": True, "photometric": "minisblack", "tile": (4, 16, 16)},
            (None, "max"),
            [STACK_ZCYX[:, 0].max(0)] * 3,
        ),
    ],
)
def test_channels_and_planes_are_chosen_by_the_axes_of_the_file(tmp_path, pixels, options, choice, expected):
    path = write(tmp_path / "a.tif", pixels, **options)
    np.testing.assert_array_equal(read_image(path, PlaneChoice(*choice)), rgb(*expected))
    assert read_size(path) == (20, 30)


@pytest.mark.parametrize(
    ("pixels", "options", "choice", "match"),
    [
        (
            STACK_ZCYX[0],
            {"imagej": True, "metadata": {"axes": "CYX"}},
            (None, None),
            r"but got 5 channels\. Set data\.channels",
        ),
        (
            STACK_ZCYX[0],
            {"imagej": True, "metadata": {"axes": "CYX"}},
            ("6", None),
            "channels from 1 to 5, .* but got '6'",
        ),
        (
            STACK_ZCYX[:, 0],
            {"imagej": True, "metadata": {"axes": "ZYX"}},
            (None, None),
            r"4 planes\. Set data\.projection",
        ),
        (STACK_ZCYX[:, 0], {"imagej": True, "metadata": {"axes": "TYX"}}, (None, "max"), "one time point, but got 4"),
        (
            STACK_ZCYX,
            {"photometric": "minisblack"},
            ("1", "max"),
            "does not say whether they are channels or a z-stack",
        ),
        (
            STACK_ZCYX[0],
            {"photometric": "minisblack"},
            ("1", "max"),
            "does not say whether they are channels or a z-stack",
        ),
    ],
)
def test_what_nobody_chose_is_refused(tmp_path, pixels, options, choice, match):
    with pytest.raises(UserError, match=match):
        read_image(write(tmp_path / "a.tif", pixels, **options), PlaneChoice(*choice))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("choice", [("2,4,1", None), ("2,4,1", "mean"), (None, "max"), ("3", "middle")])
def test_an_array_becomes_what_the_file_that_holds_it_becomes(tmp_path, dtype, choice):
    stack = (STACK_ZCYX * np.array([1, 9, 100, 3, 5])[:, None, None]).astype(dtype)
    stack = stack if choice[1] else stack[0]
    if choice[0] is None:
        stack = stack[:, 0]
    axes = ("Z" if choice[1] else "") + ("C" if choice[0] else "") + "YX"
    path = write(tmp_path / "a.tif", stack, ome=True, metadata={"axes": axes}, photometric="minisblack")
    array = np.moveaxis(stack, -3, -1) if choice[0] else stack
    image_HWC = to_rgb(array, choice=PlaneChoice(*choice))
    np.testing.assert_array_equal(read_image(path, PlaneChoice(*choice)), image_HWC)
    assert image_HWC.shape == (20, 30, 3)


def test_chosen_channels_are_stretched_one_by_one():
    faint = STACK_ZCYX[0, :2].astype(np.uint16) * np.array([1, 200], np.uint16)[:, None, None]
    pixels_HWC = np.moveaxis(faint, 0, -1)
    image_HWC = to_rgb(pixels_HWC, choice=PlaneChoice("1,2,0"))
    assert image_HWC[..., 0].max() == image_HWC[..., 1].max() == 255
    assert image_HWC[..., 2].max() == 0
    swapped = to_rgb(pixels_HWC[..., ::-1], choice=PlaneChoice("2,1,0"))
    np.testing.assert_array_equal(image_HWC, swapped)


@pytest.mark.parametrize("shape", [(20, 30, 7), (4, 20, 30, 3, 1), (20,), (0, 30, 3)])
@pytest.mark.parametrize("choice", [(None, None), (None, "max"), ("1", "max")])
def test_arrays_that_no_choice_makes_flat_are_refused(shape, choice):
    if shape == (20, 30, 7) and choice != (None, None):
        return
    with pytest.raises(UserError, match="must have pixels of the shape"):
        to_rgb(np.zeros(shape, np.uint8), choice=PlaneChoice(*choice))


@pytest.mark.parametrize("channels", ["", "0", "1,2,3,4", "1;2", "-1", "red", "1,,2", "1.5"])
def test_channels_that_cannot_be_are_refused(channels):
    with pytest.raises(UserError, match=r"data\.channels: must be one to three channel numbers from 1"):
        TrialConfig.from_flat({"data.channels": channels})


def test_packed_data_are_those_of_their_channels(tmp_path, capsys):
    root = tmp_path / "data"
    root.mkdir()
    write(root / "a.tif", STACK_ZCYX, ome=True, metadata={"axes": "ZCYX"})
    content = {
        "images": [{"id": 1, "file_name": "a.tif", "height": 20, "width": 30}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}],
        "categories": [{"id": 1, "name": "cell"}],
    }
    (root / "a.json").write_text(json.dumps(content))
    assert check.main([str(root)]) == 2
    assert "Set data.projection (--projection)" in capsys.readouterr().out
    assert check.main([str(root), "--channels", "2", "--projection", "max"]) == 0
    packed = [
        open_packed(DataConfig(root=str(root), channels=channels, projection=projection), tmp_path / "cache")
        for channels, projection in (("1", "max"), ("2", "max"), ("2", "mean"), ("1", "max"))
    ]
    assert len({data.fingerprint for data in packed}) == 3
    assert packed[0].fingerprint == packed[3].fingerprint
    np.testing.assert_array_equal(packed[1][0].image_HWC, rgb(*[STACK_ZCYX[:, 1].max(0)] * 3))
    np.testing.assert_array_equal(packed[0][0].image_HWC, rgb(*[STACK_ZCYX[:, 0].max(0)] * 3))


def test_without_a_choice_the_fingerprint_is_what_it_was(make_release):
    assert open_dataset(DataConfig(root=str(make_release()))).settings == {"layout": "release", "instances": "ids"}
