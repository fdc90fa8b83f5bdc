"""Names are data: no terminal, spreadsheet, figure or page obeys them."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import xml.etree.ElementTree as tree

import numpy as np
import pytest

from drifa_jax.console import harmless, printable, progress, say
from drifa_jax.report.blocks import Section, Table
from drifa_jax.report.html import render
from drifa_jax.report.learning import learning_curves
from drifa_jax.report.panels import confusion_panel, roc_panel
from drifa_jax.train.console import TrainingDisplay

HOSTILE = (
    "nodule [benign]",
    "x[/b]",
    "<script>alert(1)</script>",
    "=HYPERLINK(1)",
    "$\\frac{$",
    "cost $x$ and $y$",
    "_under_score",
    "esc\x1b[31m",
    "nul\x00",
    "right\u202eleft",
    ":warning:",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_line_shows_a_name_and_obeys_nothing_in_it(name, capsys):
    say(f"class {name}")
    shown = capsys.readouterr().err
    assert shown == f"class {printable(name)}\n"
    assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e\u2066-\u2069]", shown)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bar_and_the_display_of_training_take_any_name(name, monkeypatch, capsys):
    with progress(name, 10) as advance:
        advance(10)
    assert printable(name) in capsys.readouterr().err
    display = TrainingDisplay(4, 0, 2, 8)
    display._console.file = io.StringIO()
    display.say(name)
    assert printable(name) in display._console.file.getvalue()


@pytest.mark.parametrize("start", ["=1+1", "+cmd", "-cmd", "@sum", "\tx"])
def test_a_cell_is_no_formula(start):
    assert harmless(start) == "'" + start
    assert harmless("-1.5") == "-1.5" and harmless("plain") == "plain" and harmless(3) == 3


def test_cells_hold_nothing_that_a_terminal_obeys():
    assert harmless("\x1b[31mred\u202egnp.exe") == "\N{REPLACEMENT CHARACTER}[31mred" + (
        "\N{REPLACEMENT CHARACTER}gnp.exe"
    )
    assert harmless("n\u00e9vus, \u05d0\u05d1\n2") == "n\u00e9vus, \u05d0\u05d1\n2"


@pytest.mark.filterwarnings("error:Glyph")
@pytest.mark.parametrize("name", HOSTILE)
def test_figures_draw_names_as_they_are(name, tmp_path):
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    labels = np.array([0, 1, 0, 1])
    classes = (name, "other")
    roc_panel("task", probabilities, labels, classes, (1.0, 1.0), tmp_path, synthetic=True)
    confusion_panel("task", [[1, 0], [0, 1]], classes, tmp_path, synthetic=True)
    for path in tmp_path.glob("*.svg"):
        words = " ".join(tree.fromstring(path.read_bytes()).itertext())
        assert printable(name)[:8] in words
    lines = [
        {"split": split, "epoch": e, f"{name}/loss": 1.0, f"{name}/accuracy": 0.5}
        for split in ("train", "validation")
        for e in (1, 2)
    ]
    learning_curves(lines, tmp_path / "curves.png", synthetic=True)
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_page_escapes_names():
    table = Table("names", ("name",), [(name,) for name in HOSTILE])
    page = render("t", "s", [Section("a", "A", [table])], synthetic=False, made="now")
    assert "<script>alert(1)" not in page
    assert page == printable(page)


def test_a_reader_that_leaves_a_pipe_sees_no_traceback():
    command = [sys.executable, "-m", "drifa_jax.cli", "ablate", "configs/brain.py:quick", "--list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert "Traceback" not in process.stderr.read().decode()
