"""`drifa explain` on a run of a real (tiny) network, and its files from drawn explanations."""

from __future__ import annotations

import csv
import io
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from drifa_jax.cli import main
from drifa_jax.explain.explanation import Explanation, RecordMap
from drifa_jax.report.explained_cases import explanation_png, write_explanations


def drawn(**changes) -> Explanation:
    """An explanation of a grey ramp with a warm corner, and of a row."""
    heat = np.zeros((16, 16), np.float32)
    heat[:4, 12:] = 1
    values = {
        "record_id": "ct:a b/1.png+mri:c",
        "task": "tumour",
        "predicted": "glioma",
        "probability": 0.9,
        "predictive_entropy": 0.3,
        "mutual_information": 0.1,
        "images": {"mri": np.tile(np.arange(16, dtype=np.uint8)[:, None], (1, 16))[..., None] * 10},
        "rows": {"clinic": {"age": "40"}},
        "maps": {"mri": RecordMap(heat, heat / 2)},
        "shapley": {"mri": 0.3, "clinic": 0.1},
        "shapley_spread": {"mri": 0.01, "clinic": 0.02},
        "leave_one_out": {"mri": 0.25, "clinic": 0.05},
        "factors": {},
        "trained_without": True,
    }
    return Explanation(**values | changes)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.int32)


def test_the_picture_shows_the_map_where_it_is_warm():
    warm = pixels(explanation_png(drawn(), num_members=1, synthetic=False))
    cold = pixels(
        explanation_png(
            drawn(maps={"mri": RecordMap(np.zeros((16, 16), np.float32), np.zeros((16, 16)))}),
            num_members=1,
            synthetic=False,
        )
    )
    changed = np.abs(warm - cold).sum(-1) > 30
    rows, columns = np.nonzero(changed)
    assert 0.01 < changed.mean() < 0.1
    # The right upper corner of the second picture, so the right half of the figure.
    assert columns.min() > warm.shape[1] * 0.75 and rows.max() < warm.shape[0] * 0.5


def test_an_ensemble_has_a_third_picture_and_synthetic_data_a_stamp():
    one = pixels(explanation_png(drawn(), num_members=1, synthetic=False))
    several = pixels(explanation_png(drawn(), num_members=5, synthetic=False))
    assert several.shape[1] > 1.3 * one.shape[1]
    stamped = pixels(explanation_png(drawn(), num_members=1, synthetic=True))
    assert (np.abs(stamped - one).sum(-1) > 100).any()


def test_a_record_of_a_table_alone_has_a_picture_too(tmp_path):
    alone = drawn(images={}, maps={}, shapley={"clinic": 0.4})
    write_explanations([alone], tmp_path / "out", num_members=1, synthetic=False)
    assert len(list((tmp_path / "out").glob("*.png"))) == 1


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy") / "tiny"
    shutil.copytree(finished_run, folder)
    return folder


@pytest.fixture(autouse=True)
def standard_promotion(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_a_case_is_explained_for_every_task(run, tmp_path, capsys):
    draw = np.random.default_rng(0)
    for m in ("mri", "ct"):
        Image.fromarray(draw.integers(0, 255, (20, 24), np.uint8)).save(tmp_path / f"{m}.png")
    images = [f"{m}={tmp_path / f'{m}.png'}" for m in ("mri", "ct")]
    out = tmp_path / "why"
    arguments = ["explain", str(run), *images, "--out", str(out), "--samples", "2"]
    assert main(arguments) == 0
    assert "Not a medical device" in capsys.readouterr().err
    document = json.loads((out / "explanations.json").read_text())
    assert document["synthetic"] and [e["task"] for e in document["explanations"]] == [
        "tumour",
        "stroke",
    ]
    with (out / "contributions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["modality"]) for row in rows] == [
        (task, m) for task in ("tumour", "stroke") for m in ("mri", "ct")
    ]
    for entry in document["explanations"]:
        image = Image.open(out / entry["picture"])
        assert image.width > 500 and np.asarray(image).std() > 20
    # Again, for one class: the folder is replaced.
    known = json.loads((run / "preprocessing.json").read_text())["tasks"]["stroke"]
    assert main([*arguments, "--task", "stroke", "--class", known[-1]]) == 0
    document = json.loads((out / "explanations.json").read_text())
    assert [e["class"] for e in document["explanations"]] == [known[-1]]
    assert len(list(out.glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a run directory"),
        (["RUN", "--samples", "0"], "--samples is 0"),
        (["RUN", "--class", "glioma"], "--class needs IMAGES"),
        (["RUN", "--out", "holds_files"], "holds files but no explanations.json"),
        (["RUN", "--task", "age"], "--task age: the network answers tumour, stroke"),
        (["RUN", "x.png", "--task", "stroke", "--class", "no"], "--class no: the classes of"),
        (["RUN", "no.png"], "no.png does not exist"),
    ],
)
def test_wrong_arguments_are_one_message(run, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "holds_files").mkdir()
    (tmp_path / "holds_files" / "thesis.tex").write_text("x")
    assert main(["explain", *[str(run) if a == "RUN" else a for a in arguments]]) == 1
    assert message in capsys.readouterr().err
    assert (tmp_path / "holds_files" / "thesis.tex").exists()
