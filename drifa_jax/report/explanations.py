"""The sections that show why: Grad-CAM of telling records, and the fused features in a plane."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from drifa_jax.data.dataset import Dataset
from drifa_jax.data.record import Source, TabularSpec, stack_records
from drifa_jax.evaluate.evaluated import Evaluated
from drifa_jax.explain.embedding import FEWEST_RECORDS, embed, fused_features
from drifa_jax.explain.explanation import RecordMap
from drifa_jax.explain.gallery import CELLS, Example, gallery
from drifa_jax.explain.gates import gate_rows, gates
from drifa_jax.predict.predictor import Predictor
from drifa_jax.predictions.files import write_csv
from drifa_jax.predictions.table import Predictions
from drifa_jax.report import panels
from drifa_jax.report.blocks import (
    Block,
    Case,
    Cases,
    Heading,
    Note,
    Panels,
    Prose,
    Section,
    picture,
)

MOST_EMBEDDED = 1000
"""Test records in the plane, evenly spaced among all: t-SNE takes long and points cover points."""

MOST_GATED = 128
"""Test records whose gates are read, evenly spaced."""

RECORDS_A_PASS = 256
"""Images held at once."""

SHOWN_SLICES = 4
"""Slices of a volume in a picture."""

SIDE, SLICE_SIDE = 176, 132
"""Pixels of the longer side of a picture in the report, and of each slice of a volume."""

FRAME = 112
"""Grey level of the line around a slice."""


def explanation_sections(
    predictor: Predictor,
    dataset: Dataset,
    answers: Predictions,
    evaluated: Evaluated,
    folder: Path,
) -> list[Section]:
    """The gallery, the gates and the embedding of the test records.

    Test: tests/report/test_run_evaluation.py.
    """
    return [
        _gallery(predictor, dataset.test, answers, evaluated),
        _gates(predictor, dataset.test, evaluated, folder),
        _embedding(predictor, dataset.test, answers, evaluated, folder),
    ]


def example_case(example: Example, num_members: int) -> Case:
    """One record of the gallery: a picture for each image, and the contribution of each modality.

    Beside the image stands the same under its map and, of an ensemble, the spread of the map.
    """
    verdict = "right" if example.true == example.predicted else "wrong"
    pictures = []
    for modality, image in example.images.items():
        found = map_pictures(image, example.maps[modality], num_members)
        is_volume = image.ndim == 4
        pictures.append(
            picture(
                np.concatenate([pixels for pixels, _ in found], axis=1),
                alt=f"{modality} of {example.record_id}: as it is, then under the Grad-CAM of "
                f"{example.predicted} ({verdict})"
                + (f", then the spread of {num_members} members." if num_members > 1 else "."),
                caption=f"{modality}, {found[0][1]}" if is_volume else modality,
            )
        )
    facts = [
        (m, ", ".join(f"{column} {value}" for column, value in row.items()))
        for m, row in example.rows.items()
    ]
    for m, share in example.shapley.items():
        spread = f" ± {example.shapley_spread[m]:.2f}" if num_members > 1 else ""
        facts.append((f"{m} adds", f"{share:+.2f}{spread}"))
    return Case(
        f"{example.predicted}, {example.probability:.2f}; truth: {example.true}",
        pictures,
        [*facts, ("entropy", f"{example.predictive_entropy:.2f} nats")],
        example.record_id,
    )


def map_pictures(
    image: np.ndarray, record_map: RecordMap, num_members: int
) -> list[tuple[np.ndarray, str]]:
    """The image, the image under its map, and under the spread of the map over several members.

    Of a volume the same of its most telling slices, in their order, each in a frame.

    Returns:
      `[h, w, 3]` uint8 each, with a title.
    """
    if image.ndim == 3:
        found = _plane_pictures(image, record_map, SIDE)
        title = "image"
    else:
        numbers = telling_slices(record_map.mean)
        of_slices = [
            _plane_pictures(
                image[k], RecordMap(record_map.mean[k], record_map.spread[k]), SLICE_SIDE
            )
            for k in numbers
        ]
        found = [montage(_framed(np.stack(planes))) for planes in zip(*of_slices, strict=True)]
        title = f"slices {', '.join(map(str, numbers))} of {len(image)}"
    titles = (title, "Grad-CAM", f"spread over {num_members} members")
    return list(zip(found, titles, strict=True))[: 3 if num_members > 1 else 2]


def _plane_pictures(image: np.ndarray, record_map: RecordMap, side: int) -> list[np.ndarray]:
    """A picture `[h, w, c]`, the same under its map, and under the map's spread."""
    shown = _fitted(image, side)
    maps = (_fitted_map(heat, shown.shape[:2]) for heat in (record_map.mean, record_map.spread))
    return [shown, *(_overlaid(shown, heat) for heat in maps)]


def _framed(planes: np.ndarray) -> np.ndarray:
    """`[n, h + 2, w + 2, 3]`: dark slices would run into each other, and maps over their edges."""
    return np.pad(planes, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=FRAME)


