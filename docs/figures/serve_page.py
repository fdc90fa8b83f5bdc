"""Photographs the page of `drifa serve`: `python docs/figures/serve_page.py runs/brain-quick`.

The run is that of the quick start; the case is SYNTHETIC, drawn by the page itself. Needs the extra
"browser" and Debian's chromium.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).resolve().parents[1] / "images" / "serve.png"
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars")
SIZE = {"width": 1280, "height": 1080}


def photograph(address: str) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=list(FLAGS))
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(120_000)
        page.goto(address)
        page.get_by_role("button", name="Try a drawn case").click()
        page.wait_for_selector("#opacity")
        page.get_by_label("Strength of the map").fill("75")
        page.evaluate("document.activeElement.blur()")
        page.mouse.move(0, 0)
        page.screenshot(path=PICTURE)
        browser.close()
    # A page has few colours; a palette keeps the repository small.
    Image.open(PICTURE).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        PICTURE, optimize=True
    )


def main() -> None:
    command = [sys.executable, "-m", "drifa_jax.cli", "serve", sys.argv[1], "--port", "0"]
    server = subprocess.Popen([*command, "--batch", "1"], stderr=subprocess.PIPE, text=True)
    try:
        address = ""
        for line in server.stderr:
            if found := re.search(r"http://\S+/", line):
                address = found[0]
            if line.startswith("Ready"):
                break
        photograph(address)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
