"""Claims about exported files: equal answers, no package needed, nothing tampered with."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import zipfile
from datetime import date
from pathlib import Path

import jax
import numpy as np
import pytest

from drifa_jax.cli import main
from drifa_jax.errors import UserError
from drifa_jax.post_processing.out_of_distribution import FLAGGED_BELOW, DistanceDetector
from drifa_jax.predict import exported as exported_module
from drifa_jax.predict.export import DISTANCE_TOLERANCE, TOLERANCE, export, verify
from drifa_jax.predict.exported import (
    CARD,
    OUT_OF_DISTRIBUTION,
    PARAMETERS,
    ExportError,
    card_digest,
    load_exported,
)
from drifa_jax.predict.predictor import Predictor
from drifa_jax.uncertainty.calibration import METHODS, fit_calibrator
from drifa_jax.uncertainty.conformal import fit_conformal


@pytest.fixture(scope="module")
def file(predictor, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exports") / "net.drifa"
    export(predictor, path)
    return path


@pytest.fixture(scope="module")
def bare_file(predictor, tmp_path_factory) -> Path:
    """Without post-processing."""
    path = tmp_path_factory.mktemp("exports") / "bare.drifa"
    export(Predictor(predictor.restored, num_samples=predictor.num_samples), path)
    return path


@pytest.fixture(scope="module")
def network(file):
    return load_exported(file)


@pytest.fixture(scope="module")
def known(predictor) -> dict[str, np.ndarray]:
    """Records of the kind that the network was fitted on; the last three are its own validation."""
    from drifa_jax.data.dataset import open_dataset

    data = open_dataset(predictor.restored.config.data)
    records = [data.test[i].images for i in range(5)]
    records += [data.validation[i].images for i in range(3)]
    return {m: np.stack([images[m] for images in records]) for m in ("mri", "ct")}


def test_an_export_answers_as_the_live_network(predictor, network, arrays):
    ids = ["a", "b", "c", "d"]
    live, answers = predictor(arrays, ids), network(arrays, ids)
    for task, of in answers.items():
        np.testing.assert_allclose(of.probabilities, live[task].probabilities, atol=TOLERANCE)
        np.testing.assert_array_equal(of.sets, live[task].sets)
        np.testing.assert_array_equal(of.refer, live[task].refer)
        assert of.predicted == live[task].labels
        for name in ("predictive_entropy", "expected_entropy", "mutual_information"):
            np.testing.assert_allclose(
                getattr(of, name), getattr(live[task].uncertainty, name), atol=10 * TOLERANCE
            )


def test_an_export_measures_distances_as_the_live_network(predictor, network, arrays, known):
    """Noise is far, known records are at all kinds of p-values."""
    images = {m: np.concatenate([arrays[m], known[m]]) for m in arrays}
    ids = [f"r{n}" for n in range(12)]
    live, scores = predictor(images, ids), network(images, ids)
    live, scores = live.out_of_distribution, scores.out_of_distribution
    np.testing.assert_allclose(scores.distance, live.distance, rtol=DISTANCE_TOLERANCE)
    # None of these distances is within rounding of a validation record's.
    np.testing.assert_array_equal(scores.p_value, live.p_value)
    np.testing.assert_array_equal(scores.flagged, live.flagged)
    assert scores.flagged[:4].all() and not scores.flagged[4:].all()
    assert len(set(scores.p_value)) > 4
    one = network({m: x[5:6] for m, x in images.items()}, ids[5:6]).out_of_distribution
    np.testing.assert_allclose(one.distance, scores.distance[5], rtol=DISTANCE_TOLERANCE)
    assert network.card["out_of_distribution"]["num_validation"] == 24
    assert network.card["out_of_distribution"]["flagged_below"] == FLAGGED_BELOW


def test_an_export_tells_who_lacks_a_modality(predictor, arrays, tmp_path):
    restored = predictor.restored
    description = dataclasses.replace(restored.description, may_lack_modalities=True)
    able = Predictor(dataclasses.replace(restored, description=description), num_samples=2)
    able.post_processing = dataclasses.replace(predictor.post_processing, tasks={})
    export(able, tmp_path / "able.drifa")
    network = load_exported(tmp_path / "able.drifa")
    ids, held = [*"abcd"], np.array([True, False, True, True])
    mri = [image if holds else None for image, holds in zip(arrays["mri"], held, strict=True)]
    live = able(arrays | {"mri": mri}, ids)
    answers = network(arrays, ids, {"mri": held})
    for task, of in answers.items():
        np.testing.assert_allclose(of.probabilities, live[task].probabilities, atol=TOLERANCE)
    np.testing.assert_allclose(
        answers.out_of_distribution.distance,
        live.out_of_distribution.distance,
        rtol=DISTANCE_TOLERANCE,
    )
    alone = network({"ct": arrays["ct"]}, ids)["tumour"].probabilities
    np.testing.assert_allclose(answers["tumour"].probabilities[1], alone[1], atol=TOLERANCE)
    for present, message in (
        ({"mri": np.ones(4)}, "not bool"),
        ({"mri": held, "ct": ~held}, None),
        ({"mri": held, "ct": held}, "no image in any modality"),
        ({"pet": held}, "'pet'] are unknown"),
    ):
        if message is None:
            network(arrays, ids, present)
            continue
        with pytest.raises(ValueError, match=message):
            network(arrays, ids, present)
    with pytest.raises(ValueError, match="said to hold mri, but it was left out"):
        network({"ct": arrays["ct"]}, ids, {"mri": held})


def test_an_export_takes_any_number_of_records(network, arrays):
    four = network(arrays, [*"abcd"])["tumour"]
    one = network({m: x[2:3] for m, x in arrays.items()}, ["c"])["tumour"]
    np.testing.assert_allclose(one.probabilities[0], four.probabilities[2], atol=TOLERANCE)


def test_the_card_says_what_it_is(network):
    card = network.card
    assert card["platforms"] == ["cpu", "cuda", "tpu"]
    assert card["synthetic"] and "Research use only" in card["notice"]
    assert card["modalities"]["mri"] == {
        "height": 16,
        "width": 16,
        "channels": 1,
        "fit": "stretch",
        "format": "image",
        "window": "",
    }
    assert card["tasks"]["stroke"]["classes"] == ["normal", "ischaemic", "haemorrhagic"]


def test_the_loader_runs_without_the_package(file, arrays, network, tmp_path):
    """The one file, copied to an empty folder, in a process that may import JAX and NumPy only."""
    shutil.copy(exported_module.__file__, tmp_path / "exported.py")
    np.savez(tmp_path / "images.npz", **arrays)
    program = (
        "import sys\n"
        "for name in ('drifa_jax', 'flax', 'optax', 'orbax', 'sklearn', 'grain', 'PIL', 'cv2',\n"
        "             'pyarrow', 'ml_collections', 'yaml', 'rich', 'absl'):\n"
        "    sys.modules[name] = None\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np, exported\n"
        "images = dict(np.load(sys.argv[1] + '/images.npz'))\n"
        "answer = exported.load_exported(sys.argv[2])(images, list('abcd'))\n"
        "print(answer['tumour'].probabilities.tolist())\n"
        "print(answer.out_of_distribution.distance.tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(tmp_path), str(file)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    probabilities, distance = map(json.loads, done.stdout.splitlines())
    expected = network(arrays, [*"abcd"])
    np.testing.assert_allclose(probabilities, expected["tumour"].probabilities, atol=TOLERANCE)
    np.testing.assert_allclose(
        distance, expected.out_of_distribution.distance, rtol=DISTANCE_TOLERANCE
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_loader_calibrates_as_the_package(method):
    draw = np.random.default_rng(0)
    p, y = draw.dirichlet(np.ones(3), 60), draw.integers(0, 3, 60)
    fitted = fit_calibrator(method, p, y)
    theirs = exported_module._calibrated(p, json.loads(json.dumps(fitted.to_json())))
    np.testing.assert_allclose(theirs, fitted(p), atol=1e-12)


@pytest.mark.parametrize("method", ["lac", "aps", "raps"])
def test_the_loader_makes_the_sets_of_the_package(method):
    draw = np.random.default_rng(0)
    p, y = draw.dirichlet(np.ones(5), 80), draw.integers(0, 5, 80)
    fitted = fit_conformal(
        p, np.where(y == 4, -1, y), method=method, class_conditional=True, penalty=0.1
    )
    theirs = exported_module._sets(p, json.loads(json.dumps(fitted.to_json())))
    np.testing.assert_array_equal(theirs, fitted(p))


def rewritten(file: Path, to: Path, change) -> Path:
    """A copy of an export with its entries changed by `change(dict of bytes)`."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(to, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return to


