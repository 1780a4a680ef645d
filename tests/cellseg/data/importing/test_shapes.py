import numpy as np
import pytest
import shapely
import shapely.affinity
from importing_cells import HEIGHT, WIDTH, pixels_of

from cellseg.data.importing import shapes
from cellseg.data.importing.shapes import Bitmap, Ellipse, Outlines, Paths, Union, rectangle, ring_of


def drawn(shape):
    """The pixels of a shape in the whole image; it is one cell."""
    ((mask_hw, (top, left)),) = shape.masks(HEIGHT, WIDTH)
    whole = np.zeros((HEIGHT, WIDTH), dtype=bool)
    whole[top : top + mask_hw.shape[0], left : left + mask_hw.shape[1]] = mask_hw
    return whole


@pytest.mark.parametrize("seed", range(20))
def test_an_outline_covers_the_pixels_whose_centres_are_inside(seed, monkeypatch):
    monkeypatch.setattr(shapes, "CROSSINGS", 7 if seed % 2 else 1 << 22)
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.random(rng.integers(3, 30)) * 2 * np.pi)
    radii = rng.uniform(4, 30, len(angles))
    ring = np.stack([WIDTH / 2 + radii * np.cos(angles), HEIGHT / 2 + radii * np.sin(angles)], axis=1)
    polygon = shapely.Polygon(ring)
    if polygon.is_valid:
        np.testing.assert_array_equal(drawn(Outlines(((ring,),))), pixels_of(polygon))
        np.testing.assert_array_equal(drawn(Outlines(((ring[::-1],),))), pixels_of(polygon))


def test_an_outline_along_the_edges_of_pixels_gives_back_exactly_these():
    ring = ring_of([(2, 1), (5, 1), (5, 3), (9, 3), (9, 8), (2, 8)])
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[1:8, 2:5] = expected[3:8, 2:9] = True
    np.testing.assert_array_equal(drawn(Outlines(((ring,),))), expected)


def test_holes_are_cut_out_and_parts_belong_together():
    outer, hole = shapely.box(3, 3, 20, 20), shapely.box(8, 8, 12, 14)
    island, far = shapely.box(9, 9, 11, 11), shapely.box(30, 5, 40, 9)
    rings = [np.array(shape.exterior.coords) for shape in (outer, hole, island, far)]
    expected = pixels_of(shapely.union_all([outer - hole, island, far]))
    np.testing.assert_array_equal(drawn(Outlines(((rings[0], rings[1]), (rings[2],), (rings[3],)))), expected)
    np.testing.assert_array_equal(drawn(Paths(tuple(rings))), expected)
    parts = (Outlines(((rings[0], rings[1]),)), Union((Outlines(((rings[2],),)), Outlines(((rings[3],),)))))
    np.testing.assert_array_equal(drawn(Union(parts)), expected)


def test_an_outline_that_crosses_itself_is_filled_all_over():
    loop = ring_of([(5, 5), (25, 5), (25, 25), (15, 25), (15, 0), (20, 0), (20, 30), (5, 30)])
    filled = drawn(Outlines(((loop,),)))
    assert filled[2, 17] and filled[10, 10] and filled[10, 17]


@pytest.mark.parametrize("degrees", [0, 30, 90])
def test_an_ellipse_covers_the_pixels_whose_centres_are_inside(degrees):
    unit = shapely.Point(0, 0).buffer(1, quad_segs=2000)
    turned = shapely.affinity.rotate(shapely.affinity.scale(unit, 15.3, 6.2), degrees, origin=(0, 0))
    np.testing.assert_array_equal(
        drawn(Ellipse((30.2, 22.7), (15.3, 6.2), degrees)), pixels_of(shapely.affinity.translate(turned, 30.2, 22.7))
    )


def test_what_reaches_beyond_the_image_is_cut_off_and_what_is_outside_is_no_cell():
    np.testing.assert_array_equal(drawn(rectangle(-9, -5, 4, 6)), pixels_of(shapely.box(0, 0, 4, 6)))
    np.testing.assert_array_equal(drawn(Bitmap(np.ones((9, 9), bool), (-4, -3))), pixels_of(shapely.box(0, 0, 6, 5)))
    for shape in (rectangle(70, 1, 90, 9), rectangle(1e9, 1e9, 2e9, 2e9), rectangle(3.6, 3.6, 4.4, 4.4)):
        assert list(shape.masks(HEIGHT, WIDTH)) == []


@pytest.mark.parametrize(
    ("points", "match"),
    [
        ([[1, 2], [3, 4]], "at least three points"),
        ([[1, 2], [3, 4], [5, float("nan")]], "finite numbers"),
        ([[1, 2], [3, 4], 5], "list of x, y pairs"),
        (None, "list of x, y pairs"),
    ],
)
def test_what_is_no_outline_is_refused(points, match):
    with pytest.raises(ValueError, match=match):
        ring_of(points)
