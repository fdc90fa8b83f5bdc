"""`drifa parity`: one set of weights in JAX and in PyTorch, compared layer by layer."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np

from drifa_jax.errors import UserError
from drifa_jax.interop.network_files import refuse_existing, write_directory
from drifa_jax.interop.parity import (
    Agreement,
    branch_values,
    compare,
    draw_agreement,
    first_divergence,
    jax_values,
    torch_values,
)
from drifa_jax.interop.weight_sources import add_weight_arguments, read_weights
from drifa_jax.models.description import NetworkDescription

TAKES_OVERRIDES = True
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
DEFAULT_TOLERANCE = 3e-5
"""Float32 rounding through the paper's full-width network stays below it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add_weight_arguments(parser)
    parser.add_argument("--output", help="directory for parity.json and parity.png; must not exist")
    parser.add_argument(
        "--images",
        help="folder with images, or with one folder of images per modality (default: random)",
    )
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--batch", type=int, default=2, help="number of images per modality")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=DEFAULT_TOLERANCE,
        help="largest |difference| / largest |value| that JAX and PyTorch may be apart "
        f"(default {DEFAULT_TOLERANCE:g})",
    )


def run(options: argparse.Namespace) -> int:
    """Prints the table; exit code 1 when any array is past the tolerance."""
    if options.size < 16 or options.batch < 1 or not options.tolerance > 0:
        raise UserError("--size must be at least 16, --batch at least 1, --tolerance above 0.")
    if options.output:
        refuse_existing(options.output)
    network, params, statistics, _ = read_weights(options)
    images = read_images(network, options)
    if options.source_format == "pretrained":
        reference = _library_features(network, options.input, images)
        ours = branch_values
    else:
        reference = torch_values(network, params, statistics, images)
        ours = jax_values

    def values(precision: str) -> dict[str, np.ndarray]:
        found = ours(network, params, statistics, images, precision=precision)
        return {name: found[name] for name in reference}

    highest = values("highest")
    against_torch = compare(highest, reference)
    # What rounding of products does on this device, and what bfloat16 does.
    series = {"JAX float32 against PyTorch": against_torch} | {
        f"JAX {name} against highest precision": compare(values(name), highest)
        for name in ("default", "bfloat16")
    }
    divergence = first_divergence(against_torch, options.tolerance)
    print(table(series, divergence))
    if options.output:
        report = {
            "passed": divergence is None,
            "first_divergence": divergence and divergence.name,
            "tolerance": options.tolerance,
            "device": jax.devices()[0].device_kind,
            "images": options.images or f"random, seed {options.seed}",
            "comparisons": {label: [asdict(row) for row in rows] for label, rows in series.items()},
        }
        write_directory(options.output, lambda folder: _write(folder, report, series))
        print(f"parity.json and parity.png written to {options.output}")
    return 0 if divergence is None else 1


def _library_features(
    network: NetworkDescription, where: str, images: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Of the checkpoint's own library, for every branch of images."""
    from drifa_jax.interop.pretrained.references import reference_features

    pretrained = {m: (where, "--input") for m, x in network.modalities.items() if x.kind == "image"}
    return reference_features(network, pretrained, images)


def table(series: Mapping[str, Sequence[Agreement]], divergence: Agreement | None) -> str:
    """One line per named array, the first past the tolerance marked, then the verdict."""
    against_torch, default, bfloat16 = series.values()
    width = max(len(row.name) for row in against_torch)
    lines = [
        f"{'JAX against PyTorch':{width}}   max abs   max rel  1 - cosine | "
        "max rel: default  bfloat16"
    ]
    for row, of_default, of_bfloat16 in zip(against_torch, default, bfloat16, strict=True):
        lines.append(
            f"{row.name:{width}}  {row.max_abs:8.1e}  {row.max_rel:8.1e}  {1 - row.cosine:10.1e} | "
            f"         {of_default.max_rel:8.1e}  {of_bfloat16.max_rel:8.1e}"
            + ("   <- first past the tolerance" if row is divergence else "")
        )
    worst = max(against_torch, key=lambda row: row.max_rel)
    lines.append(f"worst: {worst.name}, {worst.max_rel:.1e} of its largest value")
    device = jax.devices()[0].device_kind
    if all(row.max_rel == 0 for row in default):
        lines.append(f"default precision is highest precision on this device ({device})")
    lines.append("PARITY" if divergence is None else f"NO PARITY from {divergence.name} on")
    return "\n".join(lines)


def read_images(network: NetworkDescription, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Modality -> `[b, size, size, c]` float32 in [0, 1], random or from a folder."""
    if not options.images:
        generator = np.random.default_rng(options.seed)
        shape = (options.batch, options.size, options.size)
        return {
            m: generator.random((*shape, channels), np.float32)
            for m, channels in network.channels.items()
        }
    root = Path(options.images)
    images = {}
    for modality, channels in network.channels.items():
        folder = root / modality if (root / modality).is_dir() else root
        if not folder.is_dir():
            raise UserError(f"--images: there is no folder {str(folder)!r}.")
        files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
        if len(files) < options.batch:
            raise UserError(
                f"--images: {folder} holds {len(files)} images but --batch is {options.batch}."
            )
        images[modality] = np.stack(
            [_read_image(f, options.size, channels) for f in files[: options.batch]]
        )
    return images


def _read_image(file: Path, size: int, channels: int) -> np.ndarray:
    from PIL import Image

    if channels not in (1, 3):
        raise UserError(f"--images: {file} cannot fill {channels} channels; use random images.")
    try:
        with Image.open(file) as image:
            pixels = image.convert("L" if channels == 1 else "RGB").resize((size, size))
    except OSError as error:
        raise UserError(f"--images: {file} cannot be read as an image ({error}).") from error
    return np.asarray(pixels, np.float32).reshape(size, size, channels) / 255


def _write(folder: Path, report: Mapping, series: Mapping[str, Sequence[Agreement]]) -> None:
    (folder / "parity.json").write_text(json.dumps(report, indent=1) + "\n")
    draw_agreement(folder / "parity.png", series, report["tolerance"])
