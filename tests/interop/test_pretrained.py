"""Checkpoints of other libraries in the branches, against the networks of `transformers`."""

from __future__ import annotations

import json
from functools import partial

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from drifa_jax.errors import UserError
from drifa_jax.interop.network_files import assemble, shapes
from drifa_jax.interop.parity import branch_values
from drifa_jax.interop.pretrained.branches import adapted, normalisation_for
from drifa_jax.interop.pretrained.checkpoint import open_checkpoint
from drifa_jax.interop.pretrained.dialects import IMAGENET
from drifa_jax.interop.pretrained.networks import filled
from drifa_jax.interop.pretrained.references import reference_features
from drifa_jax.models.backbones.convnext import ConvNeXt, ConvNeXtPlan
from drifa_jax.models.backbones.efficientnet import EfficientNet, Group, scaled
from drifa_jax.models.backbones.swin import Swin, SwinPlan
from drifa_jax.models.backbones.vit import ViT, ViTPlan
from drifa_jax.models.description import NetworkDescription
from drifa_jax.models.registry import BACKBONES
from drifa_jax.network_options import NetworkOptions

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

GROUPS = (Group(3, 1, 1, 24, 1), Group(5, 2, 3, 32, 2), Group(3, 2, 2, 48, 1))
TINY = (16, 4, 2, 4, 3)
NETWORKS = {
    "convnext_toy": partial(ConvNeXt, plan=ConvNeXtPlan((1, 2), (6, 10))),
    "convnextv2_toy": partial(ConvNeXt, plan=ConvNeXtPlan((1, 2), (6, 10), 2)),
    "efficientnet_b9": partial(EfficientNet, plan=scaled(0.3, 1.0, groups=GROUPS)),
    "swin_toy": partial(Swin, plan=SwinPlan((1, 2, 1), (1, 2, 2), 4, window=2)),
    "vit_toy": partial(ViT, plan=ViTPlan(*TINY, epsilon=1e-12)),
    "deit_toy": partial(ViT, plan=ViTPlan(*TINY, distillation=True, epsilon=1e-12)),
    "dinov2_toy": partial(ViT, plan=ViTPlan(*TINY, layer_scale=1.0)),
    "dinov2_registers_toy": partial(
        ViT, plan=ViTPlan(*TINY, layer_scale=1.0, num_registers=2, antialias=True)
    ),
    "dinov3_toy": partial(
        ViT,
        plan=ViTPlan(*TINY[:4], 0, layer_scale=1.0, num_registers=2, key_bias=False, epsilon=1e-5),
    ),
}
PYTORCH = {"padding": "symmetric", "batch_norm_epsilon": 1e-5}
OPTIONS = {"resnet18": {"width": 4, **PYTORCH}, "resnet50": {"width": 4, **PYTORCH}}
PIXELS = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.25, 0.5]}


@pytest.fixture(autouse=True)
def small_backbones(monkeypatch):
    for name, make in NETWORKS.items():
        monkeypatch.setitem(BACKBONES, name, make)


def model_of(backbone, **shaping):
    """The classifier of `transformers` whose shape is that of a small backbone."""
    classes = {"num_labels": 2, **shaping}
    if backbone in OPTIONS:
        deep = backbone == "resnet50"
        config = transformers.ResNetConfig(
            embedding_size=4,
            hidden_sizes=[(4 if deep else 1) * w for w in (4, 8, 16, 32)],
            depths=[3, 4, 6, 3] if deep else [2, 2, 2, 2],
            layer_type="bottleneck" if deep else "basic",
            downsample_in_first_stage=False,
            **classes,
        )
        return transformers.ResNetForImageClassification(config)
    if backbone.startswith("convnext"):
        config, model = (
            (transformers.ConvNextV2Config, transformers.ConvNextV2ForImageClassification)
            if "v2" in backbone
            else (transformers.ConvNextConfig, transformers.ConvNextForImageClassification)
        )
        return model(config(num_stages=2, depths=[1, 2], hidden_sizes=[6, 10], **classes))
    if backbone.startswith("efficientnet"):
        return transformers.EfficientNetForImageClassification(
            transformers.EfficientNetConfig(
                width_coefficient=0.3,
                depth_coefficient=1.0,
                hidden_dim=scaled(0.3, 1.0).top,
                kernel_sizes=[g.window for g in GROUPS],
                strides=[g.stride for g in GROUPS],
                expand_ratios=[g.expansion for g in GROUPS],
                in_channels=[32, *(g.num_channels for g in GROUPS[:-1])],
                out_channels=[g.num_channels for g in GROUPS],
                num_block_repeats=[g.num_blocks for g in GROUPS],
                depthwise_padding=[],
                **classes,
            )
        )
    if backbone == "swin_toy":
        return transformers.SwinForImageClassification(
            transformers.SwinConfig(
                embed_dim=4, depths=[1, 2, 1], num_heads=[1, 2, 2], window_size=2, **classes
            )
        )
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "patch_size": 4,
        **{"image_size": 12, **classes},
    }
    if backbone == "dinov3_toy":
        config = transformers.DINOv3ViTConfig(**shape, num_register_tokens=2)
        return transformers.DINOv3ViTModel(config)
    family = {
        "vit_toy": "ViT",
        "deit_toy": "DeiT",
        "dinov2_toy": "Dinov2",
        "dinov2_registers_toy": "Dinov2WithRegisters",
    }[backbone]
    if "registers" in backbone:
        shape["num_register_tokens"] = 2
    config = getattr(transformers, f"{family}Config")(**shape)
    return getattr(transformers, f"{family}ForImageClassification")(config)


