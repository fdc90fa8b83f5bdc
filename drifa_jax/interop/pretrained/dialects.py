"""How each library names the tensors of each family, and what its networks assume.

A dialect is a family in the words of one library. What a file declares chooses it, or a tensor
that no other dialect has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from drifa_jax.errors import UserError
from drifa_jax.interop import checkpoint_names as names
from drifa_jax.interop.checkpoint_names import Naming
from drifa_jax.interop.pretrained import renaming
from drifa_jax.interop.pretrained.checkpoint import LITE_PIXELS, Checkpoint
from drifa_jax.interop.tensors import Tensors
from drifa_jax.models.pixels import Normalisation

IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CENTRED = Normalisation((0.5,) * 3, (0.5,) * 3)

Declared = Mapping[str, Any]


def _nothing(declared: Declared) -> dict[str, Any]:
    return {}


def _pytorch(declared: Declared) -> dict[str, Any]:
    return {"padding": "symmetric", "batch_norm_epsilon": 1e-5}


def _tensorflow(declared: Declared) -> dict[str, Any]:
    return {"padding": "same", "batch_norm_epsilon": declared.get("batch_norm_eps", 1e-3)}


def _timm_efficientnet(declared: Declared) -> dict[str, Any]:
    """Timm has the weights of TensorFlow, called tf_..., and its own; a file alone is silent."""
    architecture = declared.get("architecture")
    if architecture is None:
        return {}
    return (_tensorflow if architecture.startswith("tf_") else _pytorch)({})


@dataclass(frozen=True)
class Dialect:
    """A family of networks in the words of one library.

    Attributes:
      name: for messages.
      backbones: our names of the family, a regular expression.
      mark: a tensor that every file of it has, without `prefix`.
      naming: our paths in its words.
      first: our path of the first convolution.
      model_types: what a `config.json` of `transformers` may declare.
      prefix: before every tensor of the backbone where a head is beside it, a regular expression.
      unread: tensors that features do not depend on, a regular expression.
      prepare: tensors under the names that `naming` gives.
      drawn: of our paths, those that no file has (attention); they stay drawn.
      zero: of our paths, biases that its layers do not have.
      options: from the `config.json`, fields of the network's options that it was trained with.
      activations: that a declared `hidden_act` may name.
      normalisation: where the checkpoint does not say.
    """

    name: str
    backbones: str
    mark: str
    naming: Naming
    first: str
    model_types: tuple[str, ...] = ()
    prefix: str = "(?!)"
    unread: str = r"classifier\."
    prepare: Callable[[Tensors], Tensors] = dict
    drawn: str = r"(?!)"
    zero: str = r"(?!)"
    options: Callable[[Declared], dict[str, Any]] = _nothing
    activations: tuple[str, ...] = ("gelu",)
    normalisation: Normalisation = IMAGENET

    def strip(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors of the backbone, without the prefix and what is not read."""
        bare = {re.sub(f"^{self.prefix}", "", name): x for name, x in tensors.items()}
        return {name: x for name, x in bare.items() if not re.match(self.unread, name)}


_RESNET = {
    "backbones": r"resnet\d+",
    "naming": names.RESNET,
    "first": "stem/conv/kernel",
    "drawn": r"(.*/)?mfa\d?/.*",
    "zero": r".*(conv\d?|projection)/bias",
    "options": _pytorch,
    "activations": ("relu",),
}
_EFFICIENTNET = {"first": "entry/conv/kernel", "activations": ("swish", "silu")}
_CONVNEXT = {"backbones": r"convnext(v2)?_\w+", "first": "stem/conv/kernel"}
_TRANSFORMER = {"first": "patches/kernel"}

