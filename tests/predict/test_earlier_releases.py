"""Finished runs stay readable: one of each layout is kept, and must load in every later release.

`tests/golden/make_run.py` makes a run of the present layout.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import drifa_jax
from tests.golden.make_run import answers

RUNS = Path(__file__).parents[1] / "golden" / "finished"


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