def write(backbone, folder, shaping=None, **saving):
    """A folder of Hugging Face with drawn weights."""
    model, rng = model_of(backbone, **shaping or {}), np.random.default_rng(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                spread = 0.3 if tensor.ndim < 2 else (3 / tensor[0].numel()) ** 0.5
                drawn = rng.uniform(-spread, spread, tuple(tensor.shape))
                shift = 1.0 if name.endswith("running_var") or "norm" in name else 0.0
                tensor.copy_(torch.from_numpy(drawn + shift))
    model.save_pretrained(folder, **saving)
    (folder / "preprocessor_config.json").write_text(json.dumps({**PIXELS, "size": 12}))
    return folder


def network_of(backbone, modalities=None):
    options = NetworkOptions(
        backbone=backbone,
        mfa_parts=(),
        stage_mfa_parts=(),
        mifa_parts=(),
        **OPTIONS.get(backbone, {}),
    )
    return NetworkDescription(modalities or {"colour": 3}, {"tumour": 2}, options)


def from_folder(folder, network):
    return filled(network, {m: (str(folder), "train.pretrained") for m in network.modalities})


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", *NETWORKS])
def test_features_of_a_hugging_face_folder_are_those_of_its_network(backbone, tmp_path):
    folder = write(backbone, tmp_path)
    network, tensors, _ = from_folder(folder, network_of(backbone, {"colour": 3, "grey": 1}))
    drawn = {p: np.zeros(s, np.float32) for p, s in shapes(network).items() if p not in tensors}
    assert not [p for p in drawn if p.startswith("branches/")]
    params, statistics = assemble(network, tensors | drawn)
    rng = np.random.default_rng(1)
    images = {m: rng.random((2, 24, 24, c), np.float32) for m, c in network.channels.items()}
    sources = {m: (str(folder), "train.pretrained") for m in network.modalities}
    expected = reference_features(network, sources, images)
    found = branch_values(network, params, statistics, images)
    assert len(expected) >= 4
    for name, reference in expected.items():
        # As in tests/models/backbones: rounding of 6e-8 grows to a hundred times itself.
        limit = 1e-5 * np.abs(reference).max()
        np.testing.assert_allclose(found[name], reference, rtol=0, atol=limit, err_msg=name)


@pytest.mark.parametrize(
    ("backbone", "trained_on"),
    [("vit_toy", 20), ("deit_toy", 8), ("dinov2_toy", 20), ("dinov2_registers_toy", 20)],
)
def test_positions_of_another_picture_size_are_interpolated_as_transformers_does(
    backbone, trained_on, tmp_path
):
    """Grids of 5 x 5 and 2 x 2 patches on the 3 x 3 of the backbone and of the pictures."""
    folder = write(backbone, tmp_path, {"image_size": trained_on})
    network, tensors, notes = from_folder(folder, network_of(backbone))
    side = trained_on // 4
    assert any(f"for {side} x {side} patches" in n and "to the 3 x 3 of" in n for n in notes)
    drawn = {p: np.zeros(s, np.float32) for p, s in shapes(network).items() if p not in tensors}
    images = {"colour": np.random.default_rng(1).random((2, 12, 12, 3), np.float32)}
    sources = {"colour": (str(folder), "train.pretrained")}
    expected = reference_features(network, sources, images)
    found = branch_values(network, *assemble(network, tensors | drawn), images)
    for name, reference in expected.items():
        limit = 1e-5 * np.abs(reference).max()
        np.testing.assert_allclose(found[name], reference, rtol=0, atol=limit, err_msg=name)


def test_positions_of_no_square_grid_are_refused(tmp_path):
    folder = write("vit_toy", tmp_path)
    rewritten(folder, cut_positions)
    with pytest.raises(
        UserError, match=r"(?s)position_embeddings \(1, 9, 16\) holds positions of no square grid"
    ):
        from_folder(folder, network_of("vit_toy"))


def cut_positions(state):
    name = "vit.embeddings.position_embeddings"
    return state | {name: np.ascontiguousarray(state[name][:, :-1])}


def test_shards_are_one_checkpoint_and_a_missing_one_is_named(tmp_path):
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    network = network_of("convnext_toy")
    _, expected, _ = from_folder(write("convnext_toy", whole), network)
    _, tensors, _ = from_folder(write("convnext_toy", sharded, max_shard_size="4KB"), network)
    shards = sorted(sharded.glob("model-*.safetensors"))
    assert len(shards) > 1 and expected.keys() == tensors.keys()
    assert all(np.array_equal(expected[path], tensors[path]) for path in expected)
    shards[-1].unlink()
    with pytest.raises(UserError, match=rf"{shards[-1].name}, which is missing; download it too"):
        from_folder(sharded, network)


def test_a_state_dict_alone_is_known_by_its_names_and_says_what_it_assumes(tmp_path):
    folder = write("convnext_toy", tmp_path / "folder")
    state = load_file(folder / "model.safetensors")
    torch.save({k: torch.from_numpy(v) for k, v in state.items()}, tmp_path / "alone.pth")
    network = network_of("convnext_toy")
    _, expected, _ = from_folder(folder, network)
    described, tensors, notes = from_folder(tmp_path / "alone.pth", network)
    assert all(np.array_equal(expected[path], tensors[path]) for path in expected)
    assert described.modalities["colour"].mean == IMAGENET.mean
    assert any("does not say what its pixels went through" in note for note in notes)


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        (PIXELS, (0.1, 0.2, 0.3), (0.5, 0.25, 0.5)),
        ({**PIXELS, "rescale_factor": 2 / 255}, (0.05, 0.1, 0.15), (0.25, 0.125, 0.25)),
        # EfficientNet's processor divides by the deviation twice.
        ({**PIXELS, "include_top": True}, (0.1, 0.2, 0.3), (0.25, 0.0625, 0.25)),
    ],
    ids=["plain", "rescaled", "include_top"],
)
def test_pixels_follow_the_preprocessor(processor, mean, std, tmp_path):
    folder = write("efficientnet_b9", tmp_path)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    found = open_checkpoint(str(folder), "efficientnet_b9", "train.pretrained").normalisation
    np.testing.assert_allclose((found.mean, found.std), (mean, std), rtol=1e-6)