DIALECTS = (
    Dialect(
        "ResNet (transformers)",
        mark="embedder.embedder.convolution.weight",
        model_types=("resnet",),
        prefix=r"resnet\.",
        prepare=renaming.huggingface_resnet,
        **_RESNET,
    ),
    Dialect(
        "ResNet (torchvision, timm)",
        mark="layer1.0.conv1.weight",
        unread=r"fc\.",
        prepare=renaming.resnet,
        **_RESNET,
    ),
    Dialect(
        "EfficientNet-Lite (PyTorch)",
        r"efficientnet_lite\d",
        "_blocks.0._depthwise_conv.weight",
        names.EFFICIENTNET_LITE,
        unread=r"_fc\.",
        options=_tensorflow,
        normalisation=LITE_PIXELS,
        **_EFFICIENTNET,
    ),
    Dialect(
        "EfficientNet (transformers)",
        r"efficientnet_b\d",
        "encoder.blocks.0.depthwise_conv.depthwise_conv.weight",
        names.EFFICIENTNET,
        model_types=("efficientnet",),
        prefix=r"efficientnet\.",
        options=_tensorflow,
        **_EFFICIENTNET,
    ),
    Dialect(
        "EfficientNet (timm)",
        r"efficientnet_(b|lite)\d",
        "blocks.0.0.conv_dw.weight",
        names.EFFICIENTNET_PARTS,
        prepare=renaming.timm_efficientnet,
        options=_timm_efficientnet,
        **_EFFICIENTNET,
    ),
    Dialect(
        "EfficientNet (torchvision)",
        r"efficientnet_b\d",
        "features.1.0.block.0.0.weight",
        names.EFFICIENTNET_PARTS,
        prepare=renaming.torchvision_efficientnet,
        options=_pytorch,
        **_EFFICIENTNET,
    ),
    Dialect(
        "ConvNeXt (transformers)",
        mark="encoder.stages.0.layers.0.dwconv.weight",
        naming=names.CONVNEXT,
        model_types=("convnext", "convnextv2"),
        prefix=r"convnext(v2)?\.",
        unread=r"(classifier|layernorm)\.",
        **_CONVNEXT,
    ),
    Dialect(
        "ConvNeXt (timm)",
        mark="stages.0.blocks.0.conv_dw.weight",
        naming=names.CONVNEXT_TIMM,
        unread=r"(head|norm_pre)\.",
        **_CONVNEXT,
    ),
    Dialect(
        "ConvNeXt (torchvision)",
        mark="features.1.0.block.5.weight",
        naming=names.CONVNEXT_TORCHVISION,
        prepare=renaming.torchvision_convnext,
        **_CONVNEXT,
    ),
    Dialect(
        "DenseNet (torchvision, timm)",
        r"densenet\d+",
        "features.conv0.weight",
        names.DENSENET,
        "conv/kernel",
        prepare=renaming.densenet,
        options=_pytorch,
        activations=("relu",),
    ),
    Dialect(
        "Swin (transformers)",
        r"swin_\w+",
        "encoder.layers.0.blocks.0.attention.self.query.weight",
        names.SWIN,
        model_types=("swin",),
        prefix=r"swin\.",
        unread=r"(classifier|pooler)\.|.*\.relative_position_index",
        **_TRANSFORMER,
    ),
    Dialect(
        "ViT or DeiT (transformers)",
        r"(vit|deit)_\w+",
        "encoder.layer.0.layernorm_before.weight",
        names.VIT,
        model_types=("vit", "deit"),
        prefix=r"(vit|deit)\.",
        unread=r"((cls_|distillation_)?classifier|pooler|embeddings\.mask_token)(\.|$)",
        normalisation=CENTRED,
        **_TRANSFORMER,
    ),
    Dialect(
        "DINOv2 (transformers)",
        r"dinov2_\w+",
        "encoder.layer.0.layer_scale1.lambda1",
        names.DINOV2,
        model_types=("dinov2", "dinov2_with_registers"),
        prefix=r"dinov2(_with_registers)?\.",
        unread=r"(classifier|embeddings\.mask_token)(\.|$)",
        **_TRANSFORMER,
    ),
    Dialect(
        "DINOv3 (transformers)",
        r"dinov3_\w+",
        "layer.0.attention.q_proj.weight",
        names.DINOV3,
        model_types=("dinov3_vit",),
        unread=r"(classifier|embeddings\.mask_token)(\.|$)",
        **_TRANSFORMER,
    ),
    Dialect(
        "ViT, DeiT or DINOv2 (timm, torch.hub)",
        r"(vit|deit|dinov2)_\w+",
        "blocks.0.attn.qkv.weight",
        names.VIT_TIMM,
        unread=r"(head|head_dist|fc_norm|mask_token)(\.|$)",
        prepare=renaming.timm_transformer,
        **_TRANSFORMER,
    ),
    Dialect(
        "ViT (torchvision)",
        r"vit_\w+",
        "encoder.layers.encoder_layer_0.ln_1.weight",
        names.VIT_TORCHVISION,
        unread=r"heads\.",
        prepare=renaming.torchvision_transformer,
        **_TRANSFORMER,
    ),
)
"""Every dialect that is read."""


def dialect_of(checkpoint: Checkpoint) -> Dialect:
    """The dialect that a checkpoint declares, or that its tensors show.

    Raises:
      UserError: for a declared family that is no backbone here, or tensors of no dialect.
    """
    model_type = checkpoint.declared.get("model_type")
    known = sorted({name for dialect in DIALECTS for name in dialect.model_types})
    for dialect in DIALECTS:
        if model_type in dialect.model_types:
            declared = checkpoint.declared.get("hidden_act", dialect.activations[0])
            if declared not in dialect.activations:
                raise UserError(
                    f"{checkpoint.source}: config.json says hidden_act {declared!r}; the backbones "
                    f"{dialect.name} have {' or '.join(dialect.activations)}."
                )
            return dialect
    if model_type is not None and "architecture" not in checkpoint.declared:
        raise UserError(
            f"{checkpoint.source}: config.json says model_type {model_type!r}, which is no network "
            f"of images that is read here. Read are {', '.join(known)}, and timm's and "
            "torchvision's state dicts of the same families."
        )
    for dialect in DIALECTS:
        if dialect.mark in dialect.strip(checkpoint.tensors):
            return dialect
    raise UserError(
        f"{checkpoint.source}: its tensors are those of no backbone that is read here; they begin "
        f"with {', '.join(sorted(checkpoint.tensors)[:3])}. Read are "
        f"{', '.join(dialect.name for dialect in DIALECTS)}."
    )
