"""Photographs the page of `drifa plan`: `python docs/figures/plan_page.py`.

The images are SYNTHETIC phantoms, written as class folders. Needs the extra "browser" and Debian's
chromium.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from drifa_jax.cli import main as drifa
from drifa_jax.data.sources.phantoms import PhantomSource

PICTURE = Path(__file__).resolve().parents[1] / "images" / "plan.png"
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars")
SIZE = {"width": 900, "height": 1500}
CLASSES = {"mri": "tumour", "ct": "stroke"}


def write_folders(root: Path) -> None:
    """Class folders of two modalities; two images of each of 40 heads, called by its number."""
    source = PhantomSource("train", 80, 0, 96)
    tasks = {task.name: task.classes for task in source.tasks}
    for number in range(80):
        record = source[number]
        for modality, task in CLASSES.items():
            folder = root / modality / tasks[task][record.labels[task]]
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"patient{number // 2:02d}_{number % 2}.png"
            Image.fromarray(record.images[modality][..., 0]).save(file)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_folders(Path("data"))
        if drifa(["plan", "mri=data/mri", "ct=data/ct", "--no-measure"]):
            raise SystemExit(1)
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=list(FLAGS))
            page = browser.new_page(viewport=SIZE)
            page.goto(Path("plan.html").resolve().as_uri())
            page.screenshot(path=PICTURE)
            browser.close()
    # A page has few colours; a palette keeps the repository small.
    Image.open(PICTURE).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        PICTURE, optimize=True
    )


if __name__ == "__main__":
    main()
