"""MixUp and CutMix: batches blended with themselves, images and labels alike.

Both act on a batch that is already on the device and are pure functions of a key, so they belong
inside the training step. Labels become probabilities over classes. A record without a label,
or without a modality, is never blended with one that has it: each record mixes in the modalities
that both hold, and keeps its own label weight where the partner has none.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from drifa_jax.data.record import MISSING_LABEL
from drifa_jax.rng import stream


def mixup(
    images: Mapping[str, jax.Array],
    labels: Mapping[str, jax.Array],
    num_classes: Mapping[str, int],
    key: jax.Array,
    *,
    alpha: float = 0.2,
    present: Mapping[str, jax.Array] | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Convex combinations of pairs of records.

    Args:
      images: modality -> `[b, ..., c]` float.
      labels: task -> `[b]` class indices.
      num_classes: task -> number of classes.
      key: draws partners and shares.
      alpha: of the Beta distribution of the share; small values mix little.
      present: modality -> `[b]` bool, or None.

    Returns:
      Mixed images, and task -> `[b, k]` probabilities (all zero where the label is missing).

    Source: Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018.
    Test: tests/data/test_mixing.py.
    """
    partner, share, allowed = _draw(labels, key, alpha, present)
    share = jnp.where(allowed, share, jnp.ones_like(share))
    mixed = {}
    for modality, x in images.items():
        weight = share.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)
        mixed[modality] = weight * x + (1 - weight) * x[partner]
    return mixed, _mix_labels(labels, num_classes, partner, share)


def cutmix(
    images: Mapping[str, jax.Array],
    labels: Mapping[str, jax.Array],
    num_classes: Mapping[str, int],
    key: jax.Array,
    *,
    alpha: float = 1.0,
    present: Mapping[str, jax.Array] | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """A rectangle of the partner pasted in; labels are mixed by area.

    All modalities of a record get the same rectangle in relative coordinates. Arrays without
    spatial axes (tables) are kept. Arguments and results as in `mixup`.

    Source: Yun et al., "CutMix", ICCV 2019.
    Test: tests/data/test_mixing.py.
    """
    partner, share, allowed = _draw(labels, key, alpha, present)
    size = partner.shape[0]
    side = jnp.sqrt(1 - share)
    centre = jax.random.uniform(stream(key, "centre"), (2, size))
    low = jnp.clip(centre - side[None] / 2, 0, 1)
    high = jnp.clip(centre + side[None] / 2, 0, 1)
    high = jnp.where(allowed[None], high, low)
    area = jnp.prod(high - low, axis=0)
    mixed = {}
    for modality, x in images.items():
        if x.ndim < 4:
            mixed[modality] = x
            continue
        inside = jnp.ones((size, *x.shape[-3:-1]), bool)
        for axis in range(2):
            length = x.shape[-3 + axis]
            place = (jnp.arange(length, dtype=jnp.float32) + 0.5) / length
            held = (place[None] >= low[axis][:, None]) & (place[None] < high[axis][:, None])
            inside &= jnp.expand_dims(held, 2 - axis)
        inside = inside.reshape(size, *(1,) * (x.ndim - 4), *inside.shape[1:], 1)
        mixed[modality] = jnp.where(inside, x[partner], x)
    return mixed, _mix_labels(labels, num_classes, partner, 1 - area)


def _draw(labels, key, alpha, present):
    """Partner `[b]`, own share `[b]` in 0..1, and which records may mix `[b]`."""
    if alpha <= 0:
        raise ValueError(f"alpha is {alpha}; it must be positive.")
    size = next(iter(labels.values())).shape[0]
    partner = jax.random.permutation(stream(key, "partner"), size)
    share = jax.random.beta(stream(key, "share"), alpha, alpha, (size,))
    allowed = jnp.ones(size, bool)
    for label in labels.values():
        # Two records mix when they are labelled for the same tasks.
        allowed &= (label == MISSING_LABEL) == (label[partner] == MISSING_LABEL)
    for held in (present or {}).values():
        allowed &= held == held[partner]
    return partner, share, allowed


def _mix_labels(labels, num_classes, partner, share):
    mixed = {}
    for task, label in labels.items():
        # one_hot gives zeros for MISSING_LABEL, so such a record stays without a label.
        probabilities = jax.nn.one_hot(label, num_classes[task])
        weight = share[:, None].astype(probabilities.dtype)
        mixed[task] = weight * probabilities + (1 - weight) * probabilities[partner]
    return mixed