def test_the_preprocessing_of_efficientnet_is_that_of_transformers(tmp_path):
    pytest.importorskip("PIL")
    from transformers.models.efficientnet.image_processing_pil_efficientnet import (
        EfficientNetImageProcessorPil,
    )

    processor = EfficientNetImageProcessorPil(do_resize=False, do_center_crop=False)
    folder = write("efficientnet_b9", tmp_path)
    processor.save_pretrained(folder)
    picture = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    theirs = processor(picture, return_tensors="np")["pixel_values"][0]
    found = open_checkpoint(str(folder), "efficientnet_b9", "train.pretrained").normalisation
    ours = np.asarray(found(jax.numpy.asarray(picture[None] / 255, np.float32)))[0]
    np.testing.assert_allclose(ours, theirs.transpose(1, 2, 0), rtol=1e-5, atol=1e-5)


def test_first_convolution_takes_other_channel_counts():
    kernel = np.random.default_rng(0).standard_normal((7, 7, 3, 2)).astype(np.float32)
    for channels in (2, 4, 6):
        found = adapted(kernel, channels, IMAGENET)
        assert found.shape == (7, 7, channels, 2)
        # The last channel is one of the colours again, scaled.
        colour = kernel[..., (channels - 1) % 3, :] * np.float32(3 / channels)
        np.testing.assert_array_equal(found[..., channels - 1, :], colour)
    # Two rounds of the colours respond to a constant image as one does.
    np.testing.assert_allclose(
        adapted(kernel, 6, IMAGENET).sum((0, 1, 2)), kernel.sum((0, 1, 2)), rtol=1e-4, atol=1e-5
    )
    # A step between two grey values is answered as if it stood in all three colours.
    grey = adapted(kernel, 1, IMAGENET)[..., 0, :] / normalisation_for(IMAGENET, 1).std[0]
    std = np.array(IMAGENET.std, np.float32)[:, None]
    np.testing.assert_allclose(grey, (kernel / std).sum(-2), rtol=1e-4, atol=1e-5)


