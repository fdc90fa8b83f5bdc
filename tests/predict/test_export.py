"""Claims about exported files: equal answers, no package needed, nothing tampered with."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from drifa_jax.errors import UserError
from drifa_jax.predict import exported as exported_module
from drifa_jax.predict.export import TOLERANCE, export, verify
from drifa_jax.predict.exported import CARD, PARAMETERS, ExportError, load_exported
from drifa_jax.uncertainty.calibration import METHODS, fit_calibrator
from drifa_jax.uncertainty.conformal import fit_conformal


@pytest.fixture(scope="module")
def file(predictor, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exports") / "net.drifa"
    export(predictor, path)
    return path


@pytest.fixture(scope="module")
def network(file):
    return load_exported(file)


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
        "for name in ('drifa_jax', 'flax', 'optax', 'orbax', 'sklearn', 'grain', 'PIL', 'cv2'):\n"
        "    sys.modules[name] = None\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np, exported\n"
        "images = dict(np.load(sys.argv[1] + '/images.npz'))\n"
        "answer = exported.load_exported(sys.argv[2])(images, list('abcd'))\n"
        "print(answer['tumour'].probabilities.tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(tmp_path), str(file)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = network(arrays, [*"abcd"])["tumour"].probabilities
    np.testing.assert_allclose(json.loads(done.stdout), expected, atol=TOLERANCE)


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
    entries[CARD] = entries[CARD].replace(b"drifa-export-1", b"drifa-export-9")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip, "parameters.npz is not what was exported"),
        (rename_class, "card.json is not what was exported"),
        (other_format, "no export of the format"),
        (lambda entries: entries.pop(PARAMETERS), "no exported network"),
    ],
    ids=["parameters", "card", "format", "missing"],
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


def test_an_export_of_another_network_is_not_kept(predictor, second_run, file):
    from drifa_jax.predict.predictor import load

    with pytest.raises(UserError, match="differs from the live one"):
        verify(load(second_run, decisions=False), file)


def test_an_export_that_cannot_be_written_leaves_nothing(predictor, tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        export(predictor, tmp_path / "no" / "net.drifa")
    assert not list(tmp_path.iterdir())