def flip(entries):
    data = bytearray(entries[PARAMETERS])
    data[len(data) // 2] ^= 1
    entries[PARAMETERS] = bytes(data)


def rename_class(entries):
    entries[CARD] = entries[CARD].replace(b"ischaemic", b"normalish")


def other_format(entries):
    entries[CARD] = entries[CARD].replace(b"drifa-export-3", b"drifa-export-9")


def bare_card(entries):
    entries[CARD] = b'{"format": "drifa-export-3"}'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip, "parameters.npz is not what was exported"),
        (rename_class, "card.json is not what was exported"),
        (other_format, "no export of the format"),
        (lambda entries: entries.pop(PARAMETERS), "no exported network"),
        (lambda entries: entries.pop(OUT_OF_DISTRIBUTION), "out_of_distribution.npz is missing"),
        (
            lambda entries: entries.update({OUT_OF_DISTRIBUTION: entries[PARAMETERS]}),
            "out_of_distribution.npz is not what",
        ),
        (
            lambda entries: entries.update({CARD: b'{"format": "drifa-export-3"}'}),
            "card.json is not",
        ),
        (lambda entries: entries.update({CARD: b"[]"}), "no export of the format"),
    ],
    ids=["parameters", "card", "format", "missing", "no-distance", "distance", "list", "bare"],
)
def test_a_changed_export_is_refused(file, tmp_path, change, message):
    with pytest.raises(ExportError, match=message):
        load_exported(rewritten(file, tmp_path / "changed.drifa", change))


