"""Claims about the SYNTHETIC brain phantoms: determinism, pairing, evidence, contrast, errors."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import subprocess
import sys

import numpy as np
import pytest

from drifa_jax.data.record import Source
from drifa_jax.data.sources import phantom_anatomy, phantoms
from drifa_jax.data.sources.phantoms import (
    EVIDENCE_KINDS,
    TASKS,
    EvidenceSplit,
    PhantomSource,
    ideal_observer_accuracy,
)

LESIONS = [kind for task in TASKS.values() for kind in task.spec.classes if kind != task.healthy]
BRIGHT = {"mri": ("meningioma", "pituitary", "ischaemic"), "ct": ("meningioma", "pituitary")}


def digest(source: PhantomSource, indices: list[int]) -> str:
    """Fingerprint of some records' pictures and labels, in increasing order of index."""
    pieces = {}
    for index in indices:
        record = source[index]
        pieces[index] = b"".join(record.images[name].tobytes() for name in sorted(record.images))
        pieces[index] += repr(sorted(record.labels.items())).encode()
    return hashlib.sha256(b"".join(pieces[index] for index in sorted(pieces))).hexdigest()


def draw(kind: str, visible_in: tuple[str, ...], seed: int) -> phantom_anatomy.Patient:
    """One patient with one lesion."""
    generator = np.random.Generator(np.random.Philox(seed))
    return phantom_anatomy.draw_patient(generator, {kind: visible_in}, noise_seed=(seed,))


def without_lesions(patient: phantom_anatomy.Patient) -> phantom_anatomy.Patient:
    return dataclasses.replace(patient, lesions=())


def test_phantom_source_is_a_source():
    assert isinstance(PhantomSource("train", 2, 0, 32), Source)


def test_phantom_source_says_that_it_is_synthetic():
    source = PhantomSource("test", 2, 0, 32)
    assert source.synthetic
    assert "SYNTHETIC" in source.description


def test_phantom_record_is_the_same_in_any_order_of_reading():
    forwards = digest(PhantomSource("train", 12, 7, 32), list(range(12)))
    shuffled = digest(PhantomSource("train", 12, 7, 32), [5, 0, 11, 3, 9, 1, 2, 10, 4, 8, 7, 6])
    assert forwards == shuffled


def test_phantom_record_is_the_same_in_another_process():
    program = (
        "import runpy, sys; tests = runpy.run_path(sys.argv[1]);"
        "source = tests['PhantomSource']('validation', 40, 3, {'mri': 64, 'ct': 32});"
        "print(tests['digest'](source, [39, 2, 17]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, __file__], capture_output=True, text=True, check=True
    )
    source = PhantomSource("validation", 40, 3, {"mri": 64, "ct": 32})
    assert answer.stdout.strip() == digest(source, [2, 17, 39])


def test_phantom_record_does_not_depend_on_the_number_of_records():
    assert digest(PhantomSource("train", 5, 1, 32), [0, 4]) == digest(
        PhantomSource("train", 500, 1, 32), [0, 4]
    )


@pytest.mark.parametrize("other", [("validation", 0), ("test", 0), ("train", 1)])
def test_phantom_splits_and_seeds_hold_different_heads(other):
    split, seed = other
    first, second = PhantomSource("train", 3, 0, 32), PhantomSource(split, 3, seed, 32)
    heads = {source.patient(i).head.rotation for source in (first, second) for i in range(3)}
    assert len(heads) == 6


def test_every_phantom_record_is_its_own_patient_with_a_readable_name():
    source = PhantomSource("train", 130, 0, 16)
    assert source.record_id(123) == "phantom-train-000123"
    assert source[123].record_id == source[123].group_id == "phantom-train-000123"


@pytest.mark.parametrize("channels", [1, 3])
def test_phantom_images_have_the_shapes_that_their_modalities_announce(channels):
    source = PhantomSource("train", 1, 0, {"mri": 48, "ct": 33}, channels=channels)
    for modality in source.modalities:
        image = source[0].images[modality.name]
        assert (image.shape, image.dtype) == (modality.shape, np.uint8)


def test_phantom_colour_images_repeat_the_grey_one():
    grey, colour = (PhantomSource("train", 1, 0, 32, channels=number)[0] for number in (1, 3))
    np.testing.assert_array_equal(
        colour.images["mri"], np.repeat(grey.images["mri"], repeats=3, axis=2)
    )


def test_cheap_labels_equal_the_labels_of_the_records():
    source = PhantomSource("validation", 60, 5, 16)
    for task in TASKS:
        labels = source.labels(task)
        assert labels.dtype == np.int32
        assert labels.tolist() == [record.labels[task] for record in source]


def test_labels_name_the_lesions_that_are_drawn():
    source = PhantomSource("train", 200, 2, 16)
    for index in range(len(source)):
        kinds = {lesion.kind: lesion.visible_in for lesion in source.patient(index).lesions}
        expected = {}
        for name, task in TASKS.items():
            kind = task.spec.classes[source.labels(name)[index]]
            if kind != task.healthy:
                expected[kind] = EVIDENCE_KINDS[source.evidence(name)[index]]
        assert kinds == expected


