"""Finished runs stay readable: one of each layout is kept, and must load in every later release.

So must what another JAX exported, by its program or, where this JAX cannot read that, anew.

`tests/golden/make_run.py` makes a run of the present layout.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from packaging.version import Version

import drifa_jax
from drifa_jax.predict.exported import load_exported
from tests.golden.make_run import answers, pictures

RUNS = Path(__file__).parents[1] / "golden" / "finished"
EXPORTED = Path(__file__).parents[1] / "golden" / "exported"


@pytest.mark.parametrize("layout", sorted(path.name for path in RUNS.iterdir()))
def test_a_run_of_an_earlier_release_answers_as_it_did(layout):
    run = RUNS / layout
    known = json.loads((run / "answers.json").read_text())
    predictor = drifa_jax.load(run, num_samples=4, post_processing=False)
    found = answers(predictor)
    assert list(found) == list(known)
    for task, probabilities in known.items():
        # Other compilers round differently.
        np.testing.assert_allclose(found[task], probabilities, atol=1e-6)


@pytest.mark.parametrize("made_by", sorted(path.stem for path in EXPORTED.iterdir()))
def test_a_file_that_another_jax_exported_answers_as_its_run(made_by):
    network = load_exported(EXPORTED / f"{made_by}.drifa")
    # JAX reads what was exported up to six months before its release, and 0.11 what 0.12 wrote;
    # 0.10 reads nothing of a later one.
    later = Version(made_by.removeprefix("jax-")) > Version(jax.__version__)
    assert network.rebuilt == (later and Version(jax.__version__) < Version("0.11"))
    shapes = {
        name: tuple(spec[side] for side in ("height", "width", "channels"))
        for name, spec in network.card["modalities"].items()
    }
    found = network(pictures(shapes), ["a", "b"])
    known = json.loads((RUNS / "two-items" / "answers.json").read_text())
    assert found.keys() == known.keys()
    for task, probabilities in known.items():
        # Other compilers round differently.
        np.testing.assert_allclose(found[task].probabilities, probabilities, atol=1e-6)
