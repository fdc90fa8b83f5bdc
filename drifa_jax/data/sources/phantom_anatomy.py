"""The drawing behind the brain phantoms: one synthetic head, seen by MRI and by CT.

`draw_patient` turns a random generator into numbers (pose, outline, ventricles, lesions);
`render` turns those numbers into a picture and is pure. Both modalities read the same
numbers, so they show the same head; a lesion is painted only in the modalities it names.

Coordinates: the image spans -1..1, x to the right and y downwards, front of the head up.
Grey values are nominal uint8 levels, a contrast-enhanced MRI and a CT in a brain window.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np

MODALITIES = ("mri", "ct")

# Where the layers of the head end, as fractions of the scalp's ellipse.
SKULL_OUTSIDE = 0.93

HEAD_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "rotation": (-0.17, 0.17),
        "shift_x": (-0.05, 0.05),
        "shift_y": (-0.04, 0.04),
        "half_width": (0.70, 0.79),
        "half_length": (0.85, 0.93),
        "front_taper": (0.02, 0.16),
        "skull_inside": (0.81, 0.85),
        "brain_edge": (0.765, 0.795),
        "ventricle_size": (0.75, 1.30),
        "ventricle_spread": (0.9, 1.2),
        "cortex_depth": (0.10, 0.15),
        "sulcus_depth": (0.25, 0.60),
        "mri_gain": (0.95, 1.04),
        "mri_noise": (4.0, 7.0),
        "ct_offset": (-4.0, 4.0),
        "ct_noise": (4.5, 7.5),
        "ct_cupping": (3.0, 9.0),
    }
)
"""Uniform range of every number that describes a head; the fields of `Head`."""

FIELD_SIDES: Mapping[str, int] = MappingProxyType(
    {"warp_x": 5, "warp_y": 5, "bias": 4, "gyri": 15, "sulci": 14, "texture": 26, "ragged": 13}
)
"""Side of the random grid behind each smooth field; fewer points make broader structures."""

TISSUE: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "mri": {
            "air": 4.0,
            "scalp": 172.0,
            "skull": 22.0,
            "fluid": 38.0,
            "grey": 112.0,
            "white": 138.0,
            "falx": 74.0,
        },
        "ct": {
            "air": 2.0,
            "scalp": 58.0,
            "skull": 246.0,
            "fluid": 84.0,
            "grey": 134.0,
            "white": 122.0,
            "falx": 156.0,
        },
    }
)
"""Grey level of each tissue in each modality."""

LESION_LEVELS: Mapping[str, Mapping[str, Mapping[str, float]]] = MappingProxyType(
    {
        "mri": {
            "glioma": {"oedema": 80.0, "rim": 246.0, "core": 60.0},
            "meningioma": {"mass": 240.0},
            "pituitary": {"mass": 236.0},
            "ischaemic": {"territory": 188.0},
            "haemorrhagic": {"rim": 84.0, "clot": 16.0},
        },
        "ct": {
            "glioma": {"oedema": 62.0, "rim": 158.0, "core": 40.0},
            "meningioma": {"mass": 196.0, "calcium": 250.0},
            "pituitary": {"mass": 200.0},
            "ischaemic": {"territory": 52.0},
            "haemorrhagic": {"rim": 92.0, "clot": 228.0},
        },
    }
)
"""Grey level of each part of each lesion, painted in this order; also the list of kinds."""


@dataclass(frozen=True, eq=False)
class Head:
    """One healthy head: its pose, its outline, how each scanner saw it, and its textures.

    The numbers are drawn uniformly from `HEAD_RANGES`. `fields` holds small grids of
    standard normals (`FIELD_SIDES`), which every picture size resamples to the same smooth
    structures. `spots` rows are `(x, y, width, strength)` in head coordinates: harmless
    vessels for MRI, harmless calcifications for CT.
    """

    rotation: float
    shift_x: float
    shift_y: float
    half_width: float
    half_length: float
    front_taper: float
    skull_inside: float
    brain_edge: float
    ventricle_size: float
    ventricle_spread: float
    cortex_depth: float
    sulcus_depth: float
    mri_gain: float
    mri_noise: float
    ct_offset: float
    ct_noise: float
    ct_cupping: float
    fields: Mapping[str, np.ndarray]
    spots: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Lesion:
    """One lesion of one head, in head coordinates, and the modalities that show it."""

    kind: str
    x: float
    y: float
    radius: float
    angle: float
    aspect: float
    opacity: float
    visible_in: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Patient:
    """Everything a picture depends on; `noise_seed` names the noise of both pictures."""

    head: Head
    lesions: tuple[Lesion, ...]
    noise_seed: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The tissues of one head on one pixel grid, shared by both modalities.

    `x`, `y` are head coordinates, `depth` is the fraction of the scalp's ellipse (1 at the
    skin), and `edge` the width of a sharp border in image units. `head` to `falx` are
    coverages in 0..1; `texture`, `ragged` and `bias` are smooth fields around 0, about 1 in
    size. All arrays are `[size, size]` float32.
    """

    size: int
    edge: float
    x: np.ndarray
    y: np.ndarray
    depth: np.ndarray
    head: np.ndarray
    skull: np.ndarray
    cavity: np.ndarray
    brain: np.ndarray
    white: np.ndarray
    fluid: np.ndarray
    falx: np.ndarray
    texture: np.ndarray
    ragged: np.ndarray
    bias: np.ndarray


