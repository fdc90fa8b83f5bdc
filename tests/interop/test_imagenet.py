"""ImageNet ResNets in the branches, against the ResNet of `transformers`."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from drifa_jax.errors import UserError
from drifa_jax.interop.imagenet import adapt_channels, from_imagenet, torchvision_names
from drifa_jax.interop.network_files import assemble
from drifa_jax.models.building import build_network
from drifa_jax.models.description import NetworkDescription
from drifa_jax.network_options import NetworkOptions

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PYTORCH_LAYERS = {"padding": "symmetric", "batch_norm_epsilon": 1e-5}


def plain_network(modalities, **options):
    """Branches without attention: plain ResNets whose features are concatenated."""
    return NetworkDescription(
        modalities,
        {"tumour": 2},
        NetworkOptions(
            width=4,
            mfa_parts=(),
            stage_mfa_parts=(),
            mifa_parts=(),
            **PYTORCH_LAYERS | options,
        ),
    )


def third_party(depths=(2, 2, 2, 2), kind="basic"):
    """A ResNet of `transformers`, four channels wide, with random weights and statistics."""
    torch.manual_seed(0)
    expansion = {"basic": 1, "bottleneck": 4}[kind]
    config = transformers.ResNetConfig(
        embedding_size=4,
        hidden_sizes=[4 * expansion, 8 * expansion, 16 * expansion, 32 * expansion],
        depths=list(depths),
        layer_type=kind,
        downsample_in_first_stage=False,
    )
    model = transformers.ResNetModel(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif "normalization" in name and tensor.is_floating_point():
                tensor.normal_(1.0 if name.endswith("weight") else 0.0, 0.2)
    return model


def arrays(model):
    return {
        name: tensor.numpy()
        for name, tensor in model.state_dict().items()
        if "num_batches" not in name
    }


@pytest.mark.parametrize(
    ("backbone", "depths", "kind"),
    [("resnet18", (2, 2, 2, 2), "basic"), ("resnet50", (3, 4, 6, 3), "bottleneck")],
    ids=["resnet18", "resnet50"],
)
def test_features_equal_a_third_party_resnet(backbone, depths, kind):
    """Colour, and grey against the same grey image in all three colours; odd sizes too."""
    model = third_party(depths, kind)
    network = plain_network({"colour": 3, "grey": 1}, backbone=backbone)
    tensors = from_imagenet(arrays(model), network)
    params, statistics = assemble(network, tensors, jax.random.key(0))
    rng = np.random.default_rng(0)
    colour = rng.standard_normal((2, 65, 48, 3)).astype(np.float32)
    grey = rng.standard_normal((2, 64, 64, 1)).astype(np.float32)
    (_, seen), _ = jax.jit(lambda p, s, x: build_network(network).apply(p, s, x, train=False))(
        params, statistics, {"colour": colour, "grey": grey}
    )

    for modality, images in (("colour", colour), ("grey", np.repeat(grey, 3, axis=-1))):
        with torch.no_grad():
            wanted = model(
                torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), output_hidden_states=True
            ).hidden_states
        # One hidden state after the stem and one after the last block of each resolution.
        for resolution, last in enumerate(np.cumsum(depths) - 1):
            found = np.asarray(seen[f"stage_{last}/rra/{modality}"])
            reference = wanted[resolution + 1].numpy().transpose(0, 2, 3, 1)
            assert found.shape == reference.shape
            error = np.abs(found - reference).max() / np.abs(reference).max()
            assert error < 1e-5, (modality, resolution, error)


def test_bottleneck_names_of_all_libraries_are_one():
    torchvision = torchvision_names(arrays(third_party((1, 1, 1, 1), "bottleneck")))
    parts = {name.removeprefix("layer3.0.").rsplit(".", 1)[0] for name in torchvision}
    assert {"conv1", "conv2", "conv3", "bn1", "bn2", "bn3", "downsample.0"} <= parts
    assert torchvision["layer3.0.conv3.weight"].shape == (64, 16, 1, 1)


def test_all_libraries_names_are_one():
    hugging_face = arrays(third_party())
    torchvision = torchvision_names(hugging_face)
    assert {"conv1.weight", "bn1.running_mean", "layer2.0.downsample.0.weight"} <= set(torchvision)
    assert "layer4.1.conv2.weight" in torchvision
    prefixed = {f"resnet.{name}": array for name, array in hugging_face.items()}
    again = torchvision_names({**prefixed, "classifier.1.weight": np.zeros((2, 2))})
    assert set(again) == set(torchvision) == set(torchvision_names(torchvision))


def test_first_convolution_takes_other_channel_counts():
    kernel = np.random.default_rng(0).standard_normal((2, 3, 7, 7)).astype(np.float32)
    np.testing.assert_allclose(adapt_channels(kernel, 1)[:, 0], kernel.sum(1))
    for channels in (2, 4, 6):
        adapted = adapt_channels(kernel, channels)
        assert adapted.shape == (2, channels, 7, 7)
        # The last channel is one of the colours again, scaled.
        colour = kernel[:, (channels - 1) % 3] * np.float32(3 / channels)
        np.testing.assert_array_equal(adapted[:, channels - 1], colour)
    # Two rounds of the colours respond to a constant image as one does.
    np.testing.assert_allclose(
        adapt_channels(kernel, 6).sum((1, 2, 3)), kernel.sum((1, 2, 3)), rtol=1e-4, atol=1e-5
    )


def test_other_padding_and_epsilon_are_refused():
    with pytest.raises(UserError, match="padding 'symmetric'"):
        from_imagenet({}, plain_network({"a": 3}, padding="same"))
    with pytest.raises(UserError, match=r"batch_norm_epsilon 1e-05"):
        from_imagenet({}, plain_network({"a": 3}, batch_norm_epsilon=1e-3))


def test_other_architectures_are_refused():
    network = plain_network({"a": 3})
    with pytest.raises(UserError, match=r"of bottleneck blocks .*backbone is 'resnet18'"):
        from_imagenet({"conv1.weight": 0, "layer1.0.conv3.weight": 0}, network)
    with pytest.raises(UserError, match=r"of basic blocks, but .* is 'resnet50'"):
        from_imagenet({"conv1.weight": 0}, plain_network({"a": 3}, backbone="resnet50"))
    with pytest.raises(UserError, match="no first convolution"):
        from_imagenet({"blocks.0.attn.qkv.weight": np.zeros(3)}, network)
    deeper = arrays(third_party(depths=(3, 4, 6, 3)))
    with pytest.raises(UserError, match=r"\+ layer1.2.conv1.weight \(4, 4, 3, 3\)"):
        from_imagenet(deeper, network)
