"""Contact sheets: a few records of every class, as stored and as augmentation makes them."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from drifa_jax.data.pipeline import Transform
from drifa_jax.data.record import Source, TabularSpec
from drifa_jax.inline_pictures import data_uri

TILE = 96
GAP = 4
SHOWN_SLICES = 3
"""Of each volume, without the first and the last slice."""


@dataclass(frozen=True)
class Strip:
    """One row of tiles of one class and modality; the first is as stored, the rest augmented."""

    split: str
    task: str
    kind: str
    modality: str
    tiles: tuple[np.ndarray, ...]


def strips(
    sources: Mapping[str, Source],
    *,
    per_class: int = 4,
    transform: Transform | None = None,
    num_augmented: int = 1,
    seed: int = 0,
) -> list[Strip]:
    """Rows for every split, task, class and modality that has such a record.

    With a transform, each record of "train" is followed by `num_augmented` versions of it, drawn
    as training would draw them; held-out splits are never augmented.
    """
    rows = []
    for split, source in sources.items():
        pictures = [s.name for s in source.modalities if not isinstance(s, TabularSpec)]
        for task in source.tasks:
            labels = source.labels(task.name)
            for label, kind in enumerate(task.classes):
                tiles: dict[str, list[np.ndarray]] = {name: [] for name in pictures}
                for index in np.flatnonzero(labels == label)[:per_class].tolist():
                    record = source[index]
                    shown = [record]
                    if transform is not None and split == "train":
                        for number in range(num_augmented):
                            key = np.random.SeedSequence([seed, index, number])
                            generator = np.random.Generator(np.random.Philox(key))
                            shown.append(transform(record, generator))
                    for picture in shown:
                        for name in pictures:
                            if name in picture.images:
                                tiles[name] += _tiles(picture.images[name])
                rows += [
                    Strip(split, task.name, kind, name, tuple(images))
                    for name, images in tiles.items()
                    if images
                ]
    return rows


def write_png(path: Path, rows: list[Strip], title: str) -> None:
    """All strips below each other, with their names."""
    widest = max(len(row.tiles) for row in rows)
    label_width = 260
    width = label_width + widest * (TILE + GAP)
    sheet = np.full((30 + len(rows) * (TILE + GAP), width, 3), 255, np.uint8)
    _write(sheet, title, 6, 20)
    for number, row in enumerate(rows):
        top = 30 + number * (TILE + GAP)
        for line, text in enumerate((row.split, f"{row.task}: {row.kind}", row.modality)):
            _write(sheet, text, 6, top + 24 + 20 * line)
        for place, tile in enumerate(row.tiles):
            left = label_width + place * (TILE + GAP)
            sheet[top : top + TILE, left : left + TILE] = tile
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_png(sheet))


def write_html(path: Path, rows: list[Strip], title: str) -> None:
    """One self-contained page."""
    lines = []
    for row in rows:
        tiles = "".join(f'<img alt="" src="{data_uri(_png(tile))}">' for tile in row.tiles)
        cells = (row.split, row.task, row.kind, row.modality)
        names = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr>{names}<td>{tiles}</td></tr>")
    safe = html.escape(title)
    head = "<th>split</th><th>task</th><th>class</th><th>modality</th><th>images</th>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{safe}</title>'
        "<style>body{font-family:sans-serif}td{padding:2px 8px}img{margin:1px}</style>"
        f"<h1>{safe}</h1><table><tr>{head}</tr>{''.join(lines)}</table></html>\n"
    )


def _tiles(image: np.ndarray) -> list[np.ndarray]:
    """One tile of a picture; of a volume one of each of a few slices, evenly spaced."""
    if image.ndim == 3:
        return [_tile(image)]
    numbers = np.linspace(0, len(image) - 1, SHOWN_SLICES + 2)[1:-1].round().astype(int)
    return [_tile(image[number]) for number in numbers]


def _tile(image: np.ndarray) -> np.ndarray:
    resized = cv2.resize(image, (TILE, TILE), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(resized, cv2.COLOR_GRAY2RGB) if resized.ndim == 2 else resized


def _write(sheet: np.ndarray, text: str, x: int, y: int) -> None:
    cv2.putText(sheet, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()
