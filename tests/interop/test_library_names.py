"""Files of timm and torchvision, by the names and features of small networks of theirs.

golden/make_library_features.py wrote names, shapes and features with timm 1.0.31 and torchvision
0.28; the weights are drawn anew in every test.
"""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from drifa_jax.errors import UserError
from drifa_jax.interop.pretrained.branches import branch_tensors, stage_maps
from drifa_jax.interop.pretrained.checkpoint import Checkpoint
from drifa_jax.interop.tensors import unflatten
from drifa_jax.models.backbones.convnext import ConvNeXt, ConvNeXtPlan
from drifa_jax.models.backbones.densenet import DenseNet, DenseNetPlan
from drifa_jax.models.backbones.efficientnet import EfficientNet, EfficientNetPlan, Group
from drifa_jax.models.backbones.vit import ViT, ViTPlan
from drifa_jax.models.registry import BACKBONES
from drifa_jax.network_options import NetworkOptions

FOLDER = Path(__file__).parent / "golden"
CASES = json.loads((FOLDER / "library_features.json").read_text())
PYTORCH = {"padding": "symmetric", "batch_norm_epsilon": 1e-5}
MADE = EfficientNetPlan(8, (Group(3, 1, 1, 8, 1), Group(3, 2, 2, 16, 2)), 24)
SHAPE = (16, 4, 2, 4, 3)
TIMM = ConvNeXtPlan((1, 2, 1, 1), (6, 8, 10, 12))
NETWORKS = {
    "torchvision resnet": ("resnet10", BACKBONES["resnet10"]),
    "torchvision densenet": ("densenet9", partial(DenseNet, plan=DenseNetPlan((2, 3), 4, 8))),
    "torchvision efficientnet": ("efficientnet_b9", partial(EfficientNet, plan=MADE)),
    "torchvision convnext": ("convnext_a", partial(ConvNeXt, plan=ConvNeXtPlan((1, 2), (6, 10)))),
    "torchvision vit": ("vit_a", partial(ViT, plan=ViTPlan(*SHAPE))),
    "timm efficientnet": ("efficientnet_b9", partial(EfficientNet, plan=MADE)),
    "timm lite": (
        "efficientnet_lite9",
        partial(EfficientNet, plan=EfficientNetPlan(8, MADE.groups, 24, lite=True)),
    ),
    "timm convnext": ("convnext_a", partial(ConvNeXt, plan=TIMM)),
    "timm convnextv2": (
        "convnextv2_a",
        partial(ConvNeXt, plan=ConvNeXtPlan(TIMM.depths, TIMM.widths, 2)),
    ),
    "timm vit": ("vit_a", partial(ViT, plan=ViTPlan(*SHAPE))),
    "timm dinov2": (
        "dinov2_registers_a",
        partial(ViT, plan=ViTPlan(*SHAPE, layer_scale=1.0, num_registers=2, antialias=True)),
    ),
}


def maker():
    """The script that wrote the file, for what it draws."""
    spec = importlib.util.spec_from_file_location("maker", FOLDER / "make_library_features.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", CASES)
def test_features_of_a_state_dict_are_those_of_its_library(case, monkeypatch):
    golden, (backbone, make) = CASES[case], NETWORKS[case]
    monkeypatch.setitem(BACKBONES, backbone, make)
    draws, options = maker(), NetworkOptions(mfa_parts=(), **PYTORCH)
    tensors = draws.drawn(golden["shapes"])
    found, _ = branch_tensors(Checkpoint(case, tensors), backbone, 3, options, "mri")
    params, statistics = (
        unflatten({p: x for p, x in found.items() if p.endswith(("/mean", "/var")) == held})
        for held in (False, True)
    )
    run = jax.jit(stage_maps, static_argnums=(0, 1))
    maps = run(backbone, options, params, statistics, draws.picture(golden["side"]))
    last = maps[f"stage_{len(maps) - 2}"]
    expected = np.array(golden["features"])
    # Of float32 on both sides: rounding of 6e-8 grows to a hundred times itself.
    limit = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(last).mean((0, 1, 2)), expected, rtol=0, atol=limit)


def test_timm_says_by_its_name_with_which_padding_it_was_trained(monkeypatch):
    backbone, make = NETWORKS["timm efficientnet"]
    monkeypatch.setitem(BACKBONES, backbone, make)
    tensors = maker().drawn(CASES["timm efficientnet"]["shapes"])
    for name, field in (("tf_efficientnet_b0", "padding=same"), ("efficientnet_b0", "symmetric")):
        checkpoint = Checkpoint("folder", tensors, {"architecture": name})
        wrong = NetworkOptions(**({} if "symm" in field else PYTORCH))
        with pytest.raises(UserError, match=f"Set model.padding={field.split('=')[-1]}"):
            branch_tensors(checkpoint, backbone, 3, wrong, "mri")