def test_what_is_no_export_is_refused(file, tmp_path):
    with pytest.raises(ExportError, match="there is no such file"):
        load_exported(tmp_path / "none.drifa")
    (tmp_path / "text.drifa").write_text("hello")
    with pytest.raises(ExportError, match="no exported network"):
        load_exported(tmp_path / "text.drifa")
    (tmp_path / "half.drifa").write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ExportError, match="no exported network"):
        load_exported(tmp_path / "half.drifa")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {"mri": x["mri"]}, r"\['ct'\] are missing"),
        (lambda x: x | {"pet": x["ct"]}, r"\['pet'\] are unknown"),
        (lambda x: x | {"ct": x["ct"][:, :8]}, r"ct is uint8 \(4, 8, 16, 1\)"),
        (lambda x: x | {"ct": x["ct"].astype(np.float32)}, "ct is float32"),
        (lambda x: x | {"ct": x["ct"][:1]}, "equally many records"),
        (lambda x: {}, "no image"),
    ],
)
def test_images_that_do_not_fit_an_export_are_named(network, arrays, change, message):
    with pytest.raises(ValueError, match=message):
        network(change(arrays))


def test_an_export_without_post_processing_says_that_it_cannot_tell(bare_file, arrays):
    network = load_exported(bare_file)
    assert network.card["out_of_distribution"] is None
    answers = network(arrays)
    assert answers.out_of_distribution is None and answers["tumour"].sets is None


