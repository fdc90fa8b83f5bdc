"""Features of frozen branches, computed once: what every method of a benchmark then reads.

features/<modality>-<condition>.npz    what readouts can read, who has it, and a key of its makers
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
from drifa_jax.fusion_presets import NO_ATTENTION
from drifa_jax.models.building import build_network, declared_plans
from drifa_jax.models.description import describe_network
from drifa_jax.models.pixels import scale_pixels
from drifa_jax.models.pooling import average_pool
from drifa_jax.models.reading import mean_and_deviation, read_stages
from drifa_jax.network_options import READ_LAST, READ_RESOLUTIONS
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
      read: value of `model.read_stages` -> `[n, c]` float32, zero where absent: the mean of the
        last stage, or mean and deviation of every resolution.
      held: `[n]` bool.
    """

    read: Mapping[str, np.ndarray]
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


def _branch(config: Config, spec: ModalitySpec) -> Callable[[np.ndarray], Mapping[str, Any]]:
    """Pixels `[b, h, w, c]` to all that can be read of the pretrained branch."""
    apart = dataclasses.replace(
        config.model, **NO_ATTENTION, fusion="drifa", readout="concatenate", read_stages=READ_LAST
    )
    own = dataclasses.replace(
        config,
        model=apart,
        data=dataclasses.replace(
            config.data, modalities={spec.name: config.data.modalities[spec.name]}
        ),
    )
    description = describe_network(own, (spec,), {"task": 2})
    network = build_network(description)
    plan = declared_plans(description)[spec.name]
    drawn = network.init(jax.random.key(0))
    tensors = pretrained_tensors(own, description)
    params, statistics = (replaced(tree, tensors) for tree in drawn)

    @jax.jit
    def run(pixels: jax.Array) -> dict[str, jax.Array]:
        images = scale_pixels({spec.name: pixels})
        maps, _ = network.apply(params, statistics, images, train=False, method="features")
        # Modalities are alone here, so that stages of the network are those of the branch.
        found = [maps[k][spec.name] for k in read_stages(plan)]
        return {
            READ_LAST: average_pool(found[-1]).astype(jnp.float32),
            READ_RESOLUTIONS: jnp.concatenate([mean_and_deviation(x) for x in found], -1),
        }

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
            parts.append(jax.device_get(running))
        running = following
        presence.append(present[spec.name])
    parts.append(jax.device_get(running))
    held = np.concatenate(presence)
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Features(
        {n: np.where(held[:, None], x[: len(held)], np.float32(0)) for n, x in values.items()}, held
    )


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
            "read": [READ_LAST, READ_RESOLUTIONS],
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
        if str(kept["key"]) != key:
            return None
        read = {n.removeprefix("read:"): kept[n] for n in kept.files if n.startswith("read:")}
        return Features(read, kept["held"])


def _keep(path: Path, key: str, features: Features) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial, partial.open("wb") as file:
        read = {f"read:{name}": values for name, values in features.read.items()}
        np.savez(file, held=features.held, key=np.array(key), **read)
