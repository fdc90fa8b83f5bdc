"""A backbone, a fusion and a readout of one's own: one line in a registry each, and all works."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

import drifa_jax
from drifa_jax.commands.train import train_and_test
from drifa_jax.explain.explanation import explain_records
from drifa_jax.explain.gates import gates
from drifa_jax.models.description import load_description
from drifa_jax.models.fusions.contract import Fused
from drifa_jax.models.gates import PlacedGate
from drifa_jax.models.pooling import average_pool, over_space
from drifa_jax.models.registry import FUSIONS
from tests.train import toy


class Excitation(nnx.Module):
    """Each modality is gated by its own pooled vector."""

    def __init__(self, channels, *, last, options, rngs):
        self.weights = nnx.Dict({m: toy.kernel(rngs, c, c) for m, c in channels.items()})

    def __call__(self, features, present):
        refined, found = {}, []
        for m, x in features.items():
            gate = jax.nn.sigmoid(average_pool(x) @ self.weights[m][...])
            refined[m] = x * over_space(gate, x)
            found.append(PlacedGate(gate, {m: np.ones(gate.shape[-1])}, "excitation", modality=m))
        return Fused(refined, gates=tuple(found))


@pytest.fixture
def excitation(monkeypatch):
    monkeypatch.setitem(FUSIONS, "excitation", Excitation)


def test_parts_of_ones_own_are_trained_predicted_with_and_explained(tmp_path, excitation):
    config = toy.toy_config(
        model={"backbone": "toy", "readout": "toy", "fusion": "excitation"},
        train={"num_epochs": 1},
    )
    run = tmp_path / "run"
    with jax.numpy_dtype_promotion("standard"):
        assert train_and_test(config, run) == 0
        predictor = drifa_jax.load(run)
        images = {m: [np.full((16, 16), 9 * i, np.uint8) for i in range(3)] for m in ("mri", "ct")}
        prediction = predictor(images)["tumour"]
        np.testing.assert_allclose(
            np.asarray(prediction.uncertainty.probabilities).sum(-1), 1.0, rtol=1e-5
        )
        pixels, present = predictor.read(images)
        explained = explain_records(predictor, ["a", "b", "c"], pixels, present, "tumour")
        found = gates(predictor.restored, pixels)
    assert load_description(run).options.fusion == "excitation"
    assert set(explained[0].maps) == {"mri", "ct"}
    assert [(g.kind, g.modality, g.place) for g in found] == [
        ("excitation", "ct", "after stage 0"), ("excitation", "mri", "after stage 0"),
    ]  # fmt: skip
    assert found[0].values.shape == (1, 3, 4)
