"""Claims about prediction from a run: same in, same out, rules that stay, errors that help."""

from __future__ import annotations

import dataclasses
import json
import shutil
import types

import numpy as np
import pytest

import drifa_jax
from drifa_jax.errors import UserError
from drifa_jax.predict.predictor import Predictor, load
from drifa_jax.predictions.files import flat_rows, write_predictions

ROUNDING = 2e-6


@pytest.fixture(scope="module")
def prediction(predictor, arrays):
    return predictor(arrays, ["a", "b", "c", "d"])


def test_a_prediction_has_probabilities_uncertainty_sets_and_referrals(prediction):
    assert len(prediction) == 4 and prediction.num_samples == 3
    tumour = prediction["tumour"]
    assert tumour.probabilities.shape == tumour.sets.shape == (4, 4)
    np.testing.assert_allclose(tumour.probabilities.sum(1), 1.0)
    assert tumour.refer.dtype == bool and tumour.refer.shape == (4,)
    assert (tumour.uncertainty.mutual_information > 0).all()
    assert set(tumour.labels) <= set(tumour.classes)


def test_different_images_get_different_answers(prediction):
    p = prediction["tumour"].probabilities
    assert np.abs(p[0] - p[1]).max() > 1e-4


def test_files_give_what_their_pixels_give(predictor, prediction, folder):
    files = {m: [folder / m / f"case{row}.png" for row in range(4)] for m in ("mri", "ct")}
    again = predictor(files, ["a", "b", "c", "d"])
    for task in prediction.tasks:
        np.testing.assert_array_equal(again[task].probabilities, prediction[task].probabilities)


def test_an_answer_does_not_depend_on_what_is_predicted_beside_it(predictor, prediction, arrays):
    part = {m: x[[3, 1, 0]] for m, x in arrays.items()}
    again = predictor(part, ["d", "b", "a"])
    for task in prediction.tasks:
        np.testing.assert_allclose(
            again[task].probabilities, prediction[task].probabilities[[3, 1, 0]], atol=ROUNDING
        )


def test_more_records_than_a_batch_are_predicted_alike(predictor, prediction, arrays):
    many = {m: np.concatenate([x, x[:3]]) for m, x in arrays.items()}
    again = predictor(many, [*"abcd", *"abc"])
    for task in prediction.tasks:
        rows = [0, 1, 2, 3, 0, 1, 2]
        np.testing.assert_allclose(
            again[task].probabilities, prediction[task].probabilities[rows], atol=ROUNDING
        )


def test_unnamed_images_are_named_by_their_pixels(predictor, arrays):
    first = predictor(arrays)
    moved = predictor({m: x[::-1] for m, x in arrays.items()})
    assert first.record_ids == moved.record_ids[::-1]
    np.testing.assert_allclose(
        first["stroke"].probabilities, moved["stroke"].probabilities[::-1], atol=ROUNDING
    )


def test_images_of_other_sizes_and_colours_are_brought_to_the_networks(predictor, arrays):
    large = {
        m: [np.repeat(x, 2, 0).repeat(2, 1).repeat(3, 2) for x in of] for m, of in arrays.items()
    }
    first, again = predictor(arrays, [*"abcd"]), predictor(large, [*"abcd"])
    np.testing.assert_allclose(
        again["tumour"].probabilities, first["tumour"].probabilities, atol=ROUNDING
    )


def test_the_rules_are_fitted_once_and_then_read(run, predictor, monkeypatch):
    """The data are gone, as on another machine."""

    def gone(config):
        raise UserError("no data")

    monkeypatch.setattr("drifa_jax.data.dataset.open_dataset", gone)
    again = load(run)
    assert again.post_processing.tasks == predictor.post_processing.tasks
    detector, same = again.post_processing.detector, predictor.post_processing.detector
    np.testing.assert_array_equal(detector.known, same.known)
    for one, other in zip(detector.members, same.members, strict=True):
        np.testing.assert_array_equal(one.whitening, other.whitening)


