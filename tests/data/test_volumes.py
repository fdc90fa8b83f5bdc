"""Voxels of any size on the grid of a modality."""

from __future__ import annotations

import numpy as np
import pytest

from drifa_jax.data.record import VolumeSpec
from drifa_jax.data.volumes import Voxels, fit_volume, fit_voxels
from drifa_jax.errors import UserError


def spec(depth, height, width, channels=1):
    return VolumeSpec("ct", depth, height, width, channels)


def ramp(size, axis):
    """Grows by ten levels a voxel along one axis."""
    steps = 10 * np.arange(size[axis], dtype=np.uint8)
    return np.broadcast_to(np.expand_dims(steps, [a for a in range(3) if a != axis]), size)


def test_a_volume_of_the_right_size_stays_as_it_is():
    voxels = np.random.default_rng(0).integers(0, 256, (3, 4, 5), np.uint8)
    np.testing.assert_array_equal(fit_volume(voxels, spec(3, 4, 5))[..., 0], voxels)
    colours = fit_volume(voxels, spec(3, 4, 5, 3))
    np.testing.assert_array_equal(colours, np.repeat(voxels[..., None], 3, -1))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_axis_is_averaged_where_it_shrinks(axis):
    size = [4, 4, 4]
    size[axis] = 12
    fitted = fit_volume(ramp(tuple(size), axis), spec(4, 4, 4))[..., 0]
    # Means of three neighbours: 10, 40, 70, 100.
    np.testing.assert_array_equal(np.moveaxis(fitted, axis, 0)[:, 0, 0], [10, 40, 70, 100])


def test_a_spacing_cuts_and_fills_about_the_centre():
    voxels = np.full((6, 4, 4), 200, np.uint8)
    # 6 slices of 2 mm and planes of 4 x 4 mm, on a grid of 1 mm: 8 of 12 mm, and 4 of 8.
    fitted = fit_volume(voxels, spec(8, 8, 8), voxel=(2.0, 1.0, 1.0), spacing=(1.0, 1.0, 1.0))
    assert (fitted[:, 2:6, 2:6] == 200).all()
    assert fitted.sum() == 200 * 8 * 4 * 4


def test_pad_and_crop_keep_the_proportions_of_the_body():
    voxels = np.full((4, 8, 8), 200, np.uint8)
    # 4 slices of 1 mm against planes of 8 mm: half as high as wide.
    padded = fit_volume(voxels, spec(8, 8, 8), fit="pad")
    assert (padded[2:6] == 200).all() and padded.sum() == 200 * 4 * 8 * 8
    # Slices of 2 mm make a cube.
    assert (fit_volume(voxels, spec(8, 8, 8), fit="pad", voxel=(2.0, 1.0, 1.0)) == 200).all()
    across = fit_volume(ramp((4, 8, 8), 2), spec(4, 4, 4), fit="crop")
    np.testing.assert_array_equal(across[0, 0, :, 0], [20, 30, 40, 50])


@pytest.mark.parametrize(
    ("shape", "words"),
    [((1, 8, 8), "holds one slice, .* data.modalities.ct.depth=0"), ((8, 8), "a volume is")],
)
def test_what_is_no_volume_names_the_file_and_the_cure(shape, words):
    with pytest.raises(UserError, match=rf"scan\.nii: .*{words}"):
        fit_volume(np.zeros(shape, np.uint8), spec(4, 8, 8), name="scan.nii")


def test_a_spacing_needs_voxels_of_known_size():
    voxels = Voxels(np.zeros((4, 4, 4), np.uint8), None)
    with pytest.raises(UserError, match="how far its voxels are apart"):
        fit_voxels(voxels, spec(4, 4, 4), fit="stretch", spacing=(1.0, 1.0, 1.0), name="a")
