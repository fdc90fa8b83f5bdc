import functools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from efficientnet_lite_pytorch import EfficientNet as LiteModel
from efficientnet_lite_pytorch.utils import BlockArgs, GlobalParams
from flax import nnx
from transformers import EfficientNetConfig, EfficientNetModel

from drifa_jax.interop.checkpoint_names import EFFICIENTNET, EFFICIENTNET_LITE
from drifa_jax.models.backbones.efficientnet import (
    EFFICIENTNET_PLANS,
    EfficientNet,
    Group,
    scaled,
)
from drifa_jax.network_options import NetworkOptions

GROUPS = (
    Group(3, 1, 1, 24, 2),
    Group(5, 2, 3, 32, 1),
    Group(3, 2, 2, 48, 5),
    Group(5, 1, 2, 64, 1),
)
WIDTH, DEPTH = 0.3, 1.1
SCALES = {"0": (1.0, 1.0), "1": (1.0, 1.1), "2": (1.1, 1.2)}


def reference(width, depth, groups=None):
    """The model of `transformers`; its own groups, B0's, where none are given."""
    chosen = {}
    if groups is not None:
        chosen = {
            "kernel_sizes": [g.window for g in groups],
            "strides": [g.stride for g in groups],
            "expand_ratios": [g.expansion for g in groups],
            "in_channels": [32, *(g.num_channels for g in groups[:-1])],
            "out_channels": [g.num_channels for g in groups],
            "num_block_repeats": [g.num_blocks for g in groups],
            "depthwise_padding": [],
        }
    top = scaled(width, depth).top
    return EfficientNetModel(
        EfficientNetConfig(
            width_coefficient=width, depth_coefficient=depth, hidden_dim=top, **chosen
        )
    )


def lite_reference(width, depth, groups):
    blocks = [
        BlockArgs(
            num_repeat=g.num_blocks,
            kernel_size=g.window,
            stride=[g.stride],
            expand_ratio=g.expansion,
            input_filters=before,
            output_filters=g.num_channels,
            se_ratio=None,
            id_skip=True,
        )
        for g, before in zip(groups, [32, *(g.num_channels for g in groups)], strict=False)
    ]
    fields = dict.fromkeys(GlobalParams._fields) | {
        "width_coefficient": width,
        "depth_coefficient": depth,
        "image_size": None,
        "dropout_rate": 0.0,
        "num_classes": 2,
        "batch_norm_momentum": 0.99,
        "batch_norm_epsilon": 1e-3,
        "drop_connect_rate": 0.0,
        "depth_divisor": 8,
        "min_depth": None,
        "relu_fn": "relu6",
        "fix_head_stem": True,
    }
    return LiteModel(blocks, GlobalParams(**fields))


def maps(model, modules, pixels):
    """Outputs of some of a PyTorch network's modules."""
    seen = []
    hooks = [m.register_forward_hook(lambda _, __, out: seen.append(out)) for m in modules]
    with torch.no_grad():
        model(pixels)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_features_equal_those_of_transformers(dtype, drawn, features_of, assert_equal_features):
    plan = scaled(WIDTH, DEPTH, groups=GROUPS)
    model = drawn(reference(WIDTH, DEPTH, GROUPS))
    images = np.random.default_rng(0).normal(size=(2, 32, 48, 3))
    ours = features_of(
        functools.partial(EfficientNet, plan=plan), EFFICIENTNET, model.state_dict(), images, dtype
    )
    model = model.to(torch.from_numpy(images.astype(dtype)).dtype)
    # The last block of each resolution, of 3 + 2 + (6 + 2); and the top behind the last.
    last = [model.encoder.blocks[n] for n in (2, 4)]
    theirs = maps(
        model,
        [model.embeddings, *last, model.encoder.top_activation],
        torch.from_numpy(images.astype(dtype)).movedim(-1, 1),
    )
    assert_equal_features(ours, theirs, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_lite_features_equal_those_of_its_pytorch_twin(
    dtype, drawn, features_of, assert_equal_features
):
    plan = scaled(WIDTH, DEPTH, lite=True, groups=GROUPS)
    model = drawn(lite_reference(WIDTH, DEPTH, GROUPS))
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("_fc.")}
    images = np.random.default_rng(0).normal(size=(2, 37, 32, 3))
    build = functools.partial(EfficientNet, plan=plan)
    ours = features_of(build, EFFICIENTNET_LITE, state, images, dtype)
    model = model.to(torch.from_numpy(images.astype(dtype)).dtype)
    pixels = torch.from_numpy(images.astype(dtype)).movedim(-1, 1)
    # Lite keeps the depth of the first and last group: 2 + 2 + (6 + 1) blocks.
    theirs = maps(model, [model._blocks[n] for n in (1, 3)], pixels)
    with torch.no_grad():
        entry = model._swish(model._bn0(model._conv_stem(pixels)))
        top = model.extract_features(pixels)
    assert_equal_features(ours, [entry, *theirs, top], dtype)


@pytest.mark.parametrize("number", SCALES)
def test_parameters_of_a_whole_network_are_those_of_the_reference(number, num_parameters):
    with torch.device("meta"):
        whole = reference(*SCALES[number])
    expected = sum(p.numel() for p in whole.parameters())
    plan = EFFICIENTNET_PLANS[f"efficientnet_b{number}"]
    assert num_parameters(functools.partial(EfficientNet, plan=plan)) == expected

    with torch.device("meta"):
        lite = LiteModel.from_name(f"efficientnet-lite{number}")
    expected = sum(p.numel() for name, p in lite.named_parameters() if not name.startswith("_fc"))
    plan = EFFICIENTNET_PLANS[f"efficientnet_lite{number}"]
    assert num_parameters(functools.partial(EfficientNet, plan=plan)) == expected


def test_stages_are_the_resolutions_and_the_last_ends_with_the_top():
    plan = scaled(WIDTH, DEPTH, groups=GROUPS)
    module = EfficientNet(1, plan, options=NetworkOptions(), rngs=nnx.Rngs(params=0))
    stages = module.plan
    assert [(s.channels, s.reduction, s.dropout) for s in stages] == [
        (8, 2, True),
        (16, 4, True),
        (384, 8, False),
    ]