def test_rules_prepared_at_the_end_of_training_are_those_of_the_first_prediction(
    run, predictor, tmp_path
):
    from drifa_jax.data.dataset import open_dataset
    from drifa_jax.predict.predictor import prepare

    folder = tmp_path / "fresh"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("post_processing-*"))
    prepare(folder, open_dataset(predictor.restored.config.data).validation)
    (rules,) = folder.glob("post_processing-*.json")
    assert rules.read_text() == (run / rules.name).read_text()
    assert rules.with_suffix(".npz").is_file()
    before = rules.stat().st_mtime_ns
    assert load(folder).post_processing.tasks == predictor.post_processing.tasks
    assert rules.stat().st_mtime_ns == before


def test_training_ends_with_the_rules_and_survives_their_failure(monkeypatch, capsys, tmp_path):
    from drifa_jax.commands.train import _fit_post_processing
    from drifa_jax.config import Config, UncertaintyConfig

    asked = []

    def prepare(run, validation):
        asked.append((run, validation))
        raise UserError("one class only")

    monkeypatch.setattr("drifa_jax.predict.predictor.prepare", prepare)
    dataset = types.SimpleNamespace(validation="validation")
    _fit_post_processing(Config(), dataset, tmp_path)
    assert asked == [(tmp_path, "validation")]
    assert "Nothing was calibrated: one class only" in capsys.readouterr().err
    _fit_post_processing(
        Config(uncertainty=UncertaintyConfig(fit_decisions=False)), dataset, tmp_path
    )
    assert len(asked) == 1


def test_foreign_images_are_further_than_known_ones(predictor):
    """White noise against the phantoms that the untrained network was fitted on."""
    from drifa_jax.data.dataset import open_dataset

    test = open_dataset(predictor.restored.config.data).test
    records = [test[i].images for i in range(4)]
    known = predictor({m: [of[m] for of in records] for m in ("mri", "ct")})
    draw = np.random.default_rng(0)
    noise = {m: draw.integers(0, 256, (4, 16, 16, 1), np.uint8) for m in ("mri", "ct")}
    foreign = predictor(noise)
    assert foreign.out_of_distribution.distance.min() > 2 * known.out_of_distribution.distance.max()
    rows = flat_rows(foreign)
    assert rows[0]["ood/p_value"] == pytest.approx(1 / 25)
    assert rows[0]["ood/distance"] == pytest.approx(foreign.out_of_distribution.distance[0])


def test_the_temperature_leaves_the_diagnosis(prediction):
    tumour = prediction["tumour"]
    np.testing.assert_array_equal(
        tumour.probabilities.argmax(1), tumour.uncertainty.probabilities.argmax(1)
    )


def test_sets_cover_the_validation_records_that_they_were_fitted_on(predictor):
    from drifa_jax.data.dataset import open_dataset
    from drifa_jax.predict.streaming import read_blocks

    validation = open_dataset(predictor.restored.config.data).validation
    ((pixels, present, labels, names),) = read_blocks(predictor.description, validation)
    uncertainty = predictor.uncertainty(pixels, present, names)
    assert len(names) == 24
    for task, rules in predictor.post_processing.tasks.items():
        sets = rules.sets(uncertainty[task].probabilities)
        assert sets[np.arange(24), labels[task]].mean() >= 0.9
        refers = uncertainty[task].predictive_entropy > rules.referral
        assert refers.mean() <= 0.1


def test_an_ensemble_averages_its_members(run, second_run, arrays):
    ids = [*"abcd"]
    both = load(run, second_run, post_processing=False)
    assert both.num_members == 2
    pixels, present = both.read(arrays)
    samples = both.samples(pixels, present, ids)["tumour"]
    assert samples.shape == (2, 3, 4, 4)
    alone = load(run, post_processing=False).samples(pixels, present, ids)["tumour"]
    np.testing.assert_allclose(samples[0], alone[0], atol=ROUNDING)
    prediction = both(arrays, ids)["tumour"]
    np.testing.assert_allclose(prediction.probabilities, samples.mean((0, 1)), atol=ROUNDING)
    assert prediction.sets is None and prediction.refer is None


