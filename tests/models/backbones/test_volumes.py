"""Backbones of three spatial axes against PyTorch networks of `nn.Conv3d` with the same weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.errors import UserError
from drifa_jax.interop.checkpoint_names import DENSENET, Naming
from drifa_jax.models.backbones.densenet import DenseNet, DenseNetPlan
from drifa_jax.models.backbones.resnet import ResNet
from drifa_jax.models.building import build_network
from drifa_jax.models.description import ModalityDescription, NetworkDescription
from drifa_jax.network_options import NetworkOptions

torch = pytest.importorskip("torch")
nn = torch.nn

RESNET = Naming(
    (
        (r"stem/(conv|norm)", "{}"),
        (r"stages/stage_(\d+)/(conv1|conv2|conv3|norm1|norm2|norm3)", "blocks.{}.{}"),
        (r"stages/stage_(\d+)/(projection|projection_norm)", "blocks.{}.{}"),
    )
)


class Block(nn.Module):
    """He et al. 2016, Fig. 5, of three axes: two convolutions of 3, or 1, 3 and 1."""

    def __init__(self, num_in, num_inside, stride, is_bottleneck):
        super().__init__()
        num_out = 4 * num_inside if is_bottleneck else num_inside
        sizes = (
            [(num_in, num_inside, 1, 1), (num_inside, num_inside, 3, stride)]
            if is_bottleneck
            else [(num_in, num_inside, 3, stride), (num_inside, num_inside, 3, 1)]
        )
        if is_bottleneck:
            sizes.append((num_inside, num_out, 1, 1))
        self.depth = len(sizes)
        for k, (i, o, window, step) in enumerate(sizes, start=1):
            setattr(self, f"conv{k}", nn.Conv3d(i, o, window, step, window // 2))
            setattr(self, f"norm{k}", nn.BatchNorm3d(o))
        self.projects = stride != 1 or num_in != num_out
        if self.projects:
            self.projection = nn.Conv3d(num_in, num_out, 1, stride)
            self.projection_norm = nn.BatchNorm3d(num_out)

    def forward(self, x):
        y = x
        for k in range(1, self.depth + 1):
            y = getattr(self, f"norm{k}")(getattr(self, f"conv{k}")(y))
            y = y.relu() if k < self.depth else y
        return (y + (self.projection_norm(self.projection(x)) if self.projects else x)).relu()


class ReferenceResNet(nn.Module):
    def __init__(self, width, plan, is_bottleneck):
        super().__init__()
        self.conv, self.norm = nn.Conv3d(2, width, 7, 2, 3), nn.BatchNorm3d(width)
        self.pool = nn.MaxPool3d(3, 2, 1)
        blocks, num_in = [], width
        for resolution, count in enumerate(plan):
            for k in range(count):
                stride = 2 if resolution and not k else 1
                blocks.append(Block(num_in, width * 2**resolution, stride, is_bottleneck))
                num_in = width * 2**resolution * (4 if is_bottleneck else 1)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        maps = [self.pool(self.norm(self.conv(x)).relu())]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps


class ReferenceDenseNet(nn.Module):
    """Huang et al. 2017, table 1, with every window of three axes, under torchvision's names."""

    def __init__(self, plan):
        super().__init__()
        parts = {
            "conv0": nn.Conv3d(2, plan.stem, 7, 2, 3, bias=False),
            "norm0": nn.BatchNorm3d(plan.stem),
        }
        width = plan.stem
        for number, depth in enumerate(plan.depths, start=1):
            layers = nn.ModuleDict()
            for k in range(1, depth + 1):
                inside = 4 * plan.growth
                layers[f"denselayer{k}"] = nn.ModuleDict(
                    {
                        "norm1": nn.BatchNorm3d(width),
                        "conv1": nn.Conv3d(width, inside, 1, bias=False),
                        "norm2": nn.BatchNorm3d(inside),
                        "conv2": nn.Conv3d(inside, plan.growth, 3, padding=1, bias=False),
                    }
                )
                width += plan.growth
            parts[f"denseblock{number}"] = layers
            if number < len(plan.depths):
                parts[f"transition{number}"] = nn.ModuleDict(
                    {
                        "norm": nn.BatchNorm3d(width),
                        "conv": nn.Conv3d(width, width // 2, 1, bias=False),
                    }
                )
                width //= 2
        parts["norm5"] = nn.BatchNorm3d(width)
        self.features, self.count = nn.ModuleDict(parts), len(plan.depths)

    def forward(self, x):
        part = self.features
        x = nn.functional.max_pool3d(part["norm0"](part["conv0"](x)).relu(), 3, 2, 1)
        maps = [x]
        for number in range(1, self.count + 1):
            for layer in part[f"denseblock{number}"].values():
                y = layer["conv1"](layer["norm1"](x).relu())
                x = torch.cat([x, layer["conv2"](layer["norm2"](y).relu())], 1)
            maps.append(x)
            if number < self.count:
                halves = part[f"transition{number}"]
                x = nn.functional.avg_pool3d(halves["conv"](halves["norm"](x).relu()), 2)
        return [*maps[:-1], part["norm5"](x).relu()]


DENSE_PLAN = DenseNetPlan((2, 3, 1), 3, 4)
CASES = {
    "resnet": (
        functools.partial(ResNet, plan=(1, 2, 1), num_axes=3),
        RESNET,
        lambda: ReferenceResNet(4, (1, 2, 1), False),
    ),
    "bottleneck": (
        functools.partial(ResNet, plan=(1, 2), bottleneck=True, num_axes=3),
        RESNET,
        lambda: ReferenceResNet(4, (1, 2), True),
    ),
    "densenet": (
        functools.partial(DenseNet, plan=DENSE_PLAN, num_axes=3),
        DENSENET,
        lambda: ReferenceDenseNet(DENSE_PLAN),
    ),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_features_of_volumes_equal_those_of_pytorch(
    name, dtype, drawn, features_of, assert_equal_features
):
    build, rules, reference = CASES[name]
    model = drawn(reference())
    # Unlike sides, some of them odd, so that no axis can stand for another.
    volumes = np.random.default_rng(0).normal(size=(2, 17, 20, 28, 2))
    ours = features_of(
        build,
        rules,
        model.state_dict(),
        volumes,
        dtype,
        width=4,
        mfa_parts=(),
        padding="symmetric",
        batch_norm_epsilon=1e-5,
    )
    model = model.to(torch.from_numpy(volumes.astype(dtype)).dtype)
    with torch.no_grad():
        theirs = model(torch.from_numpy(volumes.astype(dtype)).movedim(-1, 1))
    assert_equal_features(ours, theirs, dtype)


def network(backbone, *, slice_attention=False, size=(6, 16, 16), others=None):
    volume = ModalityDescription(1, "volume", size, backbone, slice_attention=slice_attention)
    # Only ResNets are built in any width.
    width = 2 if others or "resnet" in backbone else NetworkOptions().width
    options = NetworkOptions(width=width, backbone="resnet10")
    return build_network(NetworkDescription({"ct": volume} | (others or {}), {"kind": 2}, options))


def test_a_volume_a_picture_and_a_table_meet_in_one_network():
    others = {"xray": ModalityDescription(1, size=(16, 20)), "lab": ModalityDescription(3, "table")}
    net = network("resnet10", others=others)
    params, statistics = net.init(jax.random.key(0))
    draw = np.random.default_rng(0)
    images = {
        "ct": draw.random((2, 6, 16, 16, 1), np.float32),
        "xray": draw.random((2, 16, 20, 1), np.float32),
        "lab": draw.random((2, 3), np.float32),
    }
    present = {name: jnp.ones(2, bool) for name in images} | {"ct": jnp.array([True, False])}

    @jax.jit
    def answer(images):
        return net.apply(params, statistics, images, train=False, present=present)[0][0]["kind"]

    logits = answer(images)
    changed = answer(images | {"ct": images["ct"] * 0.5})
    # The second record lacks the volume, so what fills its place changes nothing.
    assert not np.array_equal(logits[0], changed[0])
    np.testing.assert_array_equal(logits[1], changed[1])


@pytest.mark.parametrize("backbone", ["vit_tiny", "convnext_atto", "efficientnet_b0"])
def test_a_backbone_without_a_form_for_volumes_is_refused_with_the_cure(backbone):
    with pytest.raises(
        UserError,
        match=rf"data.modalities.ct.backbone is '{backbone}', which has no form for volumes.*"
        r"data.modalities.ct.slice_attention=true",
    ):
        network(backbone)


def test_pictures_have_no_slices_to_attend_to():
    with pytest.raises(ValueError, match="slice_attention is for volumes, and the kind is 'image'"):
        ModalityDescription(1, "image", slice_attention=True)


def test_a_volume_too_small_for_a_backbone_names_the_fields():
    net = network("densenet121", size=(28, 28, 28))
    with pytest.raises(UserError, match=r"raise height and width .and depth. in data"):
        jax.eval_shape(
            lambda p, s: net.apply(p, s, {"ct": jnp.ones((1, 28, 28, 28, 1))}, train=False),
            net.abstract_params,
            net.abstract_statistics,
        )
