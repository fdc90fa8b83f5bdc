import numpy as np

from drifa_jax.explain.explanation import RecordMap
from drifa_jax.report.explanations import FRAME, map_pictures, montage, telling_slices


def test_each_part_of_the_depth_shows_its_warmest_slice():
    heat = np.zeros((8, 2, 2), np.float32)
    heat[1], heat[5] = 0.5, 1.0
    # Cold parts show the slice in their middle.
    assert telling_slices(heat).tolist() == [1, 3, 5, 7]
    assert telling_slices(heat[:2]).tolist() == [0, 1]


def test_planes_are_laid_two_a_row():
    planes = np.arange(3)[:, None, None] * np.ones((3, 2, 2), int) + 1
    expected = [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 0, 0], [3, 3, 0, 0]]
    np.testing.assert_array_equal(montage(planes), expected)


def test_pictures_of_a_volume_name_its_slices():
    volume = np.full((6, 4, 4, 1), 9, np.uint8)
    heat = np.ones((6, 4, 4), np.float32)
    (image, title), (overlaid, _) = map_pictures(volume, RecordMap(heat, heat), 1)
    assert title == "slices 0, 2, 4, 5 of 6"
    assert image.shape == overlaid.shape and image.shape[2] == 3


def test_slices_are_framed_and_warmth_stays_in_its_own():
    heat = np.zeros((4, 8, 8), np.float32)
    heat[0, :, -1] = 1.0
    dark = np.zeros((4, 8, 8, 1), np.uint8)
    (image, _), (overlaid, _) = map_pictures(dark, RecordMap(heat, heat), 1)
    half = image.shape[1] // 2
    assert set(np.unique(image)) == {0, FRAME}
    assert (image[:, half] == FRAME).all() and (image[0] == FRAME).all()
    warm = (overlaid != image).any((0, 2))
    assert warm[:half].any() and not warm[half:].any()
