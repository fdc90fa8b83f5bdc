"""Grad-CAM: where a network looked in each modality when it gave its answer.

The gradient of a class's logit with respect to a feature map, averaged over the map, weighs its
channels; the positive part of the weighted sum shows the places that speak for the class.

A map is evidence about the network, not about the patient. Maps of networks that are equally
right can differ, so an ensemble shows the mean of its members' maps with their spread.

Source: Selvaraju et al., "Grad-CAM", ICCV 2017; Dhar et al., WACV 2025, Fig. 4.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from drifa_jax.explain.members import Pixels, Present, masks, over_members
from drifa_jax.models.functional import Functional
from drifa_jax.models.pixels import scale_pixels
from drifa_jax.predict.restored import Restored

SMALLEST_SIDE = 7
"""Cells that the short side of a map has at least, where the network has such a stage."""


@dataclass(frozen=True)
class Maps:
    """Grad-CAM of one modality, at the size of its images or volumes.

    Each member's map is divided by its maximum, so that no member outweighs the others; a map
    without any positive evidence stays zero.

    Attributes:
      members: `[e, b, h, w]` float32 in 0..1, of volumes `[e, b, d, h, w]`.
      stage: number of the stage whose features were weighed.
    """

    members: np.ndarray
    stage: int

    @property
    def mean(self) -> np.ndarray:
        """`[b, (d,) h, w]`, over the members."""
        return self.members.mean(axis=0)

    @property
    def spread(self) -> np.ndarray:
        """`[b, (d,) h, w]`, standard deviation over the members; zero of a single network."""
        return self.members.std(axis=0)


def grad_cam(
    restored: Restored,
    pixels: Pixels,
    task: str,
    classes: np.ndarray,
    *,
    present: Present | None = None,
    stage: int | None = None,
) -> dict[str, Maps]:
    """Maps of every modality that is an image or a volume.

    Args:
      restored: the members.
      pixels: modality -> `[b, (d,) h, w, c]` uint8 at the network's size.
      task: whose answer is explained.
      classes: `[b]` int, the class of each record whose evidence is shown.
      present: modality -> `[b]` bool; the map of an absent modality is zero.
      stage: number of the stage; None takes the deepest whose maps still have `SMALLEST_SIDE`
        cells, or else the first.

    Raises:
      ValueError: for an unknown task, a class or a stage that does not exist.

    Test: tests/explain/test_grad_cam.py.
    """
    names = restored.description.tasks
    if task not in names:
        raise ValueError(f"task is {task!r}; the network answers {sorted(names)}.")
    classes = np.asarray(classes, np.int32)
    if classes.min() < 0 or classes.max() >= len(names[task]):
        raise ValueError(f"classes holds {classes}; {task!r} has {len(names[task])} classes.")
    sizes = {m: x.shape[1:-1] for m, x in pixels.items() if np.ndim(x) > 3}
    sides = _shortest_sides(restored.network, pixels)
    if stage is None:
        stage = max((k for k, side in enumerate(sides) if side >= SMALLEST_SIDE), default=0)
    if not 0 <= stage < len(sides):
        raise ValueError(f"stage is {stage}; the network has the stages 0 to {len(sides) - 1}.")
    function = _compiled(restored.network, task, stage)
    raw = over_members(restored, function, dict(pixels), classes, masks(restored, present))
    held = {m: np.ones(len(classes), bool) if present is None else present[m] for m in sizes}
    return {m: Maps(_normalised(raw[m], sizes[m], held[m]), stage) for m in sizes}


@functools.lru_cache(maxsize=16)
def _compiled(network: Functional, task: str, stage: int):
    def maps(params, statistics, pixels, classes, present):
        features, _ = network.apply(
            params,
            statistics,
            stage,
            scale_pixels(pixels),
            train=False,
            present=present,
            method="until_stage",
        )

        def evidence(records):
            logits, _ = network.apply(
                params,
                statistics,
                stage,
                records,
                train=False,
                present=present,
                method="from_stage",
            )
            # Records do not see each other, so the sum's gradient is each record's own.
            return jnp.sum(jnp.take_along_axis(logits[task], classes[:, None], axis=1))

        return class_maps(features, jax.grad(evidence)(features))

    return jax.jit(maps)


def class_maps(
    features: Mapping[str, jax.Array], gradients: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """`[b, h, w]` of every modality that has a map: `relu(sum_c mean(gradient_c) * feature_c)`."""
    maps = {}
    for m, x in features.items():
        if "/" in m or x.ndim < 4:  # what goes beside a map, and tables
            continue
        weight = jnp.mean(gradients[m], axis=tuple(range(1, x.ndim - 1)), keepdims=True)
        maps[m] = jax.nn.relu(jnp.sum(weight * x, axis=-1)).astype(jnp.float32)
    return maps


def _shortest_sides(network: Functional, pixels: Pixels) -> list[int]:
    """The shortest side of any modality's map after each stage; nothing is computed."""
    images = {m: jax.ShapeDtypeStruct((1, *x.shape[1:]), jnp.float32) for m, x in pixels.items()}
    stages, _ = jax.eval_shape(
        lambda params, statistics, x: network.apply(
            params, statistics, x, train=False, method="features"
        ),
        network.abstract_params,
        network.abstract_statistics,
        images,
    )
    return [
        min((min(x.shape[1:-1]) for x in maps.values() if x.ndim > 2), default=0) for maps in stages
    ]


def _normalised(maps: np.ndarray, size: tuple[int, ...], held: np.ndarray) -> np.ndarray:
    """`[e, b, *size]` at the size of the images, each map with the maximum 1 or all zero."""
    out = np.zeros((*maps.shape[:2], *size), np.float32)
    for member, row in np.ndindex(*maps.shape[:2]):
        if held[row]:
            out[member, row] = _enlarged(maps[member, row], size)
    # After the resize, which flattens peaks.
    largest = out.max(axis=tuple(range(2, out.ndim)), keepdims=True)
    return np.divide(out, largest, out=out, where=largest > 0)


def _enlarged(heat: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A map at the size of its image, by linear sampling along every axis."""
    *depth, height, width = size
    if not depth:
        return cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)
    planes = np.stack([_enlarged(plane, (height, width)) for plane in heat])
    columns = planes.reshape(len(planes), -1)
    resized = cv2.resize(columns, (columns.shape[1], *depth), interpolation=cv2.INTER_LINEAR)
    return resized.reshape(size)
