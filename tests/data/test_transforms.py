"""Augmentation: keyed, geometric truth on known pictures, pairs that stay pairs."""

from __future__ import annotations

import numpy as np
import pytest

from drifa_jax.data.record import Record
from drifa_jax.data.transforms import (
    PAPER,
    PRESETS,
    Augment,
    Augmentation,
    Geometry,
    augment,
    change_intensity,
    draw_geometry,
    drop_modalities,
    move,
)


def keyed(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def picture(height: int = 33, width: int = 33) -> np.ndarray:
    """A smooth blob off the centre, so that every movement shows."""
    y, x = np.mgrid[:height, :width]
    blob = np.exp(-((x - 0.7 * width) ** 2 + (y - 0.4 * height) ** 2) / (0.02 * height * width))
    return np.rint(255 * blob).astype(np.uint8)[:, :, None]


def record(**images) -> Record:
    return Record("r", "r", images or {"mri": picture(), "ct": picture()}, {})


IDENTITY = Geometry(0.0, 0.0, 0.0, 1.0, False, False)


def geometry(**changes) -> Geometry:
    return Geometry(**(IDENTITY.__dict__ | changes))


def test_equal_generators_give_equal_pictures_and_others_differ():
    for name, settings in PRESETS.items():
        first, again, other = (augment(picture(), settings, keyed(seed)) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert first.dtype == np.uint8
        assert first.shape == picture().shape
        if name not in ("none", "flip"):
            assert (first != other).any(), name


def test_no_settings_change_nothing():
    np.testing.assert_array_equal(augment(picture(), Augmentation(), keyed()), picture())


def test_mirrors_are_exact():
    image = picture(20, 31)
    np.testing.assert_array_equal(move(image, geometry(mirror_x=True)), image[:, ::-1])
    np.testing.assert_array_equal(move(image, geometry(mirror_y=True)), image[::-1])


def test_a_quarter_turn_is_exact():
    # Positive angles turn from x to y, which is clockwise on the screen.
    np.testing.assert_array_equal(move(picture(), geometry(degrees=90.0)), np.rot90(picture(), -1))


def test_shifts_move_by_pixels_and_fill_with_black():
    moved = move(picture(), geometry(right=4 / 33, down=-3 / 33))
    np.testing.assert_array_equal(moved[:-3, 4:], picture()[3:, :-4])
    assert (moved[:, :4] == 0).all()
    assert (moved[-3:] == 0).all()


def test_zoom_enlarges_about_the_centre():
    disc = (np.hypot(*(np.mgrid[:65, :65] - 32)) < 10).astype(np.uint8)[:, :, None] * 255
    grown = move(disc, geometry(scale=1.5)).mean() / disc.mean()
    assert grown == pytest.approx(1.5**2, rel=0.05)


def test_paper_settings_stay_within_20_or_5_degrees_and_5_pixels():
    drawn = [draw_geometry(PAPER, (128, 128), keyed(seed)) for seed in range(2000)]
    degrees = np.array([abs(g.degrees) for g in drawn])
    shifts = np.array([[abs(g.right), abs(g.down)] for g in drawn]) * 128
    assert degrees.max() <= 20
    assert shifts.max() <= 5
    # Half of the pictures draw up to 20 degrees, of which three quarters exceed 5.
    assert np.mean(degrees > 5) == pytest.approx(0.375, abs=0.04)
    assert not any(g.mirror_x or g.mirror_y or g.scale != 1 for g in drawn)


def test_paired_modalities_share_geometry_when_asked():
    settings = {"mri": PAPER, "ct": PAPER}
    shared = Augment(settings, shared_geometry=True)(record(), keyed())
    np.testing.assert_array_equal(shared.images["mri"], shared.images["ct"])
    assert (shared.images["mri"] != picture()).any()
    own = Augment(settings)(record(), keyed())
    assert (own.images["mri"] != own.images["ct"]).any()


def test_shared_geometry_scales_with_the_size_of_the_image():
    pair = record(mri=picture(32, 32), ct=picture(64, 64))
    moved = Augment({"mri": PAPER, "ct": PAPER}, shared_geometry=True)(pair, keyed(3)).images

    def centre(image):
        weights = image[..., 0].astype(float)
        y, x = np.mgrid[: image.shape[0], : image.shape[1]]
        return (np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum() + 0.5) / len(x)

    np.testing.assert_allclose(centre(moved["mri"]), centre(moved["ct"]), atol=0.01)


def test_an_absent_modality_does_not_change_the_other():
    transform = Augment({"mri": PRESETS["mri"], "ct": PRESETS["ct"]})
    both, alone = transform(record(), keyed()), transform(record(ct=picture()), keyed())
    np.testing.assert_array_equal(both.images["ct"], alone.images["ct"])


def test_modalities_without_settings_and_tables_stay_as_they_are():
    table = np.array([0.5, -1], np.float32)
    out = Augment({"mri": PAPER})(record(mri=picture(), table=table), keyed())
    np.testing.assert_array_equal(out.images["table"], table)


def test_intensity_changes_have_the_sizes_they_claim():
    flat = np.full((16, 16, 1), 128, np.uint8)
    levels = [
        change_intensity(flat, Augmentation(brightness=0.1), keyed(s)).mean() for s in range(300)
    ]
    assert 128 - 26 <= min(levels) < 110
    assert 146 < max(levels) <= 128 + 26
    noisy = [change_intensity(flat, Augmentation(noise=0.1), keyed(s)).std() for s in range(200)]
    assert 20 < max(noisy) < 30
    large = np.full((64, 64, 1), 128, np.uint8)
    shaded = change_intensity(large, Augmentation(bias_field=0.4), keyed(1))
    assert shaded.std() > 3
    assert abs(np.diff(shaded[..., 0].astype(int), axis=1)).max() < 8


def test_rician_noise_raises_the_dark_background_and_gaussian_noise_does_not_as_much():
    dark = np.zeros((64, 64, 1), np.uint8)
    rician = change_intensity(dark, Augmentation(noise=0.2, rician=True), keyed(2)).mean()
    gaussian = change_intensity(dark, Augmentation(noise=0.2), keyed(2)).mean()
    # Mean of a Rayleigh variable against that of a half-wave rectified normal one.
    assert rician / gaussian == pytest.approx(np.sqrt(np.pi / 2) * np.sqrt(2 * np.pi), rel=0.1)


def test_modality_dropout_keeps_at_least_one():
    images = {"mri": picture(), "ct": picture(), "pet": picture()}
    kept = [set(drop_modalities(images, 0.6, keyed(seed))) for seed in range(500)]
    assert all(kept)
    assert {len(k) for k in kept} == {1, 2, 3}
    # P(dropped) = 0.6, less the rescue of one of three in the 0.216 cases where all would go.
    gone = np.mean(["mri" not in k for k in kept])
    assert gone == pytest.approx(0.6 - 0.216 / 3, abs=0.07)
    dropped = Augment({}, drop_modality=0.6)(record(), keyed(5))
    assert 1 <= len(dropped.images) <= 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"rotation_degrees": -1.0},
        {"shift_pixels": -1.0},
        {"zoom": 1.0},
        {"flip_left_right": 1.5},
        {"noise": -0.1},
        {"bias_field": 1.0},
    ],
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augmentation(**wrong)
    with pytest.raises(ValueError, match="drop_modality is 1"):
        Augment({}, drop_modality=1.0)


def test_slices_of_a_volume_move_alike_and_the_volume_along_its_depth():
    plane = np.random.default_rng(0).integers(1, 256, (12, 16, 1), np.uint8)
    volume = np.stack([plane] * 8)
    moved = move(volume, Geometry(10.0, 0.1, 0.0, 1.0, mirror_x=True, mirror_y=False, up=0.25))
    # A quarter of eight slices leaves two of them black.
    assert not moved[:2].any()
    for k in range(2, 8):
        np.testing.assert_array_equal(moved[k], moved[2])
    assert moved[2].any()


def test_left_and_right_of_a_volume_are_its_width():
    volume = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 1), np.uint8)
    mirrored = augment(volume, Augmentation(flip_left_right=1.0), keyed(0))
    np.testing.assert_array_equal(mirrored, volume[:, :, ::-1])