def draw_patient(
    generator: np.random.Generator,
    findings: Mapping[str, tuple[str, ...]],
    noise_seed: tuple[int, ...],
) -> Patient:
    """Draw a head, then its lesions.

    The head is drawn first, so patients drawn from equal generators have equal heads
    whatever their findings.

    Args:
      generator: consumed; the only source of chance.
      findings: lesion kind -> modalities that show it, at most one tumour and one stroke.
      noise_seed: non-negative integers that name the noise of this patient's pictures.
    """
    lows, highs = np.array(list(HEAD_RANGES.values())).T
    numbers = dict(zip(HEAD_RANGES, generator.uniform(lows, highs).tolist(), strict=True))
    normals = generator.standard_normal(
        sum(side * side for side in FIELD_SIDES.values()), dtype=np.float32
    )
    fields, start = {}, 0
    for name, side in FIELD_SIDES.items():
        fields[name] = normals[start : start + side * side].reshape(side, side)
        start += side * side
    spots = {"mri": _draw_vessels(generator), "ct": _draw_calcifications(generator)}
    head = Head(**numbers, fields=fields, spots=spots)
    # Tumour and stroke take opposite sides, so that one seldom covers the other; the side of
    # one says nothing about whether the other exists.
    side = 1.0 if generator.random() < 0.5 else -1.0
    lesions = []
    for kind, visible_in in findings.items():
        stroke = kind in ("ischaemic", "haemorrhagic")
        lesions.append(_draw_lesion(generator, head, kind, -side if stroke else side, visible_in))
    return Patient(head, tuple(lesions), noise_seed)


def anatomy(head: Head, size: int) -> Anatomy:
    """Lay out one head's tissues on a `size` x `size` grid."""
    fields = {name: _smooth(grid, size) for name, grid in head.fields.items()}
    column, row = _grid(size)
    cosine, sine = math.cos(head.rotation), math.sin(head.rotation)
    across, along = column - head.shift_x, row - head.shift_y
    x = cosine * across + sine * along + 0.021 * fields["warp_x"]
    y = cosine * along - sine * across + 0.021 * fields["warp_y"]
    edge = max(2.6 / size, 0.026)

    taper = x * (1.0 - head.front_taper * y)
    depth = np.sqrt((taper * (1 / head.half_width)) ** 2 + (y * (1 / head.half_length)) ** 2)
    # One unit of `depth` is about this many image units, which keeps edges one pixel wide.
    scale = 0.5 * (head.half_width + head.half_length)
    cavity = _inside((head.skull_inside - depth) * scale, edge)
    outer_skull = _inside((SKULL_OUTSIDE - depth) * scale, edge)
    brain = _inside((head.brain_edge - depth) * scale, edge)

    # The folds shape both the outer furrows and the border of the white matter below them.
    below_surface = (head.brain_edge - depth) * scale
    gyri, sulci = fields["gyri"], fields["sulci"]
    shallow = np.clip(1.3 - below_surface * 5.5, 0.0, 1.0)
    furrow = np.clip(1.15 - np.abs(sulci) * 2.8, 0.0, 1.0) * shallow * head.sulcus_depth
    white = _inside(below_surface - head.cortex_depth + 0.065 * gyri, 0.06)

    mirrored = np.abs(x)
    spread, swelling = head.ventricle_spread, head.ventricle_size
    nuclei = _ellipse(mirrored, y, 0.215 * spread, 0.0, 0.085, 0.17, 0.25, 0.05)
    white *= 1.0 - 0.75 * nuclei
    # Horns bend away from the midline, the front ones forwards and the back ones backwards.
    bent = mirrored - 1.1 * (y - 0.02) ** 2
    front = _ellipse(bent, y, 0.052 * spread, -0.17, 0.042 * swelling, 0.165 * swelling, 0.10, edge)
    back = _ellipse(bent, y, 0.090 * spread, 0.24, 0.046 * swelling, 0.150 * swelling, -0.16, edge)
    middle = _ellipse(x, y, 0.0, 0.02, 0.020 * swelling, 0.10, 0.0, edge)
    ventricles = np.maximum(np.maximum(front, back), middle)
    fissure = np.clip(1.0 - mirrored / (0.9 * edge + 0.006), 0.0, 1.0)
    fissure *= np.clip((np.abs(y - 0.03) - 0.34) * 8.0, 0.0, 1.0)
    return Anatomy(
        size=size,
        edge=edge,
        x=x,
        y=y,
        depth=depth,
        head=_inside((1.0 - depth) * scale, edge),
        skull=outer_skull - cavity,
        cavity=cavity,
        brain=brain,
        white=white,
        fluid=np.maximum(ventricles, furrow) * brain,
        falx=fissure * cavity,
        texture=fields["texture"],
        ragged=fields["ragged"],
        bias=fields["bias"],
    )


