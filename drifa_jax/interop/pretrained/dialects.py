"""How each library names the tensors of each family, and what its networks assume.

A dialect is a family in the words of one library. What a file declares chooses it, or a tensor
that no other dialect has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from drifa_jax.errors import UserError
from drifa_jax.interop import checkpoint_names as names
from drifa_jax.interop.checkpoint_names import Naming
from drifa_jax.interop.pretrained.checkpoint import LITE_PIXELS, Checkpoint
from drifa_jax.interop.tensors import Tensors
from drifa_jax.models.pixels import Normalisation

IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CENTRED = Normalisation((0.5,) * 3, (0.5,) * 3)
_TENSORFLOW = {"padding": "same", "batch_norm_epsilon": 1e-3}
_PYTORCH = {"padding": "symmetric", "batch_norm_epsilon": 1e-5}


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
      prefix: before every tensor of the backbone where a head is beside it.
      unread: tensors that features do not depend on, a regular expression.
      prepare: tensors under the names that `naming` gives.
      options: fields of the network's options that its weights were trained with.
      activations: that a declared `hidden_act` may name.
      normalisation: where the checkpoint does not say.
    """

    name: str
    backbones: str
    mark: str
    naming: Naming
    first: str
    model_types: tuple[str, ...] = ()
    prefix: str = ""
    unread: str = r"classifier\."
    prepare: Callable[[Tensors], Tensors] = dict
    options: Mapping[str, Any] = field(default_factory=dict)
    activations: tuple[str, ...] = ("gelu",)
    normalisation: Normalisation = IMAGENET

    def strip(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors of the backbone, without the prefix and what is not read."""
        bare = {name.removeprefix(self.prefix): tensor for name, tensor in tensors.items()}
        return {name: x for name, x in bare.items() if not re.match(self.unread, name)}


DIALECTS = (
    Dialect(
        "EfficientNet-Lite (PyTorch)",
        r"efficientnet_lite\d",
        "_blocks.0._depthwise_conv.weight",
        names.EFFICIENTNET_LITE,
        "entry/conv/kernel",
        unread=r"_fc\.",
        options=_TENSORFLOW,
        normalisation=LITE_PIXELS,
    ),
    Dialect(
        "EfficientNet (transformers)",
        r"efficientnet_b\d",
        "encoder.blocks.0.depthwise_conv.depthwise_conv.weight",
        names.EFFICIENTNET,
        "entry/conv/kernel",
        model_types=("efficientnet",),
        prefix="efficientnet.",
        options=_TENSORFLOW,
        activations=("swish", "silu"),
    ),
    Dialect(
        "ConvNeXt (transformers)",
        r"convnext(v2)?_\w+",
        "encoder.stages.0.layers.0.dwconv.weight",
        names.CONVNEXT,
        "stem/conv/kernel",
        model_types=("convnext",),
        prefix="convnext.",
        unread=r"(classifier|layernorm)\.",
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
