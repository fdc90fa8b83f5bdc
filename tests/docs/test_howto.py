"""Every page that answers a question runs as it stands, on one run that all of them share."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import jax
import pytest

from drifa_jax.cli import main

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
HOWTO = sorted(f"howto/{path.stem}" for path in (DOCS / "howto").glob("*.md"))
PAGES = [*HOWTO, "faq", "tracking"]
PHANTOMS = {"num_train": 16, "num_validation": 8, "num_test": 8}
SMALL = [f"--config.data.phantoms.{name}={count}" for name, count in PHANTOMS.items()] + [
    f"--config.data.modalities.{modality}.{side}=32"
    for modality in ("mri", "ct")
    for side in ("height", "width")
]
BRIEF = ["train.num_epochs=1", "train.batch_size=8", "uncertainty.fit_decisions=false"]
CHEAP = [*BRIEF, "train.frozen=[branches]", "model.fuse_at=[-1]", "uncertainty.num_mc_samples=2"]

TINY = ["model.backbone=resnet10", "model.width=2"]


@pytest.fixture(scope="module")
def place(finished_run, tmp_path_factory):
    """A folder in which `drifa demo` has left its run, a tiny one."""
    folder = tmp_path_factory.mktemp("howto")
    shutil.copytree(finished_run, folder / "runs" / "brain-quick")
    return folder


def small(arguments: list[str]) -> list[str]:
    """A command of a page with embedded phantoms, at a size that takes seconds."""
    if "brain:quick" not in arguments and arguments[0] != "demo":
        return arguments
    fields = {"train": CHEAP, "demo": [*CHEAP, *TINY]}.get(arguments[0], [])
    return [*arguments, *SMALL, *(f"--config.{field}" for field in fields)]


# MLflow and SQLAlchemy warn among themselves.
OF_OTHERS = {"tracking": pytest.mark.filterwarnings("default")}


@pytest.mark.parametrize("page", [pytest.param(p, marks=OF_OTHERS.get(p, ())) for p in PAGES])
def test_a_page_runs_as_it_stands(page, place, monkeypatch):
    if page == "howto/pretrained":
        pytest.importorskip("torch")
    monkeypatch.chdir(place)
    text = (DOCS / f"{page}.md").read_text()
    blocks = re.findall(r"```(\w*)\n(.*?)```", text, flags=re.S)
    assert blocks and text.index("```") < 80, "a page starts with its command"
    with jax.numpy_dtype_promotion("standard"):
        for language, block in blocks:
            if language == "bash":
                for line in block.splitlines():
                    command, *arguments = shlex.split(line)
                    assert command == "drifa"
                    assert main(small(arguments)) == 0, line
            elif file := re.match(r"# (\w+\.py)\n", block):
                Path(file[1]).write_text(block)
            else:
                exec(compile(block, f"{page}.md", "exec"), {})


def test_every_page_is_reached_from_the_first():
    index = (DOCS / "index.md").read_text()
    assert not [page for page in PAGES if f"({page}.md)" not in index]
