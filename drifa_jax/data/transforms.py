"""Augmentation of one record, keyed: the same generator gives the same picture.

The pipeline hands every record of every epoch a generator of its own, whatever the number of
workers. All modalities of a record share one geometry when asked, because a scan rotated
against its partner is no longer a pair; intensity is always drawn for each modality by itself.

A volume turns, zooms and is mirrored within its slices, all of them alike, so that left stays
beside right; along its depth it is only shifted, by whole slices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import cv2
import numpy as np

from drifa_jax.data.record import Record


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes of one image; zeros change nothing.

    Attributes:
      rotation_degrees: largest angle either way; several values are alternatives, of which
        each picture draws one.
      shift_pixels: largest shift along each axis, in pixels (and slices) of the stored image.
      zoom: largest relative change of size, 0.1 for 0.9 to 1.1 times.
      flip_left_right, flip_up_down: probability of a mirror image.
      brightness: largest change of level, as a share of the full range.
      contrast: largest relative change of contrast about the mean.
      gamma: largest change of the exponent, as log2: 0.3 for exponents of 0.81 to 1.23.
      noise: largest standard deviation of Gaussian noise, as a share of the full range.
      bias_field: largest relative shading of a smooth multiplicative field, as MRI has.
      rician: whether the noise is that of an MRI magnitude image.
    """

    rotation_degrees: float | tuple[float, ...] = 0.0
    shift_pixels: float = 0.0
    zoom: float = 0.0
    flip_left_right: float = 0.0
    flip_up_down: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0
    bias_field: float = 0.0
    rician: bool = False

    def __post_init__(self):
        for name in ("shift_pixels", "brightness", "contrast", "gamma", "noise", "bias_field"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0.")
        if any(degrees < 0 for degrees in self.rotations):
            raise ValueError(f"rotation_degrees is {self.rotation_degrees}; give at least 0.")
        if not 0 <= self.zoom < 1 or not 0 <= self.bias_field < 1:
            raise ValueError(f"zoom {self.zoom} and bias_field {self.bias_field} belong in [0, 1).")
        for name in ("flip_left_right", "flip_up_down"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a probability.")

    @property
    def rotations(self) -> tuple[float, ...]:
        """The alternatives of the rotation."""
        value = self.rotation_degrees
        return tuple(value) if isinstance(value, tuple | list) else (value,)


PAPER = Augmentation(rotation_degrees=(20.0, 5.0), shift_pixels=5.0)
"""The paper's settings: rotations of up to 20 or up to 5 degrees and shifts of up to 5 pixels.

The paper gives the numbers without saying how they combine; here each picture draws one of the
two rotations and one shift along each axis.
"""

PRESETS: Mapping[str, Augmentation] = MappingProxyType(
    {
        "none": Augmentation(),
        "flip": Augmentation(flip_left_right=0.5),
        "paper": PAPER,
        "mri": replace(PAPER, flip_left_right=0.5, bias_field=0.2, noise=0.02, rician=True),
        "ct": replace(PAPER, flip_left_right=0.5, brightness=0.05, contrast=0.1, noise=0.02),
        "photo": Augmentation(
            rotation_degrees=180.0,
            shift_pixels=5.0,
            zoom=0.1,
            flip_left_right=0.5,
            flip_up_down=0.5,
            brightness=0.1,
            contrast=0.15,
            gamma=0.2,
        ),
    }
)
"""Named settings for configs."""


@dataclass(frozen=True)
class Geometry:
    """One drawn change of place, in units that do not depend on the size of the image."""

    degrees: float
    right: float
    down: float
    scale: float
    mirror_x: bool
    mirror_y: bool
    up: float = 0.0

    @property
    def is_identity(self) -> bool:
        return self == Geometry(0.0, 0.0, 0.0, 1.0, False, False)


@dataclass(frozen=True)
class Augment:
    """The transform of a record: `(record, generator) -> record`.

    Args:
      by_modality: modality -> settings; modalities that are not named stay as they are.
      shared_geometry: whether all images of a record move together. The settings of the first
        modality then draw the geometry for all; shifts are in its pixels and scale with size.
      drop_modality: probability of dropping each modality of a record that has several; one
        always stays (modality dropout).

    Test: tests/data/test_transforms.py.
    """

    by_modality: Mapping[str, Augmentation] = field(default_factory=dict)
    shared_geometry: bool = False
    drop_modality: float = 0.0

    def __post_init__(self):
        if not 0 <= self.drop_modality < 1:
            raise ValueError(f"drop_modality is {self.drop_modality}; it must be in [0, 1).")

    def __call__(self, record: Record, generator: np.random.Generator) -> Record:
        shared: Geometry | None = None
        held = [name for name in self.by_modality if name in record.images]
        if self.shared_geometry and held:
            settings = next(iter(self.by_modality.values()))
            image = record.images[held[0]]
            shared = draw_geometry(settings, image.shape[:-1], generator)
        images = {}
        # Every modality draws from a generator of its own, seeded in the order of the settings:
        # an absent modality must not change what another one gets.
        seeds = generator.integers(2**63, size=len(self.by_modality))
        own = dict(zip(self.by_modality, seeds.tolist(), strict=True))
        for name, image in record.images.items():
            if name in own:
                keyed = np.random.Generator(np.random.Philox(key=own[name]))
                image = augment(image, self.by_modality[name], keyed, shared)
            images[name] = image
        if self.drop_modality > 0:
            images = drop_modalities(images, self.drop_modality, generator)
        return replace(record, images=images)


def augment(
    image: np.ndarray,
    settings: Augmentation,
    generator: np.random.Generator,
    geometry: Geometry | None = None,
) -> np.ndarray:
    """One uint8 image `[h, w, c]` or volume `[d, h, w, c]`, changed.

    `geometry` overrides what the settings draw.
    """
    if geometry is None:
        geometry = draw_geometry(settings, image.shape[:-1], generator)
    return change_intensity(move(image, geometry), settings, generator)


def draw_geometry(
    settings: Augmentation, size: tuple[int, ...], generator: np.random.Generator
) -> Geometry:
    """A change of place; always the same number of draws, so that settings do not interact.

    Args:
      settings: the ranges.
      size: `(height, width)`, or `(depth, height, width)` of a volume, whose shift along the depth
        is drawn last.
      generator: of the draws.
    """
    *depth, height, width = size
    chance = generator.random(7)
    along = [settings.shift_pixels * (2 * generator.random() - 1) / slices for slices in depth]
    rotations = settings.rotations
    largest = rotations[min(int(chance[0] * len(rotations)), len(rotations) - 1)]
    return Geometry(
        degrees=largest * (2 * chance[1] - 1),
        right=settings.shift_pixels * (2 * chance[2] - 1) / width,
        down=settings.shift_pixels * (2 * chance[3] - 1) / height,
        scale=1.0 + settings.zoom * (2 * chance[4] - 1),
        mirror_x=bool(chance[5] < settings.flip_left_right),
        mirror_y=bool(chance[6] < settings.flip_up_down),
        up=along[0] if along else 0.0,
    )


def move(image: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Mirror, turn about the centre, zoom and shift in one linear resampling; outside is black."""
    if geometry.is_identity:
        return image
    if image.ndim == 4:
        within = replace(geometry, up=0.0)
        return _raised(np.stack([move(plane, within) for plane in image]), geometry.up)
    height, width, channels = image.shape
    radians = math.radians(geometry.degrees)
    cosine, sine = math.cos(radians) * geometry.scale, math.sin(radians) * geometry.scale
    flip_x, flip_y = (-1.0 if m else 1.0 for m in (geometry.mirror_x, geometry.mirror_y))
    turn = np.array([[cosine * flip_x, -sine * flip_y], [sine * flip_x, cosine * flip_y]])
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    shift = np.array([geometry.right * width, geometry.down * height])
    matrix = np.concatenate([turn, (centre + shift - turn @ centre)[:, None]], axis=1)
    moved = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
    return moved.reshape(height, width, channels)


def _raised(volume: np.ndarray, up: float) -> np.ndarray:
    """A volume shifted along its depth by a share of it, in whole slices; outside is black."""
    depth, number = len(volume), round(up * len(volume))
    shifted = np.zeros_like(volume)
    shifted[max(number, 0) : depth + min(number, 0)] = volume[
        max(-number, 0) : depth - max(number, 0)
    ]
    return shifted


def change_intensity(
    image: np.ndarray, settings: Augmentation, generator: np.random.Generator
) -> np.ndarray:
    """Shading, contrast, brightness, gamma and noise, rounded and clipped once at the end."""
    chance = 2 * generator.random(4) - 1
    active = (settings.brightness, settings.contrast, settings.gamma, settings.noise)
    if not any(active) and not settings.bias_field:
        return image
    x = image.astype(np.float32) * np.float32(1 / 255)
    if settings.bias_field:
        x *= _bias_field(image.shape, settings.bias_field, generator)
    if settings.contrast:
        mean = x.mean()
        x = mean + (x - mean) * np.float32(1 + settings.contrast * chance[0])
    if settings.brightness:
        x += np.float32(settings.brightness * chance[1])
    if settings.gamma:
        x = np.clip(x, 0, 1) ** np.float32(2 ** (settings.gamma * chance[2]))
    if settings.noise:
        deviation = np.float32(settings.noise * (chance[3] + 1) / 2)
        noise = generator.standard_normal((2, *image.shape), dtype=np.float32) * deviation
        x = np.hypot(x + noise[0], noise[1]) if settings.rician else x + noise[0]
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def drop_modalities(
    images: Mapping[str, np.ndarray], rate: float, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Each modality is dropped with probability `rate`; where all would be, one is kept."""
    names = list(images)
    dropped = generator.random(len(names)) < rate
    if dropped.all() and names:
        dropped[generator.integers(len(names))] = False
    return {name: images[name] for name, gone in zip(names, dropped, strict=True) if not gone}


def _bias_field(shape, largest: float, generator: np.random.Generator) -> np.ndarray:
    """A smooth field around 1, from a 3 x 3 grid resampled by cubic interpolation.

    All slices of a volume get the same.
    """
    grid = (2 * generator.random((3, 3), dtype=np.float32) - 1) * np.float32(largest)
    field = cv2.resize(grid, (shape[-2], shape[-3]), interpolation=cv2.INTER_CUBIC)
    return 1 + field[:, :, None]
