"""Writes library_features.json: small networks of timm and torchvision, their names and features.

    python tests/interop/golden/make_library_features.py

Weights are drawn in the order of sorted names by `drawn`, so that the file holds shapes and the
pooled last features alone, of `picture`. Needs timm and torchvision, which the tests do not.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("library_features.json")


def drawn(shapes):
    """Name -> float32 array of every tensor; norms stay near the identity."""
    rng, tensors = np.random.default_rng(0), {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        spread = 0.2 if len(shape) < 2 else math.sqrt(3 / math.prod(shape[1:]))
        is_scale = len(shape) == 1 and name.endswith(("weight", "running_var"))
        tensors[name] = (is_scale + rng.uniform(-spread, spread, shape)).astype(np.float32)
    return tensors


def picture(side):
    """`[1, side, side, 3]` float32."""
    return np.random.default_rng(1).normal(size=(1, side, side, 3)).astype(np.float32)


def networks():
    """Name of the case -> network, side of its picture, and what its last features are."""
    import timm.models as timm
    import torch
    from timm.models._efficientnet_builder import decode_arch_def
    from torchvision import models
    from torchvision.models.convnext import CNBlockConfig
    from torchvision.models.efficientnet import MBConvConfig
    from torchvision.models.resnet import BasicBlock

    def features(model, x):
        return model.features(x)

    def forward_features(model, x):
        return model.forward_features(x)

    def resnet(model, x):
        return torch.nn.Sequential(*list(model.children())[:-2])(x)

    def tokens(model, x):
        placed = model.forward_features(x)[:, model.num_prefix_tokens :]
        return placed.movedim(1, 2)[..., None]

    def vit(model, x):
        x = model._process_input(x)
        x = model.encoder(torch.cat([model.class_token, x], 1))
        return x[:, 1:].movedim(1, 2)[..., None]

    vit_shape = dict(img_size=12, patch_size=4, embed_dim=16, depth=4, num_heads=2, num_classes=2)
    groups = [["ds_r1_k3_s1_c8_se0.25"], ["ir_r2_k3_s2_e2_c16_se0.25"]]
    lite = [[b.removesuffix("_se0.25") for b in group] for group in groups]
    from functools import partial

    norm = partial(torch.nn.BatchNorm2d, eps=1e-5)
    timm_efficientnet = dict(stem_size=8, num_features=24, num_classes=2, norm_layer=norm)
    convnext = dict(depths=(1, 2, 1, 1), dims=(6, 8, 10, 12), num_classes=2)
    return {
        "torchvision resnet": (models.ResNet(BasicBlock, [1, 1, 1, 1]), 32, resnet),
        "torchvision densenet": (
            models.DenseNet(4, (2, 3), num_init_features=8),
            32,
            lambda m, x: torch.relu(m.features(x)),
        ),
        "torchvision efficientnet": (
            models.EfficientNet(
                [
                    MBConvConfig(1, 3, 1, 8, 8, 1, 1.0, 1.0),
                    MBConvConfig(2, 3, 2, 8, 16, 2, 1.0, 1.0),
                ],
                dropout=0.0,
                last_channel=24,
            ),
            32,
            features,
        ),
        "torchvision convnext": (
            models.ConvNeXt([CNBlockConfig(6, 10, 1), CNBlockConfig(10, None, 2)]),
            32,
            features,
        ),
        "torchvision vit": (models.VisionTransformer(12, 4, 4, 2, 16, 64), 12, vit),
        "timm efficientnet": (
            timm.EfficientNet(
                decode_arch_def(groups), act_layer=torch.nn.SiLU, **timm_efficientnet
            ),
            32,
            forward_features,
        ),
        "timm lite": (
            timm.EfficientNet(decode_arch_def(lite), act_layer=torch.nn.ReLU6, **timm_efficientnet),
            32,
            forward_features,
        ),
        "timm convnext": (timm.ConvNeXt(**convnext), 32, forward_features),
        "timm convnextv2": (
            timm.ConvNeXt(use_grn=True, ls_init_value=None, **convnext),
            32,
            forward_features,
        ),
        "timm vit": (timm.VisionTransformer(**vit_shape), 12, tokens),
        "timm dinov2": (
            timm.VisionTransformer(init_values=1.0, reg_tokens=2, no_embed_class=True, **vit_shape),
            12,
            tokens,
        ),
    }


def main():
    """Writes the file."""
    import torch

    cases = {}
    for name, (model, side, last) in networks().items():
        state = model.state_dict()
        shapes = {n: list(x.shape) for n, x in state.items() if x.is_floating_point()}
        weights = {n: torch.from_numpy(x) for n, x in drawn(shapes).items()}
        model.load_state_dict(weights, strict=False)
        with torch.no_grad():
            out = last(model.eval(), torch.from_numpy(picture(side)).movedim(-1, 1))
        pooled = out.mean((0, 2, 3)).double().tolist()
        cases[name] = {"shapes": shapes, "side": side, "features": [round(x, 7) for x in pooled]}
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in cases.items())
    FILE.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