def test_labels_cannot_be_changed_through_the_array_they_came_in():
    source = PhantomSource("train", 5, 0, 16)
    source.labels("stroke")[:] = 9
    assert source.labels("stroke").max() < 3


@pytest.mark.parametrize("task", TASKS)
def test_prevalences_match_their_constants_within_five_standard_errors(task):
    labels = PhantomSource("train", 40_000, 0, 16).labels(task)
    for index, expected in enumerate(TASKS[task].prevalences):
        assert_frequency(labels == index, expected)


@pytest.mark.parametrize("task", TASKS)
def test_evidence_matches_its_constants_within_five_standard_errors(task):
    source = PhantomSource("train", 40_000, 0, 16)
    evidence = source.evidence(task)
    for label, name in enumerate(TASKS[task].spec.classes):
        if name != TASKS[task].healthy:
            of_class = evidence[source.labels(task) == label]
            for index, expected in enumerate(TASKS[task].evidence.shares):
                assert_frequency(of_class == index, expected)


def assert_frequency(hits: np.ndarray, expected: float) -> None:
    assert abs(hits.mean() - expected) < 5 * math.sqrt(expected * (1 - expected) / hits.size)


def test_the_two_tasks_are_drawn_independently():
    source = PhantomSource("train", 40_000, 0, 16)
    tumour = source.labels("tumour") == TASKS["tumour"].spec.classes.index("glioma")
    stroke = source.labels("stroke") == TASKS["stroke"].spec.classes.index("normal")
    assert_frequency(
        tumour & stroke, TASKS["tumour"].prevalences[0] * TASKS["stroke"].prevalences[0]
    )


@pytest.mark.parametrize("kind", LESIONS)
@pytest.mark.parametrize(("shown", "hidden"), [("ct", "mri"), ("mri", "ct")])
def test_lesion_of_one_modality_leaves_no_trace_in_the_other(kind, shown, hidden):
    patient = draw(kind, (shown,), seed=11)
    healthy = without_lesions(patient)

    def pictures(modality):
        return [phantom_anatomy.render(who, modality, 64) for who in (patient, healthy)]

    np.testing.assert_array_equal(*pictures(hidden))
    assert not np.array_equal(*pictures(shown))


@pytest.mark.parametrize("kind", LESIONS)
@pytest.mark.parametrize("modality", phantom_anatomy.MODALITIES)
@pytest.mark.parametrize("size", [64, 128])
def test_visible_lesion_changes_its_place_by_more_than_the_noise(kind, modality, size):
    for seed in range(4):
        patient = draw(kind, ("mri", "ct"), seed)
        inside = phantom_anatomy.lesion_coverage(patient, kind, size) > 0.8
        ill, well = (
            phantom_anatomy.render(who, modality, size).astype(np.float32)
            for who in (patient, without_lesions(patient))
        )
        noise = getattr(patient.head, f"{modality}_noise")
        assert np.abs(ill - well)[inside].mean() > 2.5 * noise


@pytest.mark.parametrize(
    ("modality", "kind"), [(modality, kind) for modality in BRIGHT for kind in BRIGHT[modality]]
)
def test_bright_lesion_outshines_the_brain_around_it(modality, kind):
    for seed in range(4):
        patient = draw(kind, ("mri", "ct"), seed)
        inside = phantom_anatomy.lesion_coverage(patient, kind, 64) > 0.8
        outside = phantom_anatomy.lesion_coverage(patient, kind, 64) < 0.05
        brain = phantom_anatomy.anatomy(patient.head, 64).brain > 0.95
        picture = phantom_anatomy.render(patient, modality, 64).astype(np.float32)
        assert picture[inside].mean() > picture[outside & brain].mean() + 35


@pytest.mark.parametrize("kind", LESIONS)
def test_lesion_is_at_least_four_pixels_in_radius_at_64_pixels(kind):
    for seed in range(8):
        coverage = phantom_anatomy.lesion_coverage(draw(kind, (), seed), kind, 64)
        assert coverage.sum() > 0.75 * math.pi * 4**2


def test_tumour_and_stroke_of_one_head_lie_on_opposite_sides():
    generator = np.random.Generator(np.random.Philox(4))
    findings = {"glioma": ("mri",), "haemorrhagic": ("ct",)}
    for _ in range(20):
        tumour, stroke = phantom_anatomy.draw_patient(generator, findings, (0,)).lesions
        assert tumour.x * stroke.x < 0


def test_both_modalities_show_the_head_in_the_same_place():
    # The skin lies where the picture rises to half the scalp's level, whatever the modality;
    # filled outlines may then differ by the noise of a pixel.
    for seed in range(6):
        patient = without_lesions(draw("glioma", (), seed))
        outlines = []
        for modality in phantom_anatomy.MODALITIES:
            threshold = phantom_anatomy.TISSUE[modality]["scalp"] / 2
            bright = phantom_anatomy.render(patient, modality, 64) > threshold
            from_left, from_right = np.cumsum(bright, 1) > 0, np.cumsum(bright[:, ::-1], 1) > 0
            outlines.append(from_left & from_right[:, ::-1])
        overlap = (outlines[0] & outlines[1]).sum() / (outlines[0] | outlines[1]).sum()
        assert overlap > 0.97


