"""Small image folders written for the tests; nothing here is a real picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_image(path: Path, seed: int, size: tuple[int, int] = (20, 24), mode: str = "L") -> Path:
    """A picture of its own for every seed, `size` as (height, width)."""
    shape = (*size, 3) if mode == "RGB" else size
    pixels = np.random.Generator(np.random.Philox(seed)).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folders(tmp_path):
    """Writes `{relative folder: number of images}` below a fresh root and returns the root."""

    def write(counts: dict[str, int], root: str = "images", name: str = "{number}.png") -> Path:
        seed = 0
        (tmp_path / root).mkdir(parents=True, exist_ok=True)
        for folder, count in counts.items():
            (tmp_path / root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                seed += 1
                write_image(tmp_path / root / folder / name.format(number=number), seed)
        return tmp_path / root

    return write