def render(patient: Patient, modality: str, size: int, tissue: Anatomy | None = None) -> np.ndarray:
    """Picture of one patient in one modality, `[size, size]` uint8; pure.

    Args:
      patient: what to draw. Lesions that do not name `modality` leave no trace in it.
      modality: "mri" or "ct".
      size: height and width in pixels.
      tissue: `anatomy(patient.head, size)`, when the caller already has it.

    Raises:
      ValueError: if `modality` is neither.
    """
    if modality not in MODALITIES:
        raise ValueError(f"modality {modality!r} is unknown; choose one of {MODALITIES}")
    tissue = anatomy(patient.head, size) if tissue is None else tissue
    levels = TISSUE[modality]
    picture = levels["air"] + tissue.head * np.float32(levels["scalp"] - levels["air"])
    _paint(picture, tissue.skull, levels["skull"])
    _paint(picture, tissue.cavity, levels["fluid"])
    brain = levels["grey"] + tissue.white * np.float32(levels["white"] - levels["grey"])
    brain += (2.5 if modality == "ct" else 5.0) * tissue.texture
    _paint(picture, tissue.brain, brain)
    _paint(picture, tissue.fluid, levels["fluid"])
    _paint(picture, tissue.falx, levels["falx"])
    picture += _spots(patient.head, modality, size) * tissue.cavity
    for lesion in patient.lesions:
        if modality in lesion.visible_in:
            parts = LESION_SHAPES[lesion.kind](tissue, lesion)
            for part, level in LESION_LEVELS[modality][lesion.kind].items():
                _paint(picture, parts[part] * np.float32(lesion.opacity), level)
    noise = np.random.Generator(
        np.random.Philox(np.random.SeedSequence([MODALITIES.index(modality), *patient.noise_seed]))
    )
    expose = _expose_mri if modality == "mri" else _expose_ct
    return np.clip(expose(picture, patient.head, tissue, noise), 0.0, 255.0).astype(np.uint8)


def lesion_coverage(patient: Patient, kind: str, size: int) -> np.ndarray:
    """Where one lesion lies, `[size, size]` float32 in 0..1, whether or not it is visible.

    Raises:
      ValueError: if the patient has no lesion of this kind.
    """
    for lesion in patient.lesions:
        if lesion.kind == kind:
            parts = LESION_SHAPES[kind](anatomy(patient.head, size), lesion)
            return functools.reduce(np.maximum, parts.values())
    raise ValueError(f"the patient has no {kind!r}, only {[item.kind for item in patient.lesions]}")


def _glioma(tissue: Anatomy, lesion: Lesion) -> dict[str, np.ndarray]:
    """Ragged ring around a dead centre, in a still more ragged swelling."""
    distance = _distance(tissue, lesion) - 0.026 * tissue.ragged
    oedema = _inside(1.55 * lesion.radius - distance + 0.035 * tissue.ragged, 0.07)
    return {
        "oedema": oedema * tissue.brain * np.float32(0.85),
        "rim": _inside(lesion.radius - distance, tissue.edge) * tissue.brain,
        "core": _inside(0.45 * lesion.radius - distance + 0.022 * tissue.texture, tissue.edge),
    }