def test_ensemble_trained_in_one_run_answers_as_its_members_together(
    run, second_run, ensemble_run, arrays
):
    one_run = load(ensemble_run, post_processing=False)
    assert one_run.num_members == 2
    assert one_run.restored.steps == (0, 0)
    pixels, present = one_run.read(arrays)
    both = load(run, second_run, post_processing=False)
    for task, samples in both.samples(pixels, present, [*"abcd"]).items():
        np.testing.assert_array_equal(one_run.samples(pixels, present, [*"abcd"])[task], samples)


def test_rows_are_flat_and_written_whole(prediction, tmp_path):
    for name in ("out.csv", "out.json", "out.parquet"):
        write_predictions(prediction, tmp_path / name)
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [row["record_id"] for row in rows] == [*"abcd"]
    np.testing.assert_allclose(
        sum(rows[0][f"tumour/p({name})"] for name in prediction["tumour"].classes), 1.0
    )
    header, *lines = (tmp_path / "out.csv").read_text().splitlines()
    assert header.split(",")[0] == "record_id" and len(lines) == 4
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").num_rows == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out.csv",
        "out.json",
        "out.parquet",
    ]


def test_the_package_offers_load():
    assert drifa_jax.load is load


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {"mri": x["mri"], "pet": x["ct"]}, r"\['pet'\] are unknown; .*'mri'"),
        (lambda x: {"mri": x["mri"]}, "lack ct"),
        (lambda x: {"mri": x["mri"], "ct": x["ct"][:2]}, "one image .* a record"),
        (lambda x: {"mri": x["mri"][:0], "ct": x["ct"][:0]}, "at least one record"),
        (lambda x: {}, "no images"),
        (lambda x: x | {"ct": x["ct"] / 255.0}, "ct 0: has pixels of type float64"),
        (lambda x: x | {"ct": np.zeros((4, 16, 16, 2), np.uint8)}, r"ct 0: .*\(16, 16, 2\)"),
        (lambda x: x | {"ct": ["nowhere.png"] * 4}, "nowhere.png: cannot be read"),
    ],
    ids=["name", "lacking", "numbers", "empty", "nothing", "float", "channels", "file"],
)
def test_images_that_do_not_fit_are_named(predictor, arrays, change, message):
    with pytest.raises(UserError, match=message):
        predictor(change(arrays))


def test_another_number_of_names_is_refused(predictor, arrays):
    with pytest.raises(UserError, match="4 records but 1 names"):
        predictor(arrays, ["a"])


def test_answers_that_are_not_finite_are_never_shown(predictor, arrays, monkeypatch):
    def broken(*_):
        return {"tumour": np.full((1, 3, 4, 4), np.nan), "stroke": np.full((1, 3, 4, 3), 1 / 3)}

    monkeypatch.setattr(predictor, "samples", broken)
    with pytest.raises(UserError, match="'tumour' is not finite for a, b"):
        predictor(arrays, [*"abcd"])


def test_zero_samples_are_refused(predictor):
    with pytest.raises(UserError, match="number of samples is 0"):
        Predictor(predictor.restored, num_samples=0)


def test_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least one run"):
        load()
    with pytest.raises(UserError, match="not a run directory"):
        load(tmp_path)


