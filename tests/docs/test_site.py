"""The documentation builds as a site, with every warning an error."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_reference_comes_from_the_docstrings(site):
    page = (site / "reference" / "index.html").read_text()
    for name in ("models.mfa.MFA", "models.building.drifa_net", "predict.predictor.load"):
        assert f'id="drifa_jax.{name}"' in page
    assert "Multi-branch fusion attention" in page


def test_pages_fetch_nothing_from_other_servers(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        fetched = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="https?://[^"]*"', text)
        fetched = [tag for tag in fetched if 'rel="canonical"' not in tag]
        assert not fetched, (page, fetched)


def test_the_map_of_the_paper_names_files_that_exist():
    text = (ROOT / "docs" / "paper_map.md").read_text()
    named = set(
        re.findall(
            r"`((?:models|train|uncertainty|predict|explain|ablate|tests)/[\w/]+(?:\.py|/)?)`", text
        )
    )
    assert len(named) > 20
    for name in named:
        folder = ROOT if name.startswith("tests") else ROOT / "drifa_jax"
        assert (folder / name).exists(), name