def telling_slices(heat: np.ndarray) -> np.ndarray:
    """Numbers, in order, of the slices of a map `[d, h, w]` that hold most of it.

    Neighbours look alike, so the depth is cut into as many parts as slices are shown, and the
    warmest slice of each part is taken; of a cold part the one in its middle.
    """
    warmth = heat.reshape(len(heat), -1).sum(1)
    parts = np.array_split(np.arange(len(heat)), min(SHOWN_SLICES, len(heat)))
    return np.array([p[warmth[p].argmax()] if warmth[p].any() else p[len(p) // 2] for p in parts])


def montage(planes: np.ndarray) -> np.ndarray:
    """`[n, h, w, ...]` as one picture, two planes a row; what is left of the last row is black."""
    columns = min(2, len(planes))
    rows = -(-len(planes) // columns)
    missing = np.zeros((rows * columns - len(planes), *planes.shape[1:]), planes.dtype)
    laid = np.concatenate([planes, missing]).reshape(rows, columns, *planes.shape[1:])
    return np.concatenate([np.concatenate(list(row), axis=1) for row in laid], axis=0)


def _gallery(
    predictor: Predictor, source: Source, answers: Predictions, evaluated: Evaluated
) -> Section:
    text = (
        "Grad-CAM colours what raised the class that was called: warm is more. "
        + (
            "The third picture is the standard deviation of the map over the members. "
            if predictor.num_members > 1
            else ""
        )
        + "Uncertain means above the median entropy. Probabilities here are uncalibrated. What a "
        "modality adds is its Shapley value: how far it moves the probability of that class, "
        "without dropout, from equally probable classes. A map shows where the network looked, "
        "not whether it was right to."
    )
    if any(isinstance(spec, TabularSpec) for spec in predictor.description.modalities):
        text += " A table has no places to map; its values stand with the case."
    blocks: list[Block] = [Prose(text)]
    for task in evaluated.tasks:
        examples = gallery(predictor, source, task, uncertainty=answers[task].uncertainty)
        for cell in CELLS:
            cases = [example_case(e, predictor.num_members) for e in examples if e.cell == cell]
            if cases:
                blocks += [Heading(f"{task}: {cell[0]} and {cell[1]}"), Cases(cases)]
        if examples and not examples[0].trained_without:
            blocks.append(
                Note(
                    "This network never saw a record without one of its modalities: what a "
                    "modality adds is an extrapolation."
                )
            )
    return Section("gallery", "Grad-CAM gallery", blocks if len(blocks) > 1 else [])


def _gates(predictor: Predictor, source: Source, evaluated: Evaluated, folder: Path) -> Section:
    """How strongly MFA and MIFA let each modality through, from the stem to the last stage."""
    rows = np.unique(np.linspace(0, len(source) - 1, MOST_GATED).round().astype(int))
    pixels, present = stack_records(
        [source[int(row)] for row in rows], predictor.description.modalities
    )
    table = gate_rows(gates(predictor.restored, pixels, present=present))
    if not table:
        return Section("gates", "Gates of the attention")
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(table, folder / "gates.csv")
    drawn = [
        panels.gates_panel(table, quantity, title, folder, synthetic=evaluated.synthetic)
        for quantity, title in (
            ("mean", "mean weight of the channels"),
            ("between_records", "deviation of a weight between records"),
        )
    ]
    text = (
        f"Each gate multiplies every channel by one weight. Left: how open they are on average "
        f"over {len(rows):,} test records. Right: how much a weight differs from record to record; "
        "near zero, a gate selects nothing by what it sees. figures/gates.csv holds the figures."
    )
    return Section("gates", "Gates of the attention", [Prose(text), Panels(drawn)])


def _embedding(
    predictor: Predictor, source: Source, answers: Predictions, evaluated: Evaluated, folder: Path
) -> Section:
    count = min(len(answers), MOST_EMBEDDED)
    if count < FEWEST_RECORDS:
        return Section("embedding", "Embedding of the fused features")
    rows = np.unique(np.linspace(0, len(answers) - 1, count).round().astype(int))
    place = embed(_features(predictor, source, rows), seed=evaluated.seed)
    drawn = [
        panels.embedding_panel(
            task,
            place,
            answers[task].truth[rows],
            found.classes,
            folder,
            synthetic=evaluated.synthetic,
        )
        for task, found in evaluated.tasks.items()
    ]
    text = (
        f"What the heads read, of {len(rows):,} test records, laid into a plane by t-SNE and "
        "coloured by the truth. Neighbours are alike; distances between clusters, their sizes and "
        "their places mean nothing."
    )
    if evaluated.num_members > 1:
        text += " Of the first member."
    return Section("embedding", "Embedding of the fused features", [Prose(text), Panels(drawn)])


def _features(predictor: Predictor, source: Source, rows: Sequence[int]) -> np.ndarray:
    """`[n, features]` of the first member; images are read a part at a time."""
    restored = predictor.restored
    first = dataclasses.replace(
        restored,
        params=jax.tree.map(lambda leaf: leaf[:1], restored.params),
        statistics=jax.tree.map(lambda leaf: leaf[:1], restored.statistics),
    )
    parts = []
    # Even parts, so that none is small enough to need a compilation of its own.
    for some in np.array_split(rows, -(-len(rows) // RECORDS_A_PASS)):
        pixels, present = stack_records(
            [source[int(row)] for row in some], predictor.description.modalities
        )
        parts.append(fused_features(first, pixels, present=present)[0])
    return np.concatenate(parts)


def _fitted(image: np.ndarray, side: int) -> np.ndarray:
    """`[h, w, 3]` uint8 with `side` pixels on its longer side."""
    from PIL import Image

    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    scale = side / max(pixels.shape[:2])
    size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    return np.asarray(Image.fromarray(pixels).convert("RGB").resize(size, Image.BICUBIC))


def _fitted_map(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    fitted = Image.fromarray(heat.astype(np.float32)).resize(size[::-1], Image.BILINEAR)
    return np.clip(np.asarray(fitted), 0.0, 1.0)


def _overlaid(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The map over the image, opaque where it is warm."""
    import matplotlib

    colours = matplotlib.colormaps["inferno"](heat)[..., :3] * 255
    weight = 0.75 * heat[..., None]
    return ((1 - weight) * image + weight * colours).round().astype(np.uint8)
