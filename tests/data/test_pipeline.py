"""The stream is a pure function of (seed, step), whatever reads it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from drifa_jax.data.pairing import combine
from drifa_jax.data.pipeline import (
    class_balanced_weights,
    evaluation_batches,
    steps_per_epoch,
    training_batches,
)
from drifa_jax.data.record import MISSING_LABEL, ModalitySpec, Record, TabularSpec, TaskSpec
from drifa_jax.data.transforms import Augment, Augmentation

AUGMENT = Augment(
    {"scan": Augmentation(rotation_degrees=20, shift_pixels=2, noise=0.1, flip_left_right=0.5)}
)


class Numbered:
    """Record i is a picture that says i; every third lacks the scan, every fourth its label."""

    description, synthetic = "numbered records", True
    tasks = (TaskSpec("parity", ("even", "odd")),)

    def __init__(self, size: int, modality: str = "scan", gaps: bool = True):
        self.size, self.gaps = size, gaps
        self.modalities = (ModalitySpec(modality, 8, 6, 1), TabularSpec(f"{modality}_table", 2))

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        scan, table = self.modalities
        images = {table.name: np.array([index, 0.5], np.float32)}
        if not (self.gaps and index % 3 == 2):
            images[scan.name] = np.full(scan.shape, index, np.uint8)
        return Record(
            self.record_id(index), self.record_id(index), images, {"parity": self._label(index)}
        )

    def _label(self, index):
        return MISSING_LABEL if self.gaps and index % 4 == 3 else index % 2

    def labels(self, task):
        return np.array([self._label(i) for i in range(self.size)], np.int32)

    def record_id(self, index):
        return f"record-{index}"

    group_id = record_id

    def attributes(self, index):
        return {}


def take(batches, number):
    batches = iter(batches)
    return [next(batches) for _ in range(number)]


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, dict):
            assert_equal(value, second[name])
        else:
            np.testing.assert_array_equal(value, second[name])


def test_training_stream_holds_every_record_once_an_epoch_in_a_fresh_order():
    batches = take(training_batches(Numbered(12), batch_size=4, seed=0), 6)
    epochs = np.concatenate([b["index"] for b in batches]).reshape(2, 12)
    assert (np.sort(epochs, axis=1) == np.arange(12)).all()
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[0] != np.arange(12)).any()


def test_batch_follows_the_contract():
    batch = take(training_batches(Numbered(12), batch_size=4, seed=3), 1)[0]
    assert set(batch) == {"images", "labels", "present", "valid", "index"}
    assert batch["images"]["scan"].shape == (4, 8, 6, 1)
    assert batch["images"]["scan"].dtype == np.uint8
    assert batch["images"]["scan_table"].dtype == np.float32
    assert batch["labels"]["parity"].dtype == np.int32
    assert batch["index"].dtype == np.int64
    assert batch["valid"].all()
    np.testing.assert_array_equal(batch["present"]["scan"], batch["index"] % 3 != 2)
    assert batch["present"]["scan_table"].all()
    expected = np.where(batch["present"]["scan"], batch["index"], 0)
    np.testing.assert_array_equal(batch["images"]["scan"][:, 0, 0, 0], expected)


def test_stream_started_at_a_step_equals_the_stream_that_got_there():
    straight = take(training_batches(Numbered(12), batch_size=4, seed=1, transform=AUGMENT), 6)
    resumed = take(
        training_batches(Numbered(12), batch_size=4, seed=1, transform=AUGMENT, start_step=4), 2
    )
    assert_equal(straight[4], resumed[0])
    assert_equal(straight[5], resumed[1])


def test_iterator_state_is_restored_exactly():
    iterator = training_batches(Numbered(12), batch_size=4, seed=1, transform=AUGMENT)
    take(iterator, 3)
    state = iterator.get_state()
    expected = take(iterator, 2)
    fresh = training_batches(Numbered(12), batch_size=4, seed=1, transform=AUGMENT)
    fresh.set_state(state)
    for one, other in zip(expected, take(fresh, 2), strict=True):
        assert_equal(one, other)


def test_stream_is_the_same_with_workers():
    """Five batches of two; another number of workers costs seconds of imports each."""
    options = {"batch_size": 4, "seed": 2, "transform": AUGMENT, "start_step": 1}
    expected = take(training_batches(Numbered(12), **options), 5)
    iterator = training_batches(Numbered(12), num_workers=2, **options)
    got = take(iterator, 5)
    iterator.close()
    for one, other in zip(expected, got, strict=True):
        assert_equal(one, other)


def test_processes_get_slices_of_the_same_global_batch():
    options = {"batch_size": 4, "seed": 5, "transform": AUGMENT}
    whole = take(training_batches(Numbered(12), **options), 3)
    parts = [
        take(training_batches(Numbered(12), process_index=p, process_count=2, **options), 3)
        for p in range(2)
    ]
    for step in range(3):
        for image in ("scan", "scan_table"):
            joined = np.concatenate([parts[p][step]["images"][image] for p in range(2)])
            np.testing.assert_array_equal(whole[step]["images"][image], joined)


def test_seeds_and_epochs_draw_different_orders_and_pictures():
    first = take(training_batches(Numbered(12), batch_size=12, seed=0, transform=AUGMENT), 2)
    other = take(training_batches(Numbered(12), batch_size=12, seed=1, transform=AUGMENT), 1)[0]
    assert (first[0]["index"] != other["index"]).any()
    by_record = [b["images"]["scan"][np.argsort(b["index"])] for b in first]
    assert (by_record[0] != by_record[1]).any()


def test_random_pairs_meet_fresh_partners_and_use_every_record():
    sources = {"a": Numbered(6, "a", gaps=False), "b": Numbered(4, "b", gaps=False)}
    pairs = combine("random", sources, evaluation=False)
    batches = take(training_batches(pairs, batch_size=6, seed=0), 4)
    left = np.stack([b["images"]["a_table"][:, 0] for b in batches])
    right = np.concatenate([b["images"]["b_table"][:, 0] for b in batches])
    assert (np.sort(left, axis=1) == np.arange(6)).all()
    assert (np.sort(right.reshape(6, 4), axis=1) == np.arange(4)).all()
    partners = [
        dict(zip(*pair, strict=True)) for pair in zip(left, right.reshape(4, 6), strict=True)
    ]
    assert any(one != partners[0] for one in partners[1:])


def test_balanced_sampling_draws_classes_equally_often():
    source = Numbered(40, gaps=False)
    weights = np.where(np.arange(40) < 4, 1.0, 0.0)
    batch = take(training_batches(source, batch_size=40, seed=0, balanced=weights), 1)[0]
    assert set(batch["index"]) <= set(range(4))
    skewed = Numbered(40)
    drawn = [
        b["labels"]["parity"]
        for b in take(training_batches(skewed, batch_size=40, seed=0, balanced="parity"), 25)
    ]
    labels = np.concatenate(drawn)
    # 20 even and 10 odd records: of 1000 draws 500 are odd, standard deviation 16.
    assert MISSING_LABEL not in labels
    assert abs((labels == 1).sum() - 500) < 80


def test_random_pairs_are_balanced_in_the_source_that_the_task_labels():
    skewed = Numbered(40, "a")
    skewed.tasks = (TaskSpec("kind", ("even", "odd")),)
    skewed.labels = lambda task: np.array([0] * 36 + [1] * 4, np.int32)
    pairs = combine("random", {"a": skewed, "b": Numbered(20, "b")}, evaluation=False)
    batches = take(training_batches(pairs, batch_size=20, seed=0, balanced="kind"), 50)
    rare = np.concatenate([b["images"]["a_table"][:, 0] >= 36 for b in batches])
    # Of 1000 draws 500 are of the rare class, standard deviation 16.
    assert abs(rare.sum() - 500) < 80
    partners = np.concatenate([b["images"]["b_table"][:, 0] for b in batches]).reshape(50, 20)
    assert (np.sort(partners, axis=1) == np.arange(20)).all()
    with pytest.raises(ValueError, match="balanced names 'colour'"):
        training_batches(pairs, batch_size=20, seed=0, balanced="colour")
    with pytest.raises(ValueError, match="name a task"):
        training_batches(pairs, batch_size=20, seed=0, balanced=np.ones(40))


def test_class_balanced_weights_give_each_class_the_same_total():
    weights = class_balanced_weights(Numbered(40), "parity")
    labels = Numbered(40).labels("parity")
    assert weights[labels == 0].sum() == pytest.approx(weights[labels == 1].sum())
    assert (weights[labels == MISSING_LABEL] == 0).all()


@pytest.mark.parametrize(("size", "process_count"), [(8, 1), (9, 1), (3, 2), (13, 2), (5, 4)])
def test_evaluation_reads_every_record_once_and_pads_the_last_batch(size, process_count):
    rows = []
    for process in range(process_count):
        batches = evaluation_batches(
            Numbered(size), batch_size=4, process_index=process, process_count=process_count
        )
        for batch in batches:
            assert batch["valid"].shape == (4 // process_count,)
            assert (batch["index"][~batch["valid"]] == -1).all()
            assert (batch["labels"]["parity"][~batch["valid"]] == MISSING_LABEL).all()
            rows.extend(batch["index"][batch["valid"]].tolist())
    assert sorted(rows) == list(range(size))


def test_evaluation_is_the_same_with_workers():
    expected = list(evaluation_batches(Numbered(9), batch_size=4))
    got = list(evaluation_batches(Numbered(9), batch_size=4, num_workers=2))
    assert len(expected) == len(got) == 3
    for one, other in zip(expected, got, strict=True):
        assert_equal(one, other)


def test_steps_per_epoch_is_whole_batches():
    assert steps_per_epoch(10, 4) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 13}, "batch_size is 13 but there are only 12 records"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": 5, "process_count": 2}, "multiple of the 2 processes"),
        ({"batch_size": 4, "process_index": 1}, "process_index is 1"),
        ({"batch_size": 4, "start_step": -1}, "start_step is -1"),
        ({"batch_size": 4, "seed": -1}, "seed is -1"),
        ({"batch_size": 4, "balanced": [1.0]}, "give 12 weights"),
        ({"batch_size": 4, "balanced": np.zeros(12)}, "not all of them zero"),
    ],
)
def test_wrong_arguments_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        training_batches(Numbered(12), **({"seed": 0} | options))


def test_a_record_of_the_wrong_shape_is_named():
    source = Numbered(4, gaps=False)
    source.modalities = (ModalitySpec("scan", 9, 6, 1), TabularSpec("scan_table", 2))
    batches = training_batches(source, batch_size=4, seed=0)
    source.modalities = (ModalitySpec("scan", 8, 6, 1), TabularSpec("scan_table", 2))
    with pytest.raises(ValueError, match=r"record-.*shape"):
        next(batches)


def test_workers_start_where_nobody_has_parsed_flags(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from drifa_jax.data.pipeline import training_batches\n"
        "from drifa_jax.data.sources.phantoms import PhantomSource\n"
        "if __name__ == '__main__':\n"
        "    source = PhantomSource('train', 8, 0, 16)\n"
        "    batches = training_batches(source, batch_size=8, seed=0, num_workers=1)\n"
        "    print(sorted(next(batches)['index'].tolist()))\n"
        "    batches.close()\n"
        "    del batches\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(list(range(8)))
