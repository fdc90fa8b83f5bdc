"""Features of a checkpoint in the PyTorch network that its own library builds of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from drifa_jax.errors import UserError
from drifa_jax.extras import optional
from drifa_jax.interop.pretrained.branches import normalisation_for, stated_normalisation
from drifa_jax.interop.pretrained.checkpoint import Checkpoint, open_checkpoint
from drifa_jax.interop.pretrained.dialects import dialect_of
from drifa_jax.interop.pretrained.networks import Sources
from drifa_jax.models.backbones.resnet import RESNET_PLANS
from drifa_jax.models.backbones.vit import NUM_STAGES
from drifa_jax.models.description import NetworkDescription
from drifa_jax.models.pixels import Normalisation

LITE = "EfficientNet-Lite (PyTorch)"


def reference_features(
    network: NetworkDescription, sources: Sources, images: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """`<modality>/stem` and `<modality>/stage_<k>` `[b, h, w, c]`, wherever the library shows them.

    Args:
      network: with the mean and deviation that it normalises by.
      sources: its pretrained modalities.
      images: modality -> `[b, h, w, channels]` float32 in 0..1.

    Raises:
      UserError: for checkpoints whose library is not asked here, or is not installed.
    """
    seen = {}
    for name, (where, field) in sources.items():
        modality, backbone = network.modalities[name], network.backbone_of(name)
        checkpoint = open_checkpoint(where, backbone, field)
        stated = normalisation_for(stated_normalisation(checkpoint), 3)
        pixels = np.asarray(modality.normalisation(images[name]))
        maps = _maps(checkpoint, where, backbone, _colours(pixels, stated))
        seen |= {f"{name}/{place}": array for place, array in maps.items()}
    return seen


def _colours(pixels: np.ndarray, stated: Normalisation) -> np.ndarray:
    """Three channels that the colour kernel answers as the adapted one answers the pixels."""
    num_channels = pixels.shape[-1]
    if num_channels == 3:
        return pixels
    if num_channels == 1:
        (std,) = normalisation_for(stated, 1).std
        return pixels * np.array([std / own for own in stated.std], np.float32)
    turns = [pixels[..., colour::3].sum(-1) for colour in range(3)]
    return np.stack(turns, -1) * np.float32(3 / num_channels)


def _maps(
    checkpoint: Checkpoint, where: str, backbone: str, colours: np.ndarray
) -> dict[str, np.ndarray]:
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(colours, -1, 1), np.float32))
    dialect, model_type = dialect_of(checkpoint), checkpoint.declared.get("model_type")
    with torch.no_grad():
        if dialect.name == LITE:
            maps = _lite(checkpoint, backbone, pixels)
        elif model_type in dialect.model_types and Path(where).is_dir():
            maps = _transformers(where, model_type, backbone, pixels)
        else:
            raise UserError(
                f"{checkpoint.source}: {dialect.name} has no reference network here. Parity is "
                "measured for folders of Hugging Face's transformers and for EfficientNet-Lite; "
                "`drifa convert` reads the others as strictly."
            )
    return {place: np.moveaxis(array.numpy(), 1, -1) for place, array in maps.items()}


def _lite(checkpoint: Checkpoint, backbone: str, pixels):
    """The package's own network with the checkpoint's weights."""
    import torch

    library = optional("efficientnet_lite_pytorch", "Parity of EfficientNet-Lite", "test")
    # It pads as images of one size need, which it is told when it is built.
    name, size = backbone.replace("_", "-"), list(pixels.shape[2:])
    model = library.EfficientNet.from_name(name, image_size=size).eval()
    state = {name: torch.from_numpy(x) for name, x in checkpoint.tensors.items()}
    unknown = model.load_state_dict(state, strict=False).unexpected_keys
    assert not unknown, unknown
    blocks = [block._depthwise_conv.stride for block in model._blocks]
    ends = [k for k, stride in enumerate(blocks) if k and max(_pair(stride)) > 1]
    maps = _hooked(model, [model._blocks[k - 1] for k in ends], lambda: model(pixels))
    stem = model._swish(model._bn0(model._conv_stem(pixels)))
    return {"stem": stem, **_named(maps), f"stage_{len(maps)}": model.extract_features(pixels)}


def _transformers(folder: str, model_type: str, backbone: str, pixels):
    """The model of a folder, at the stem and after every stage."""
    transformers = optional("transformers", "Parity of a Hugging Face folder", "test")
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval().float()
    if model_type == "efficientnet":
        blocks = list(model.encoder.blocks)
        ends = [k for k, b in enumerate(blocks) if k and max(_pair(b.depthwise_conv.stride)) > 1]
        layers = [model.embeddings, *(blocks[k - 1] for k in ends), model.encoder.top_activation]
        stem, *maps = _hooked(model, layers, lambda: model(pixels))
        return {"stem": stem, **_named(maps)}
    if model_type == "swin":
        *maps, last = model.encoder(
            *model.embeddings(pixels),
            output_hidden_states=True,
            output_hidden_states_before_downsampling=True,
        ).reshaped_hidden_states
        stem, *maps = *maps, model.layernorm(last.movedim(1, -1)).movedim(-1, 1)
        return {"stem": stem, **_named(maps)}
    interpolates = {"interpolate_pos_encoding": True} if model_type in ("vit", "deit") else {}
    out = model(pixels, output_hidden_states=True, **interpolates)
    if out.hidden_states[0].ndim == 4:
        stem, *maps = out.hidden_states
        if backbone in RESNET_PLANS:
            # Every block is a stage here, and every resolution there.
            after = np.cumsum(RESNET_PLANS[backbone]) - 1
            return {f"stage_{k}": x for k, x in zip(after, maps, strict=True)}
        return {"stem": stem, **_named(maps)}
    depth, patch = model.config.num_hidden_layers, model.config.patch_size
    grid = [side // patch for side in pixels.shape[2:]]
    tokens = [out.hidden_states[depth * k // NUM_STAGES] for k in range(NUM_STAGES)]
    tokens.append(out.last_hidden_state)
    placed = [x[:, -grid[0] * grid[1] :].unflatten(1, grid).movedim(-1, 1) for x in tokens]
    return {"stem": placed[0], **_named(placed[1:])}


def _hooked(model, layers: Sequence, call) -> list:
    """What some layers return while `call` runs the model."""
    seen = []
    hooks = [layer.register_forward_hook(lambda _, __, out: seen.append(out)) for layer in layers]
    call()
    for hook in hooks:
        hook.remove()
    return seen


def _named(maps: Sequence) -> dict:
    return {f"stage_{k}": x for k, x in enumerate(maps)}


def _pair(stride) -> tuple[int, ...]:
    return tuple(stride) if isinstance(stride, list | tuple) else (stride,)