def test_picture_sizes_show_the_same_head():
    patient = draw("meningioma", ("mri", "ct"), seed=2)
    fine = phantom_anatomy.anatomy(patient.head, 128).brain.reshape(64, 2, 64, 2).mean((1, 3))
    coarse = phantom_anatomy.anatomy(patient.head, 64).brain
    assert np.abs(fine - coarse).mean() < 0.01


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_ideal_observer_accuracy_equals_a_simulated_observer(task):
    generator = np.random.default_rng(0)
    healthy = task.spec.classes.index(task.healthy)
    label = generator.choice(task.spec.num_classes, size=200_000, p=task.prevalences)
    shown = generator.choice(4, size=label.size, p=task.evidence.shares)
    expected = ideal_observer_accuracy(task.prevalences, healthy, task.evidence)
    for observer, accuracy in expected.items():
        modalities = {"mri", "ct"} if observer == "fused" else {observer}
        seen = np.array([bool(modalities & set(kinds)) for kinds in EVIDENCE_KINDS])[shown]
        # Cases that look alike form a group; the observer answers each group's majority.
        group = np.where(seen & (label != healthy), label, -1)
        right = sum(np.bincount(label[group == name]).max() for name in np.unique(group))
        assert right / label.size == pytest.approx(accuracy, abs=0.005)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_fusing_beats_each_modality_and_nobody_reaches_certainty(task):
    accuracy = ideal_observer_accuracy(
        task.prevalences, task.spec.classes.index(task.healthy), task.evidence
    )
    assert 0.93 <= accuracy["fused"] <= 0.96
    assert 0.65 <= min(accuracy["mri"], accuracy["ct"])
    assert max(accuracy["mri"], accuracy["ct"]) <= 0.80


def test_ideal_observer_guesses_a_lesion_where_health_is_rare():
    evidence = EvidenceSplit(both=0.0, mri_only=0.5, ct_only=0.0, neither=0.5)
    accuracy = ideal_observer_accuracy((0.9, 0.1), healthy=1, evidence=evidence)
    assert accuracy == pytest.approx({"mri": 0.9, "ct": 0.9, "fused": 0.9})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, r"split 'dev' is unknown; choose one of \('train'"),
        ({"num_records": 0}, "num_records is 0; ask for at least 1"),
        ({"seed": -1}, "seed is -1; choose a non-negative integer"),
        ({"image_size": 8}, "image_size for 'mri' is 8; use at least 16 pixels"),
        ({"image_size": {"mri": 64}}, r"image_size names \['mri'\]; give one size for each"),
        ({"channels": 2}, "channels is 2; choose 1, or 3"),
    ],
)
def test_bad_arguments_are_named_with_their_value_and_cure(arguments, message):
    good = {"split": "train", "num_records": 4, "seed": 0, "image_size": 32}
    with pytest.raises(ValueError, match=message):
        PhantomSource(**(good | arguments))


@pytest.mark.parametrize("index", [4, -1])
def test_index_out_of_range_is_named_with_the_range(index):
    source = PhantomSource("train", 4, 0, 32)
    for ask in (source.__getitem__, source.record_id, source.patient):
        with pytest.raises(IndexError, match=f"record {index} is outside .* from 0 to 3"):
            ask(index)


def test_unknown_task_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"task 'age' is unknown; choose one of \('tumour'"):
        PhantomSource("train", 4, 0, 32).labels("age")


def test_unknown_modality_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"modality 'pet' is unknown; choose one of \('mri'"):
        phantom_anatomy.render(draw("glioma", (), 0), "pet", 32)


def test_evidence_shares_that_do_not_add_up_are_rejected():
    with pytest.raises(ValueError, match=r"both=0\.5.*add up to 1"):
        EvidenceSplit(both=0.5, mri_only=0.5, ct_only=0.5, neither=0.0)


@pytest.mark.parametrize(
    ("prevalences", "healthy", "message"),
    [((0.5, 0.4), 0, "add up to 1"), ((0.5, 0.5), 2, "healthy=2 is not an index of 2")],
)
def test_ideal_observer_rejects_arguments_that_are_no_distribution(prevalences, healthy, message):
    with pytest.raises(ValueError, match=message):
        ideal_observer_accuracy(prevalences, healthy, TASKS["tumour"].evidence)


def test_source_is_iterable_to_its_end():
    source = PhantomSource("train", 3, 0, 16)
    assert len(list(source)) == len(source) == 3


def test_every_lesion_has_a_shape_and_a_level_in_every_modality():
    for modality in phantom_anatomy.MODALITIES:
        assert set(phantom_anatomy.LESION_LEVELS[modality]) == set(LESIONS)
    assert set(phantom_anatomy.LESION_SHAPES) == set(LESIONS)
    assert phantoms.SPLITS == ("train", "validation", "test")
