import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.explain.grad_cam import class_maps, grad_cam


def centre(image):
    """Centre of mass (row, column) of a map."""
    rows, columns = np.indices(image.shape)
    return np.array([(rows * image).sum(), (columns * image).sum()]) / image.sum()


@pytest.fixture(scope="module")
def moved(draw_picture):
    """The same picture twice, its square at the left and sixteen pixels further right."""
    pictures = [draw_picture(np.random.default_rng(5), (12, column)) for column in (4, 20)]
    ct = draw_picture(np.random.default_rng(6))
    return {"mri": np.stack(pictures), "ct": np.stack([ct, ct])}


def test_class_maps_are_the_formula_of_the_paper():
    draw = np.random.default_rng(0)
    x, g = (jnp.asarray(draw.normal(size=(2, 3, 4, 5)), jnp.float32) for _ in range(2))
    expected = np.maximum(np.einsum("bhwc,bc->bhw", x, np.mean(g, (1, 2))), 0)
    found = class_maps({"mri": x, "table": x[:, 0, 0]}, {"mri": g, "table": g[:, 0, 0]})
    assert set(found) == {"mri"}
    np.testing.assert_allclose(found["mri"], expected, rtol=1e-4, atol=1e-6)


def test_the_networks_find_the_square(restored, records):
    """Else the tests of this file would explain noise."""
    pixels, labels = records
    apply = jax.jit(restored.network.apply, static_argnames="train")
    for member in range(2):
        params, statistics = jax.tree.map(
            lambda x, i=member: x[i], (restored.params, restored.statistics)
        )
        images = {m: x.astype(np.float32) / 255 for m, x in pixels.items()}
        (logits, _), _ = apply(params, statistics, images, train=False)
        assert np.mean(np.argmax(logits["lesion"], -1) == labels) >= 0.9


def test_maps_follow_an_object_that_is_moved(restored, moved):
    maps = grad_cam(restored, moved, "lesion", np.array([1, 1]))["mri"]
    assert maps.members.shape == (2, 2, 32, 32)
    assert maps.members.min() >= 0 and maps.members.max() <= 1
    left, right = (centre(one) for one in maps.mean)
    # The square went sixteen columns to the right and stayed in its rows.
    assert 8 < right[1] - left[1] < 24
    assert abs(right[0] - left[0]) < 4
    for row, column in enumerate((4, 20)):
        hottest = np.unravel_index(maps.mean[row].argmax(), (32, 32))
        # The square spans six pixels and a cell of the map four.
        assert abs(hottest[0] - 15) <= 7 and abs(hottest[1] - (column + 3)) <= 7


def test_maps_change_when_the_weights_are_randomised(restored, restore, untrained_members, records):
    """Adebayo et al., 2018: a map that survives this shows the image, not the network."""
    pixels, labels = records
    with_square = {m: x[labels == 1] for m, x in pixels.items()}
    classes = np.ones(len(with_square["mri"]), int)
    trained = grad_cam(restored, with_square, "lesion", classes)["mri"].members[0]
    random = grad_cam(restore(untrained_members), with_square, "lesion", classes)["mri"].members[0]
    alike = []
    for one, other in zip(trained, random, strict=True):
        # A map without evidence is as different as can be.
        alike.append(np.corrcoef(one.ravel(), other.ravel())[0, 1] if other.any() else 0.0)
    assert np.mean(alike) < 0.5


def test_the_spread_is_that_of_the_members(restored, records):
    pixels, _ = records
    maps = grad_cam(restored, pixels, "lesion", np.ones(16, int))["mri"]
    np.testing.assert_allclose(maps.mean, (maps.members[0] + maps.members[1]) / 2, rtol=1e-6)
    assert maps.spread.max() > 0


def test_an_absent_modality_has_an_empty_map(restored, records):
    pixels, _ = records
    present = {"mri": np.ones(16, bool), "ct": np.arange(16) % 2 == 0}
    maps = grad_cam(restored, pixels, "lesion", np.ones(16, int), present=present)
    assert not maps["ct"].members[:, 1::2].any()


def test_maps_of_other_classes_and_stages_differ(restored, records):
    pixels, _ = records
    first = grad_cam(restored, pixels, "lesion", np.ones(16, int))
    assert first["mri"].stage == 0  # maps of the second stage have 4 x 4 cells
    other_class = grad_cam(restored, pixels, "lesion", np.zeros(16, int))
    assert np.any(first["mri"].members != other_class["mri"].members)
    deeper = grad_cam(restored, pixels, "lesion", np.ones(16, int), stage=1)
    assert deeper["mri"].stage == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tumour", [1]), "task is 'tumour'"),
        (("lesion", [2]), "has 2 classes"),
    ],
)
def test_wrong_arguments_are_named(restored, records, arguments, message):
    task, classes = arguments
    pixels = {m: x[:1] for m, x in records[0].items()}
    with pytest.raises(ValueError, match=message):
        grad_cam(restored, pixels, task, np.array(classes))
    with pytest.raises(ValueError, match="stages 0 to 1"):
        grad_cam(restored, pixels, "lesion", np.array([1]), stage=2)


def test_the_largest_value_of_a_map_is_one_at_the_size_of_the_image(restored, records):
    """Else members whose coarse peak is narrow would weigh less in the mean."""
    maps = grad_cam(restored, records[0], "lesion", np.ones(16, np.int32))
    for found in maps.values():
        largest = found.members.max(axis=(2, 3))
        np.testing.assert_allclose(largest[largest > 0], 1.0, rtol=1e-6)