def test_a_run_without_checkpoints_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(UserError, match="holds no checkpoint"):
        load(tmp_path / "bare")
    (tmp_path / "bare" / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no checkpoint of a completed epoch"):
        load(tmp_path / "bare")


def test_a_checkpoint_of_another_network_is_refused(edited_run):
    with pytest.raises(UserError, match=r"checkpoints/0 holds another network"):
        load(edited_run(width=8))


def test_members_of_different_networks_are_refused(run, edited_run):
    with pytest.raises(UserError, match="different networks"):
        load(run, edited_run(width=8))


def test_the_same_run_twice_is_refused(run):
    with pytest.raises(UserError, match="given twice"):
        load(run, run)


def test_damaged_files_are_named(run, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(run, folder)
    (rules,) = folder.glob("post_processing-*.json")
    rules.with_suffix(".npz").write_bytes(b"no arrays")
    with pytest.raises(UserError, match=r"post_processing-.*damaged"):
        load(folder)
    rules.write_text('{"format": 4, "tasks": {}}')
    with pytest.raises(UserError, match=r"post_processing-.*damaged"):
        load(folder)
    (folder / "preprocessing.json").write_text("[]")
    with pytest.raises(UserError, match=r"preprocessing\.json: is damaged"):
        load(folder)


def test_a_validation_split_of_one_class_is_refused(predictor):
    from drifa_jax.data.dataset import open_dataset
    from drifa_jax.data.records import as_records
    from drifa_jax.post_processing.task import PostProcessingOptions
    from drifa_jax.predict.predictor import fit_post_processing

    validation = open_dataset(predictor.restored.config.data).validation
    one_class = np.flatnonzero(validation.labels("tumour") == validation.labels("tumour")[0])[:4]
    source = as_records(validation).take(one_class, "one class")
    with pytest.raises(UserError, match=r"'tumour' cannot be fitted .* two classes"):
        fit_post_processing(predictor, [(predictor, source)], PostProcessingOptions())


def test_a_modality_may_be_missing_where_training_allowed_it(predictor, arrays):
    restored = predictor.restored
    description = dataclasses.replace(restored.description, may_lack_modalities=True)
    able = Predictor(dataclasses.replace(restored, description=description), num_samples=3)
    whole = able(arrays, [*"abcd"])["tumour"].probabilities
    mri = [arrays["mri"][0], None, *arrays["mri"][2:]]
    some = able(arrays | {"mri": mri}, [*"abcd"])["tumour"].probabilities
    alone = able({"ct": arrays["ct"]}, [*"abcd"])["tumour"].probabilities
    np.testing.assert_allclose(some[[0, 2, 3]], whole[[0, 2, 3]], atol=ROUNDING)
    np.testing.assert_allclose(some[1], alone[1], atol=ROUNDING)
    assert np.abs(some[1] - whole[1]).max() > 1e-5
    with pytest.raises(UserError, match="Record 1 has no image"):
        able({"mri": mri}, [*"abcd"])


def test_post_processing_of_other_weights_is_never_applied(run, second_run, predictor, tmp_path):
    """Trained anew in the same folder: what was fitted before stays behind, and is not taken."""
    folder = tmp_path / "again"
    shutil.copytree(run, folder)
    (before,) = folder.glob("post_processing-*.json")
    shutil.rmtree(folder / "checkpoints")
    shutil.copytree(second_run / "checkpoints", folder / "checkpoints")
    again = load(folder)
    assert again.identity != predictor.identity
    assert again.post_processing.identity == again.identity
    assert set(folder.glob("post_processing-*.json")) > {before}
    assert again.post_processing.tasks != predictor.post_processing.tasks


def test_the_identity_is_that_of_the_weights_wherever_they_lie(run, predictor, tmp_path):
    shutil.copytree(run, tmp_path / "elsewhere")
    assert load(tmp_path / "elsewhere", post_processing=False).identity == predictor.identity


def test_blocks_of_records_give_the_answers_of_all_at_once(predictor, arrays, monkeypatch):
    monkeypatch.setattr("drifa_jax.predict.streaming.RECORDS_A_BLOCK", 3)
    blocks = list(predictor.stream(arrays, [*"abcd"]))
    assert [len(block) for block in blocks] == [3, 1]
    monkeypatch.undo()
    whole = predictor(arrays, [*"abcd"])["tumour"].probabilities
    found = np.concatenate([block["tumour"].probabilities for block in blocks])
    np.testing.assert_allclose(found, whole, atol=ROUNDING)