def rewritten(folder, change=None, **declared):
    """The folder with its tensors changed, and fields of its config.json."""
    state = load_file(folder / "model.safetensors")
    save_file(change(state) if change else state, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | declared
    (folder / "config.json").write_text(json.dumps(config))


def first_kernel(change):
    name = "convnext.embeddings.patch_embeddings.weight"
    return lambda state: state | {name: np.ascontiguousarray(change(state[name]))}


def broken(kernel):
    kernel = kernel.copy()
    kernel[0, 0, 0, 0] = np.nan
    return kernel


@pytest.mark.parametrize(
    ("change", "declared", "message"),
    [
        (None, {"model_type": "bert"}, r"model_type 'bert', which is no network of images"),
        (None, {"hidden_act": "relu"}, r"hidden_act 'relu'; the backbones ConvNeXt"),
        (
            None,
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            r"config.json: quantization_config says that the weights are quantised; use",
        ),
        (
            first_kernel(lambda x: x.astype(np.int8)),
            {},
            r"patch_embeddings.weight has dtype int8, as quantised weights have; use",
        ),
        (first_kernel(broken), {}, r"embeddings.patch_embeddings.weight hold NaN or infinity"),
        (
            first_kernel(lambda x: x[:, :2]),
            {},
            r"reads 2 channels, and data.modalities.colour.channels is 3; only colour",
        ),
        (
            first_kernel(lambda x: x[..., :2]),
            {},
            r"(?s)- embeddings.patch_embeddings.weight \(6, 3, 4, 4\).*\+ .*\(6, 3, 4, 2\).*"
            r"sees 4 x 2 pixels at once, that of convnext_toy 4 x 4. Use another checkpoint, or",
        ),
        (
            first_kernel(lambda x: x[:, :1]),
            {},
            r"reads 1 channel, and .* Set data.modalities.colour.channels=1",
        ),
    ],
    ids=["text", "activation", "quantised config", "int8", "nan", "channels", "window", "grey"],
)
def test_what_cannot_be_used_is_named_with_its_cure(change, declared, message, tmp_path):
    folder = write("convnext_toy", tmp_path)
    rewritten(folder, change, **declared)
    with pytest.raises(UserError, match=message):
        from_folder(folder, network_of("convnext_toy"))


def test_weights_of_eight_bits_are_called_quantised(tmp_path):
    from safetensors.torch import save_file as save_tensors

    folder = write("convnext_toy", tmp_path)
    name = "convnext.embeddings.patch_embeddings.weight"
    state = {k: torch.from_numpy(x) for k, x in load_file(folder / "model.safetensors").items()}
    state[name] = state[name].to(torch.float8_e4m3fn)
    save_tensors(state, folder / "model.safetensors")
    with pytest.raises(UserError, match=rf"{name} has dtype F8_E4M3, as quantised weights have"):
        from_folder(folder, network_of("convnext_toy"))


def test_another_family_width_or_size_is_named_with_its_cure(tmp_path, monkeypatch):
    folder = write("convnext_toy", tmp_path / "convnext")
    with pytest.raises(UserError, match=r"a ConvNeXt .* backbone of colour is 'vit_toy'. Set"):
        from_folder(folder, network_of("vit_toy"))
    wide = partial(ConvNeXt, plan=ConvNeXtPlan((1, 2), (8, 16)))
    monkeypatch.setitem(BACKBONES, "convnext_wide", wide)
    with pytest.raises(UserError, match=r"(?s)- .*\(8, .*It fits model.backbone=convnext_toy"):
        from_folder(folder, network_of("convnext_wide"))
    larger = partial(ViT, plan=ViTPlan(32, *TINY[1:4], 5, epsilon=1e-12))
    monkeypatch.setitem(BACKBONES, "vit_larger", larger)
    folder = write("vit_toy", tmp_path / "vit")
    with pytest.raises(UserError, match=r"(?s)- .*\(32, .*It fits model.backbone=vit_toy"):
        from_folder(folder, network_of("vit_larger"))


def test_a_resnet_of_another_padding_or_width_is_named_with_its_cure(tmp_path):
    folder = write("resnet18", tmp_path)
    narrow = NetworkOptions(width=2, **PYTORCH)
    with pytest.raises(UserError, match=r"does not fit the network"):
        from_folder(folder, NetworkDescription({"colour": 3}, {"tumour": 2}, narrow))
    with pytest.raises(UserError, match=r"Set model.padding=symmetric"):
        options = NetworkOptions(width=4)
        from_folder(folder, NetworkDescription({"colour": 3}, {"tumour": 2}, options))


def test_folders_and_files_that_are_no_checkpoint_are_named(tmp_path):
    def opened(name):
        return open_checkpoint(str(tmp_path / name), "resnet18", "train.pretrained")

    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no files of weights; give one of model.safe"):
        opened("empty")
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"Start from it with train.initial_weights"):
        opened("converted")
    save_file({"encoder.layer.0.word.weight": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"those of no backbone .* encoder.layer.0.word.weight"):
        from_folder(tmp_path / "x.safetensors", network_of("resnet18"))
