"""Features of frozen branches, computed once: what every method of a benchmark then reads.

features/<modality>-<condition>.npz    values [n, c] float32, who has it, and a key of their makers
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter

from drifa_jax.config import Config
from drifa_jax.data.record import ModalitySpec, stack_records
from drifa_jax.data.records import Records
from drifa_jax.digests import digest
from drifa_jax.models.building import build_network
from drifa_jax.models.description import describe_network
from drifa_jax.models.pixels import scale_pixels
from drifa_jax.models.pooling import average_pool
from drifa_jax.train.pretrained import pretrained_tensors, replaced, with_checkpoint_pixels
from drifa_jax.whole_files import written_whole

BATCH = 32
CLEAN = "clean"
NOISE_DEVIATION = 0.2
"""Of the noise that is added to pixels in 0..1."""

BLUR_SHARE = 1 / 40
"""Standard deviation of the blur, as a share of the longer side."""


@dataclass(frozen=True)
class Features:
    """Pooled features of one modality, of all records of a set.

    Attributes:
      values: `[n, c]` float32, zero where absent.
      held: `[n]` bool.
    """

    values: np.ndarray
    held: np.ndarray


def noisy(image: np.ndarray, record_id: str) -> np.ndarray:
    """The image with Gaussian noise of `NOISE_DEVIATION`, the same for a record every time."""
    seed = int.from_bytes(hashlib.blake2b(record_id.encode(), digest_size=8).digest())
    noise = np.random.default_rng(seed).normal(0, 255 * NOISE_DEVIATION, image.shape)
    return np.clip(image + noise, 0, 255).round().astype(np.uint8)


def blurred(image: np.ndarray, record_id: str) -> np.ndarray:
    """The image out of focus."""
    deviation = BLUR_SHARE * max(image.shape[:2])
    return gaussian_filter(image, (deviation, deviation, 0))


CORRUPTIONS: Mapping[str, Callable[[np.ndarray, str], np.ndarray]] = {
    "noise": noisy,
    "blur": blurred,
}
"""Name -> what it does to an image `[h, w, c]` uint8 of a record."""


def frozen_features(
    config: Config, records: Records, folder: Path, say: Callable[[str], None]
) -> dict[str, dict[str, Features]]:
    """Modality -> `CLEAN` or corruption -> features of its images; read from `folder` where there.

    Args:
      config: names backbones and pretrained weights.
      records: of a whole set.
      folder: of the cache.
      say: prints a line of progress.

    Raises:
      UserError: when the weights cannot be read.
    """
    config, _ = with_checkpoint_pixels(config, None)
    found: dict[str, dict[str, Features]] = {}
    for spec in records.modalities:
        if not isinstance(spec, ModalitySpec):
            continue
        alone = records.only((spec.name,))
        run = None
        found[spec.name] = {}
        for condition in (CLEAN, *CORRUPTIONS):
            path = folder / f"{spec.name}-{condition}.npz"
            key = _key(config, spec, alone, condition)
            kept = _kept(path, key)
            if kept is None:
                run = run or _branch(config, spec)
                started = time.monotonic()
                kept = _computed(run, spec, alone, condition)
                speed = len(alone) / (time.monotonic() - started)
                say(f"{spec.name}, {condition}: {len(alone)} records, {speed:.0f} a second")
                _keep(path, key, kept)
            found[spec.name][condition] = kept
    return found


def _branch(config: Config, spec: ModalitySpec) -> Callable[[np.ndarray], np.ndarray]:
    """Pixels `[b, h, w, c]` to pooled features of the pretrained branch, `[b, f]` float32."""
    apart = dataclasses.replace(
        config.model, fusion="drifa", mfa_parts=(), stage_mfa_parts=(), mifa_parts=(),
        readout="concatenate",
    )  # fmt: skip
    own = dataclasses.replace(
        config,
        model=apart,
        data=dataclasses.replace(
            config.data, modalities={spec.name: config.data.modalities[spec.name]}
        ),
    )
    description = describe_network(own, (spec,), {"task": 2})
    network = build_network(description)
    drawn = network.init(jax.random.key(0))
    tensors = pretrained_tensors(own, description)
    params, statistics = (replaced(tree, tensors) for tree in drawn)

    @jax.jit
    def run(pixels: jax.Array) -> jax.Array:
        images = scale_pixels({spec.name: pixels})
        maps, _ = network.apply(params, statistics, images, train=False, method="features")
        return average_pool(maps[-1][spec.name]).astype(jnp.float32)

    return run


def _computed(
    run: Callable[[Any], Any], spec: ModalitySpec, records: Records, condition: str
) -> Features:
    parts, presence, running = [], [], None
    for start in range(0, len(records), BATCH):
        rows = range(start, min(start + BATCH, len(records)))
        pixels, present = stack_records([records[row] for row in rows], (spec,))
        batch = pixels[spec.name]
        if condition != CLEAN:
            damage = CORRUPTIONS[condition]
            batch = np.stack(
                [damage(x, records.record_id(r)) for x, r in zip(batch, rows, strict=True)]
            )
        filled = np.pad(batch, ((0, BATCH - len(batch)), *((0, 0),) * 3))
        following = run(filled)
        if running is not None:
            parts.append(np.asarray(running))
        running = following
        presence.append(present[spec.name])
    parts.append(np.asarray(running))
    held = np.concatenate(presence)
    values = np.concatenate(parts)[: len(records)]
    return Features(np.where(held[:, None], values, np.float32(0)), held)


def _key(config: Config, spec: ModalitySpec, records: Records, condition: str) -> str:
    """Of everything that features depend on."""
    modality = config.data.modalities[spec.name]
    return digest(
        {
            "pixels": [*spec.shape, modality.fit, *modality.mean, *modality.std],
            "backbone": modality.backbone or config.model.backbone,
            "pretrained": modality.pretrained or config.train.pretrained,
            "ids": records.ids,
            "files": [_stamp(place) for place in records.column(f"at:{spec.name}")],
            "condition": condition,
            "amount": {"noise": NOISE_DEVIATION, "blur": BLUR_SHARE}.get(condition, 0),
        }
    )


def _stamp(place: Any) -> list[int] | None:
    """Size and time of a file, which tell that it was changed."""
    if not isinstance(place, str) or not Path(place).is_file():
        return None
    status = Path(place).stat()
    return [status.st_size, status.st_mtime_ns]


def _kept(path: Path, key: str) -> Features | None:
    if not path.is_file():
        return None
    with np.load(path) as kept:
        return Features(kept["values"], kept["held"]) if str(kept["key"]) == key else None


def _keep(path: Path, key: str, features: Features) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial, partial.open("wb") as file:
        np.savez(file, values=features.values, held=features.held, key=np.array(key))
