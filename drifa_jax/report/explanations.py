"""The sections that show why: Grad-CAM of telling records, and the fused features in a plane."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drifa_jax.data.dataset import Dataset
from drifa_jax.data.record import Source
from drifa_jax.evaluate.records import Answers
from drifa_jax.explain.embedding import FEWEST_RECORDS, embed, fused_features
from drifa_jax.explain.gallery import CELLS, Example, gallery
from drifa_jax.predict.predictor import Predictor
from drifa_jax.report import panels
from drifa_jax.report.blocks import (
    Block,
    Heading,
    Note,
    Panels,
    Picture,
    Pictures,
    Prose,
    Section,
    picture,
)
from drifa_jax.report.evaluated import Evaluated

MOST_EMBEDDED = 1000
"""Test records in the plane, evenly spaced among all: t-SNE takes long and points cover points."""

RECORDS_A_PASS = 16
SIDE = 176
"""Pixels of the longer side of a picture in the report."""


def explanation_sections(
    predictor: Predictor,
    dataset: Dataset,
    answers: Answers,
    evaluated: Evaluated,
    folder: Path,
) -> list[Section]:
    """The gallery and the embedding of the test records.

    Test: tests/report/test_run_evaluation.py.
    """
    return [
        _gallery(predictor, dataset.test, answers, evaluated),
        _embedding(predictor, dataset.test, answers, evaluated, folder),
    ]


def gallery_pictures(example: Example) -> list[Picture]:
    """One picture a modality: the image, and beside it the same under its map."""
    shown = []
    for modality, image in example.images.items():
        grey = _fitted(image)
        heat = _fitted_map(example.maps[modality].mean, grey.shape[:2])
        pair = np.concatenate([grey, _overlaid(grey, heat)], axis=1)
        verdict = "right" if example.true == example.predicted else "wrong"
        shown.append(
            picture(
                pair,
                alt=f"{modality} of {example.record_id}, left as it is, right under the Grad-CAM "
                f"of {example.predicted} ({verdict}).",
                caption=f"{modality}: {example.predicted} {example.probability:.2f}, truth "
                f"{example.true}, entropy {example.predictive_entropy:.2f} nats. "
                f"{_contribution(example, modality)}{example.record_id}",
            )
        )
    return shown


def _gallery(
    predictor: Predictor, source: Source, answers: Answers, evaluated: Evaluated
) -> Section:
    blocks: list[Block] = [
        Prose(
            "Grad-CAM colours what raised the class that was called: warm is more. Uncertain means "
            "above the median entropy. Probabilities here are uncalibrated. A map shows where the "
            "network looked, not whether it was right to."
        )
    ]
    for task in evaluated.tasks:
        examples = gallery(predictor, source, task, uncertainty=answers.uncertainty[task])
        for cell in CELLS:
            pictures = [p for e in examples if e.cell == cell for p in gallery_pictures(e)]
            if pictures:
                blocks += [Heading(f"{task}: {cell[0]} and {cell[1]}"), Pictures(pictures)]
        if examples and not examples[0].trained_without:
            blocks.append(
                Note(
                    "This network never saw a record without one of its modalities: the "
                    "contributions of modalities are extrapolations."
                )
            )
    return Section("gallery", "Grad-CAM gallery", blocks if len(blocks) > 1 else [])


def _embedding(
    predictor: Predictor, source: Source, answers: Answers, evaluated: Evaluated, folder: Path
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
            answers.labels[task][rows],
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
    """`[n, features]` of the first member, in passes of one compiled shape."""
    specs, parts = predictor.description.modalities, []
    for start in range(0, len(rows), RECORDS_A_PASS):
        some = rows[start : start + RECORDS_A_PASS]
        pixels = {s.name: np.zeros((RECORDS_A_PASS, *s.shape), np.uint8) for s in specs}
        present = {s.name: np.zeros(RECORDS_A_PASS, bool) for s in specs}
        for place, row in enumerate(some):
            for name, image in source[int(row)].images.items():
                pixels[name][place], present[name][place] = image, True
        # Rows that fill the pass hold every modality and are cut off.
        for held in present.values():
            held[len(some) :] = True
        found = fused_features(predictor.restored, pixels, present=present)
        parts.append(np.asarray(found)[0, : len(some)])
    return np.concatenate(parts)


def _contribution(example: Example, modality: str) -> str:
    share = example.shapley.get(modality)
    return "" if share is None else f"Contributes {share:+.2f}. "


def _fitted(image: np.ndarray) -> np.ndarray:
    """`[h, w, 3]` uint8 with `SIDE` pixels on its longer side."""
    from PIL import Image

    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    scale = SIDE / max(pixels.shape[:2])
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
