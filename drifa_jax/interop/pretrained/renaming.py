"""Tensors of a file under the names that a rule per layer can give.

Where libraries count blocks by group and we count them through, or keep query, key and value in one
matrix, the file's tensors are renamed or cut first. No value changes.
"""

from __future__ import annotations

import re

import numpy as np

from drifa_jax.interop.tensors import Tensors


def counted_through(tensors: Tensors, pattern: str, name: str = "blocks.{}.") -> Tensors:
    """Names whose start has two numbers, group and block, under one number from 0."""
    found = {n: match for n in tensors if (match := re.match(pattern, n))}
    places = sorted({tuple(map(int, match.groups())) for match in found.values()})
    number = {place: k for k, place in enumerate(places)}
    renamed = {}
    for old, tensor in tensors.items():
        if match := found.get(old):
            old = name.format(number[tuple(map(int, match.groups()))]) + old[match.end() :]
        renamed[old] = tensor
    return renamed


def _replaced(tensors: Tensors, *rules: tuple[str, str]) -> Tensors:
    """Each name after the first rule that matches it."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, template in rules:
            new, matches = re.subn(pattern, template, name)
            if matches:
                name = new
                break
        renamed[name] = tensor
    return renamed


def resnet(tensors: Tensors) -> Tensors:
    """Torchvision and timm: `layer2.0.conv1` is block 2 of ResNet-18."""
    return counted_through(tensors, r"layer(\d+)\.(\d+)\.")


def huggingface_resnet(tensors: Tensors) -> Tensors:
    """`transformers` counts convolutions from 0."""
    tensors = counted_through(tensors, r"encoder\.stages\.(\d+)\.layers\.(\d+)\.")
    last = r"\.(convolution|normalization)\."
    parts = {"convolution": ("conv", "0"), "normalization": ("bn", "1")}
    renamed = {}
    for name, tensor in tensors.items():
        if match := re.match(r"(blocks\.\d+)\.layer\.(\d+)" + last, name):
            block, number, part = match.groups()
            name = f"{block}.{parts[part][0]}{int(number) + 1}." + name[match.end() :]
        elif match := re.match(r"(blocks\.\d+)\.shortcut" + last, name):
            name = f"{match[1]}.downsample.{parts[match[2]][1]}." + name[match.end() :]
        elif match := re.match(r"embedder\.embedder" + last, name):
            name = f"{parts[match[1]][0]}1." + name[match.end() :]
        renamed[name] = tensor
    return renamed


def timm_efficientnet(tensors: Tensors) -> Tensors:
    """Parts of a block are called alike, whether it has an expansion or not."""
    tensors = counted_through(tensors, r"blocks\.(\d+)\.(\d+)\.")
    expands = {n.split(".conv_pwl.")[0] for n in tensors if ".conv_pwl." in n}
    with_expansion = {
        "conv_pw": "expand.conv",
        "bn1": "expand.norm",
        "conv_dw": "depthwise.conv",
        "bn2": "depthwise.norm",
        "conv_pwl": "project.conv",
        "bn3": "project.norm",
    }
    without = {
        "conv_dw": "depthwise.conv",
        "bn1": "depthwise.norm",
        "conv_pw": "project.conv",
        "bn2": "project.norm",
    }
    renamed = {}
    for name, tensor in tensors.items():
        if match := re.match(r"(blocks\.\d+)\.(\w+)\.", name):
            block, part = match.groups()
            parts = with_expansion if block in expands else without
            if part in parts:
                name = f"{block}.{parts[part]}.{name[match.end() :]}"
            elif part == "se":
                name = name.replace(".se.conv_", ".squeeze.")
        renamed[name] = tensor
    return renamed


def torchvision_efficientnet(tensors: Tensors) -> Tensors:
    """A block is a list there: (expansion,) depthwise, squeeze-and-excitation, projection."""
    top = max(int(m[1]) for n in tensors if (m := re.match(r"features\.(\d+)\.", n)))
    tensors = _replaced(
        tensors,
        (r"^features\.0\.0\.", "conv_stem."),
        (r"^features\.0\.1\.", "bn1."),
        (rf"^features\.{top}\.0\.", "conv_head."),
        (rf"^features\.{top}\.1\.", "bn2."),
    )
    tensors = counted_through(tensors, r"features\.(\d+)\.(\d+)\.block\.")
    expands = {n.split(".3.0.")[0] for n in tensors if re.match(r"blocks\.\d+\.3\.0\.", n)}
    layers = {"0": "conv", "1": "norm", "fc1": "reduce", "fc2": "expand"}
    renamed = {}
    for name, tensor in tensors.items():
        if match := re.match(r"(blocks\.\d+)\.(\d)\.(0|1|fc1|fc2)\.", name):
            block, part, layer = match.groups()
            parts = ("expand", "depthwise", "squeeze", "project")[block not in expands :]
            if int(part) < len(parts):
                name = f"{block}.{parts[int(part)]}.{layers[layer]}.{name[match.end() :]}"
        renamed[name] = tensor
    return renamed


def torchvision_convnext(tensors: Tensors) -> Tensors:
    """Features 1, 3, 5, 7 are resolutions there, and 2, 4, 6 what reduces between them."""
    renamed = {}
    for name, tensor in tensors.items():
        if (match := re.match(r"features\.(\d+)\.", name)) and match[1] != "0":
            number, is_resolution = divmod(int(match[1]), 2)
            kind = "resolutions" if is_resolution else "reductions"
            name = f"{kind}.{number}.{name[match.end() :]}"
        if name.endswith(".layer_scale"):
            tensor = tensor.reshape(-1)
        renamed[name] = tensor
    return renamed


def densenet(tensors: Tensors) -> Tensors:
    """Torchvision's older files write `norm.1` for `norm1`."""
    return _replaced(tensors, (r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2."))


def timm_transformer(tensors: Tensors) -> Tensors:
    """Query, key and value apart; positions with a place for the class token, which adds none."""
    tensors = _replaced(
        _cut(tensors, r"(blocks\.\d+\.attn\.)qkv\.", r"\1"),
        (r"^register_tokens$", "reg_token"),
    )
    positions = tensors.get("pos_embed")
    if "reg_token" in tensors and positions is not None:
        num_patches = positions.shape[-2]
        if round(num_patches**0.5) ** 2 == num_patches:
            tensors["pos_embed"] = np.pad(positions, ((0, 0), (1, 0), (0, 0)))
    return tensors


def torchvision_transformer(tensors: Tensors) -> Tensors:
    """Query, key and value apart; older files call the two dense layers by name."""
    tensors = _replaced(
        tensors,
        (r"\.mlp\.linear_1\.", ".mlp.0."),
        (r"\.mlp\.linear_2\.", ".mlp.3."),
        (r"\.self_attention\.in_proj_", ".self_attention.in_proj."),
    )
    return _cut(tensors, r"(encoder\..*\.self_attention\.)in_proj\.", r"\1")


def _cut(tensors: Tensors, pattern: str, template: str) -> Tensors:
    """Matrices and biases of three parts, one below the other, as three tensors."""
    renamed = {}
    for name, tensor in tensors.items():
        if not (match := re.match(pattern, name)) or tensor.shape[0] % 3:
            renamed[name] = tensor
            continue
        start, leaf = match.expand(template), name[match.end() :]
        for part, rows in zip(("query", "key", "value"), np.split(tensor, 3), strict=True):
            renamed[f"{start}{part}.{leaf}"] = rows
    return renamed