def test_an_export_of_the_first_format_is_still_read(bare_file, arrays, tmp_path):
    """It had neither distance nor a word about it in its card."""

    def first_format(entries):
        card = json.loads(entries[CARD])
        card["format"] = "drifa-export-1"
        del card["out_of_distribution"]
        for facts in card["tasks"].values():
            facts["decisions"] = facts.pop("post_processing")
        card["card_sha256"] = card_digest(card)
        entries[CARD] = json.dumps(card).encode()

    old = load_exported(rewritten(bare_file, tmp_path / "old.drifa", first_format))(arrays)
    assert old.out_of_distribution is None
    np.testing.assert_array_equal(
        old["tumour"].samples, load_exported(bare_file)(arrays)["tumour"].samples
    )


@pytest.fixture
def expired(monkeypatch):
    """A JAX that can read no program of today."""

    def refuse(program):
        raise ValueError("serialization version 1 is not supported")

    monkeypatch.setattr(exported_module.jax.export, "deserialize", refuse)


def test_a_file_answers_the_same_from_its_program_and_from_its_description(
    file, network, arrays, expired
):
    rebuilt = load_exported(file)
    assert rebuilt.rebuilt and not network.rebuilt
    ids = [*"abcd"]
    ours, theirs = rebuilt(arrays, ids), network(arrays, ids)
    for task, answer in theirs.items():
        np.testing.assert_array_equal(ours[task].samples, answer.samples)
    np.testing.assert_array_equal(
        ours.out_of_distribution.distance, theirs.out_of_distribution.distance
    )


def test_a_file_says_until_when_its_program_is_readable_and_by_whom(network):
    program = network.card["program"]
    assert program["jax"] == jax.__version__ == network.card["versions"]["jax"]
    written, until = map(
        date.fromisoformat, (program["written_on"], program["readable_until_about"])
    )
    assert 180 < (until - written).days < 190


def test_an_expired_program_without_the_package_is_told_with_the_cure(file, expired, monkeypatch):
    monkeypatch.setitem(sys.modules, "drifa_jax.predict.program", None)
    with pytest.raises(
        ExportError, match=r"cannot read a program of JAX .*readable until about 20"
    ):
        load_exported(file)
    with pytest.raises(ExportError, match=r"install drifa-jax, .*drifa export --refresh"):
        load_exported(file)


def test_an_expired_program_of_a_file_that_describes_no_network_is_told(file, expired, tmp_path):
    def earlier(entries):
        card = json.loads(entries[CARD])
        for name in ("network", "leaves", "program"):
            del card[name]
        card["card_sha256"] = card_digest(card)
        entries[CARD] = json.dumps(card).encode()

    with pytest.raises(ExportError, match="kept no description of the network; export its run"):
        load_exported(rewritten(file, tmp_path / "earlier.drifa", earlier))


def test_another_network_than_the_weights_are_of_is_not_built(file, expired, tmp_path):
    def wider(entries):
        card = json.loads(entries[CARD])
        card["network"]["options"]["width"] *= 2
        card["card_sha256"] = card_digest(card)
        entries[CARD] = json.dumps(card).encode()

    with pytest.raises(ExportError, match="builds other parameters than the file holds"):
        load_exported(rewritten(file, tmp_path / "wider.drifa", wider))


def test_a_refreshed_file_has_a_new_program_and_the_same_answers(
    file, network, arrays, tmp_path, capsys
):
    copy = tmp_path / "net.drifa"
    shutil.copy(file, copy)
    assert main(["export", "--refresh", str(copy)]) == 0
    assert "Largest difference of a probability from the old one 0.0e+00" in capsys.readouterr().err
    refreshed = load_exported(copy)
    # A program holds the lines of the code that traced it, so its bytes may differ.
    differing = {"sha256", "card_sha256"}
    assert {n for n, x in refreshed.card.items() if x != network.card[n]} <= differing
    ours, theirs = refreshed(arrays), network(arrays)
    np.testing.assert_array_equal(ours["tumour"].samples, theirs["tumour"].samples)