def _meningioma(tissue: Anatomy, lesion: Lesion) -> dict[str, np.ndarray]:
    """Round and even, cut flat by the skull that it grows from; calcified in spots."""
    distance = _distance(tissue, lesion)
    mass = _inside(lesion.radius - distance, tissue.edge) * tissue.cavity
    calcium = _inside(0.62 * lesion.radius - distance, 0.06) * np.clip(
        0.6 + tissue.ragged, 0.0, 1.0
    )
    return {"mass": mass, "calcium": calcium * mass}


def _pituitary(tissue: Anatomy, lesion: Lesion) -> dict[str, np.ndarray]:
    """Small, smooth, on the midline."""
    return {"mass": _inside(lesion.radius - _distance(tissue, lesion), tissue.edge)}


def _ischaemic(tissue: Anatomy, lesion: Lesion) -> dict[str, np.ndarray]:
    """A wedge that widens from its apex near the ventricle to the surface of the brain."""
    across, along = _turned(tissue, lesion)
    width = math.tan(0.5 * lesion.aspect) * along + 0.05 - np.abs(across) + 0.026 * tissue.ragged
    wedge = np.minimum(_inside(width, 0.06), _inside(along - 0.02, 0.07))
    return {"territory": wedge * tissue.brain}


def _haemorrhagic(tissue: Anatomy, lesion: Lesion) -> dict[str, np.ndarray]:
    """A compact clot with a thin rim of swelling."""
    distance = _distance(tissue, lesion) - 0.022 * tissue.ragged
    return {
        "rim": _inside(1.30 * lesion.radius - distance, 0.06) * tissue.brain,
        "clot": _inside(lesion.radius - distance, tissue.edge) * tissue.brain,
    }


LESION_SHAPES: Mapping[str, Callable[[Anatomy, Lesion], dict[str, np.ndarray]]] = MappingProxyType(
    {
        "glioma": _glioma,
        "meningioma": _meningioma,
        "pituitary": _pituitary,
        "ischaemic": _ischaemic,
        "haemorrhagic": _haemorrhagic,
    }
)
"""Lesion kind -> function giving the coverage of each of its parts."""


def _draw_lesion(
    generator: np.random.Generator,
    head: Head,
    kind: str,
    side: float,
    visible_in: tuple[str, ...],
) -> Lesion:
    """Place one lesion where its kind occurs; `side` is -1 for the left of the picture, or 1."""
    first, second, size, turn, stretch, strength = generator.random(6).tolist()
    radius, angle, aspect = 0.19 + 0.08 * size, math.pi * turn, 0.85 + 0.3 * stretch
    # Sideways is 0; positive is towards the back of the head.
    bearing = (second - 0.5) * 1.9
    if kind == "pituitary":
        # The sella lies in front of the middle; one picture stands for several levels.
        radius, x, y = 0.125 + 0.035 * size, 0.03 * (first - 0.5), -0.44 + 0.08 * (second - 0.5)
    elif kind == "ischaemic":
        # The apex sits beside the ventricle and the wedge points outwards.
        aspect, angle = 1.12 + 0.45 * size, math.atan2(side * math.cos(bearing), math.sin(bearing))
        x, y = side * (0.16 + 0.05 * first), 0.10 * bearing
    else:
        if kind == "meningioma":
            reach = head.skull_inside - 0.75 * radius
            aspect = 0.95 + 0.1 * stretch
        elif kind == "glioma":
            radius, reach = 0.20 + 0.08 * size, 0.40 + 0.10 * first
        else:
            radius, aspect, reach = 0.16 + 0.07 * size, 0.75 + 0.5 * stretch, 0.28 + 0.22 * first
        x = side * reach * head.half_width * math.cos(bearing)
        y = reach * head.half_length * math.sin(bearing)
    return Lesion(kind, x, y, radius, angle, aspect, 0.80 + 0.20 * strength, visible_in)


def _draw_vessels(generator: np.random.Generator) -> np.ndarray:
    """Bright small vessels anywhere in the brain, and the sinus at the back of the midline."""
    x, y, width, strength = generator.uniform(
        [[-0.5], [-0.6], [0.014], [20.0]], [[0.5], [0.6], [0.024], [60.0]], size=(4, 5)
    )
    x[0], y[0], width[0] = 0.0, 0.68, 0.035
    strength[1 + int(generator.integers(1, 5)) :] = 0.0
    return np.stack([x, y, width, strength], axis=1)


def _draw_calcifications(generator: np.random.Generator) -> np.ndarray:
    """Pineal gland and choroid plexus, each present or not, and one speck anywhere."""
    present = generator.random(4) < (0.6, 0.5, 0.5, 0.4)
    x, y, width, strength = generator.uniform(
        [[-0.03], [-0.03], [0.014], [50.0]], [[0.03], [0.03], [0.028], [130.0]], size=(4, 4)
    )
    x += (0.0, -0.18, 0.18, 0.0)
    y += (0.17, 0.27, 0.27, 0.0)
    x[3], y[3] = x[3] * 14, y[3] * 16
    return np.stack([x, y, width, strength * present], axis=1)


