"""Answers in chunks: the same as in one piece, and not lost when the process is."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from drifa_jax.data.sources.phantoms import PhantomSource
from drifa_jax.errors import UserError
from drifa_jax.evaluate.records import answer_records
from drifa_jax.predictions.table import Predictions, Provenance, task_predictions
from drifa_jax.uncertainty.measures import from_samples


class Network:
    """Stands in for a predictor: what it says of a record depends on its pixels alone."""

    post_processing = None

    def __init__(self, source, stop_after=None, identity="7"):
        self.description = SimpleNamespace(
            modalities=source.modalities, tasks={t.name: t.classes for t in source.tasks}
        )
        self.provenance = Provenance(identity=identity, num_samples=2)
        self.calls, self.stop_after = 0, stop_after

    def predict(self, pixels, present, record_ids):
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        found = {}
        for task, classes in self.description.tasks.items():
            mean = pixels["mri"].reshape(len(record_ids), -1).mean(1) / 255
            logits = np.outer(mean, np.arange(len(classes)) + 1.0)
            p = np.exp(np.stack([logits, 2 * logits])[None])
            found[task] = task_predictions(classes, from_samples(p / p.sum(-1, keepdims=True)))
        return Predictions(tuple(record_ids), found, self.provenance, present=present)


@pytest.fixture(scope="module")
def source():
    return PhantomSource("test", 11, 0, 16)


def answers_of(network, source, folder):
    return answer_records(network, source, folder, records_a_chunk=4)


def assert_same(one, other):
    assert one.record_ids == other.record_ids
    for task, found in one.tasks.items():
        np.testing.assert_array_equal(found.probabilities, other[task].probabilities)
        np.testing.assert_array_equal(found.truth, other[task].truth)


def test_chunks_together_are_the_whole_with_labels_and_attributes(source, tmp_path):
    found, num_resumed = answers_of(Network(source), source, tmp_path / "a")
    whole, _ = answer_records(Network(source), source, tmp_path / "b", records_a_chunk=100)
    assert_same(found, whole)
    np.testing.assert_array_equal(found["tumour"].truth, source.labels("tumour"))
    assert {name: values[3] for name, values in found.attributes.items()} == source.attributes(3)
    assert found.present["ct"].all() and num_resumed == 0


def test_an_interrupted_evaluation_goes_on_and_ends_as_if_nothing_had_been(source, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        answers_of(Network(source, stop_after=2), source, tmp_path / "a")
    network = Network(source)
    found, num_resumed = answers_of(network, source, tmp_path / "a")
    assert (network.calls, num_resumed) == (1, 8)
    assert_same(found, answers_of(Network(source), source, tmp_path / "b")[0])


def test_a_damaged_chunk_is_predicted_again(source, tmp_path):
    answers_of(Network(source), source, tmp_path / "a")
    chunk = sorted((tmp_path / "a").glob("chunk-*.parquet"))[1]
    chunk.write_bytes(chunk.read_bytes()[:100])
    network = Network(source)
    found, _ = answers_of(network, source, tmp_path / "a")
    assert network.calls == 1
    assert_same(found, answers_of(Network(source), source, tmp_path / "b")[0])


def test_other_weights_or_records_start_afresh(source, tmp_path):
    answers_of(Network(source), source, tmp_path / "a")
    network = Network(source, identity="8")
    assert answers_of(network, source, tmp_path / "a")[1] == 0
    shorter = PhantomSource("test", 10, 0, 16)
    assert answers_of(Network(shorter, identity="8"), shorter, tmp_path / "a")[1] == 0


def test_no_records_are_named(source, tmp_path):
    class Empty:
        description = "nothing"

        def __len__(self):
            return 0

    with pytest.raises(UserError, match="nothing holds no records"):
        answer_records(Network(source), Empty(), tmp_path)