def test_what_cannot_be_refreshed_stays_as_it_was(file, tmp_path, capsys):
    text = tmp_path / "text.drifa"
    text.write_text("hello")
    assert main(["export", "--refresh", str(text)]) == 1
    assert "no exported network" in capsys.readouterr().err and text.read_text() == "hello"
    assert main(["export", "--refresh", str(file), "run"]) == 1
    assert "takes one file and no run" in capsys.readouterr().err


def test_an_export_of_another_network_is_not_kept(predictor, second_run, file, bare_file):
    from drifa_jax.predict.predictor import load

    with pytest.raises(UserError, match="differs from the live one"):
        verify(load(second_run, post_processing=False), file)
    with pytest.raises(UserError, match="only one of file and live network"):
        verify(predictor, bare_file)


def test_an_export_with_another_distance_is_not_kept(predictor, file, monkeypatch):
    detector = predictor.detector
    longer = dataclasses.replace(
        detector.members[0], whitening=detector.members[0].whitening * 1.01
    )
    fitted = dataclasses.replace(
        predictor.post_processing, detector=DistanceDetector((longer,), detector.known)
    )
    monkeypatch.setattr(predictor, "post_processing", fitted)
    with pytest.raises(UserError, match=r"by 2\.0e-02 of a distance"):
        verify(predictor, file)


def test_an_export_that_cannot_be_written_leaves_nothing(predictor, tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        export(predictor, tmp_path / "no" / "net.drifa")
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_is_refused_or_changes_nothing(file, network, arrays, tmp_path):
    data, draw = file.read_bytes(), np.random.default_rng(0)
    path, refused = tmp_path / "flipped.drifa", 0
    for place in draw.integers(0, len(data), 60):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(draw.integers(8))
        path.write_bytes(flipped)
        try:
            found = load_exported(path)
        except ExportError as error:
            assert str(path) in str(error)
            refused += 1
            continue
        assert found.card == network.card
        for one, other in zip(found.parameters, network.parameters, strict=True):
            np.testing.assert_array_equal(one, other)
    assert refused > 40


def test_a_container_that_grows_beyond_reason_is_refused_before_it_is_read(file, tmp_path):
    path = tmp_path / "bomb.drifa"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CARD, "{}")
        archive.writestr(PARAMETERS, bytes(100 * 2**20))
    with pytest.raises(ExportError, match=r"bomb\.drifa: declares 104,857,602 bytes"):
        load_exported(path)


def test_an_array_that_declares_more_than_the_file_holds_is_refused():
    import io

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**9,)}
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("p0.npy", header.getvalue())
    with pytest.raises(ExportError, match=r"p0\.npy declares an array that it does not hold"):
        exported_module._arrays(packed.getvalue())


def test_an_exported_file_stands_for_its_run(predictor, file, arrays):
    """The same table of answers, from images of any size, notes and distances included."""
    from drifa_jax.predict.exported_predictor import ExportedPredictor

    exported = ExportedPredictor(file)
    assert exported.description == dataclasses.replace(
        predictor.description, data=exported.description.data
    )
    assert exported.provenance.identity == predictor.identity
    large = {m: [np.repeat(x[..., 0], 2, 0).repeat(2, 1) for x in of] for m, of in arrays.items()}
    (found,) = exported.stream(large, [*"abcd"])
    live = predictor(large, [*"abcd"])
    for task, answer in live.tasks.items():
        np.testing.assert_allclose(found[task].probabilities, answer.probabilities, atol=TOLERANCE)
        np.testing.assert_array_equal(found[task].sets, answer.sets)
        np.testing.assert_array_equal(found[task].refer, answer.refer)
    np.testing.assert_array_equal(
        found.out_of_distribution.p_value, live.out_of_distribution.p_value
    )