def _spots(head: Head, modality: str, size: int) -> np.ndarray:
    """All vessels or calcifications of one head, as one sum of small Gaussian bells."""
    x, y, width, strength = head.spots[modality].astype(np.float32).T
    cosine, sine = math.cos(head.rotation), math.sin(head.rotation)
    column = cosine * x - sine * y + head.shift_x
    row = sine * x + cosine * y + head.shift_y
    # No narrower than a pixel, or a spot between two pixel centres would vanish.
    sharpness = -0.5 / np.maximum(width, 1.1 / size) ** 2
    line = _grid(size)[0][0]
    bell_columns = np.exp(sharpness[:, None] * (line - column[:, None]) ** 2)
    bell_rows = np.exp(sharpness[:, None] * (line - row[:, None]) ** 2) * strength[:, None]
    return np.einsum("kr,kc->rc", bell_rows, bell_columns)


def _expose_mri(
    picture: np.ndarray, head: Head, tissue: Anatomy, noise: np.random.Generator
) -> np.ndarray:
    """Coil shading, then the magnitude of a complex signal with Gaussian noise (Rician)."""
    picture = picture * (np.float32(head.mri_gain) + np.float32(0.045) * tissue.bias)
    real, imaginary = np.float32(head.mri_noise) * noise.standard_normal(
        (2, *picture.shape), dtype=np.float32
    )
    return np.sqrt((picture + real) ** 2 + imaginary**2)


def _expose_ct(
    picture: np.ndarray, head: Head, tissue: Anatomy, noise: np.random.Generator
) -> np.ndarray:
    """Beam hardening (the centre reads too low), then quantum noise, grainy and everywhere."""
    grain = noise.standard_normal(picture.shape, dtype=np.float32)
    grain = cv2.GaussianBlur(grain, (3, 3), 0.6) * np.float32(1.7 * head.ct_noise)
    cup = np.float32(head.ct_cupping) * (tissue.depth**2 - 0.4)
    return (
        picture
        + (cup + np.float32(head.ct_offset)) * tissue.cavity
        + grain * (0.35 + 0.65 * tissue.head)
    )


def _paint(picture: np.ndarray, coverage: np.ndarray, level: float | np.ndarray) -> None:
    """Blend `level` over `picture` in place, as far as `coverage` reaches."""
    picture += coverage * (level - picture)


def _inside(distance: np.ndarray, edge: float) -> np.ndarray:
    """Coverage of a shape from the signed distance to its border (positive inside)."""
    return np.clip(distance * (1.0 / edge) + 0.5, 0.0, 1.0)


def _ellipse(
    x: np.ndarray,
    y: np.ndarray,
    centre_x: float,
    centre_y: float,
    half_width: float,
    half_length: float,
    angle: float,
    edge: float,
) -> np.ndarray:
    """Coverage of a turned ellipse."""
    cosine, sine = math.cos(angle), math.sin(angle)
    across, along = x - centre_x, y - centre_y
    first = (cosine * across + sine * along) * (1.0 / half_width)
    second = (cosine * along - sine * across) * (1.0 / half_length)
    return _inside((1.0 - np.sqrt(first**2 + second**2)) * half_width, edge)


def _turned(tissue: Anatomy, lesion: Lesion) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates across and along the lesion's own axis, from its centre or apex."""
    cosine, sine = math.cos(lesion.angle), math.sin(lesion.angle)
    right, down = tissue.x - lesion.x, tissue.y - lesion.y
    return cosine * right - sine * down, sine * right + cosine * down


def _distance(tissue: Anatomy, lesion: Lesion) -> np.ndarray:
    """Distance from the lesion's centre, stretched along its axis by `aspect`."""
    across, along = _turned(tissue, lesion)
    return np.sqrt((across * lesion.aspect) ** 2 + (along * (1.0 / lesion.aspect)) ** 2)


def _smooth(grid: np.ndarray, size: int) -> np.ndarray:
    """Resample a small random grid to the picture, as a smooth field."""
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)


@functools.lru_cache(maxsize=16)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres, x as `[1, size]` and y as `[size, 1]`, float32 in -1..1; read-only."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0).astype(np.float32)
    line.flags.writeable = False
    return line[None, :], line[:, None]
