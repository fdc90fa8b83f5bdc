"""Parts of one's own: one file and one line in a registry each, and all else works with them.

A backbone, a fusion, a readout, a data source and a metric are trained, predicted, explained,
evaluated and reported with; a subcommand is called.
"""

from __future__ import annotations

import json
import sys
import types

import jax
import numpy as np
import pytest
from flax import nnx

import drifa_jax
from drifa_jax import cli
from drifa_jax.commands.train import train_and_test
from drifa_jax.config import modality
from drifa_jax.data.record import TaskSpec, image_spec
from drifa_jax.data.records import make_records
from drifa_jax.data.sources.opening import FORMATS
from drifa_jax.evaluate.metrics import METRICS, Metric
from drifa_jax.evaluate.run_evaluation import evaluate_run
from drifa_jax.explain.explanation import explain_records
from drifa_jax.explain.gates import gates
from drifa_jax.models.description import load_description
from drifa_jax.models.fusions.contract import Fused
from drifa_jax.models.gates import PlacedGate
from drifa_jax.models.pooling import average_pool, over_space
from drifa_jax.models.registry import FUSIONS
from drifa_jax.report.evaluation_report import write_all
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


class Drawn:
    """Reads a picture whose level is that of its place, and noise of the same place."""

    def __init__(self, spec):
        self.spec = spec

    def __call__(self, place):
        noise = np.random.default_rng(place).integers(0, 64, self.spec.shape, np.uint8)
        return noise + np.uint8(128 * (place % 2))


def scan_drawn(name, config, quarantine=None):
    """The format `drawn`: sixty pictures, bright or dark, of a person each."""
    spec = image_spec(name, config)
    return make_records(
        spec,
        TaskSpec(config.task, ("dark", "bright")),
        ids=[f"person-{i}" for i in range(60)],
        labels=[i % 2 for i in range(60)],
        places=np.arange(60),
        attributes={"sex": ["fm"[i // 2 % 2] for i in range(60)]},
        reader=Drawn(spec),
        description=f"drawn {name} pictures",
    )


def is_bright(probabilities, labels):
    return labels == 1


def share_of_bright(resamples):
    return resamples.mean(is_bright)


@pytest.fixture
def own_parts(monkeypatch):
    monkeypatch.setitem(FUSIONS, "excitation", Excitation)
    monkeypatch.setitem(FORMATS, "drawn", scan_drawn)
    metric = Metric("share_of_bright", "Share of bright pictures", share_of_bright)
    monkeypatch.setitem(METRICS, metric.name, metric)


def test_a_source_and_a_metric_of_ones_own_reach_the_report(tmp_path, own_parts):
    drawn = modality(height=16, width=16, channels=1, root="-", format="drawn", task="light")
    config = toy.toy_config(
        data={
            "source": "files",
            "modalities": {"mri": drawn, "ct": drawn},
            "pairing": "paired",
            "duplicates": "keep",
        },
        train={"num_epochs": 1},
    )
    run = tmp_path / "run"
    with jax.numpy_dtype_promotion("standard"):
        assert train_and_test(config, run) == 0
        folder = evaluate_run([run], write=write_all, num_samples=2, num_resamples=50)
    task = json.loads((folder / "metrics.json").read_text())["tasks"]["light"]
    found = task["metrics"]["share_of_bright"]
    assert found["value"] == pytest.approx(0.5, abs=0.2)
    assert found["low"] <= found["value"] <= found["high"]
    report = (folder / "report.html").read_text()
    assert "Share of bright pictures" in report and "sex" in report


def test_parts_of_ones_own_are_trained_predicted_with_and_explained(tmp_path, own_parts):
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


def test_a_subcommand_of_ones_own_is_called(monkeypatch, capsys):
    module = types.ModuleType("drifa_jax.commands.greet")
    module.add_arguments = lambda parser: parser.add_argument("name")
    module.run = lambda options: print(f"hello {options.name}") or 0
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.SUBCOMMANDS, "greet", "say hello")
    assert cli.main(["greet", "ward"]) == 0
    assert capsys.readouterr().out == "hello ward\n"
