"""Claims about the images on the command line: every form, and every way to get it wrong."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from drifa_jax.data.dataset import open_dataset
from drifa_jax.data.prepare import prepare
from drifa_jax.data.record import ModalitySpec
from drifa_jax.errors import UserError
from drifa_jax.predict.inputs import find_cases
from drifa_jax.predict.reading import Reading, read_item

BOTH = ("mri", "ct")


def test_one_case_by_name(folder):
    cases = find_cases([f"mri={folder}/mri/case0.png", f"ct={folder}/ct/case0.png"], BOTH)
    assert cases.record_ids == ("case0",)
    assert cases.images["ct"] == (folder / "ct" / "case0.png",)


def test_a_modality_left_out_is_absent(folder):
    assert find_cases([f"ct={folder}/ct/case0.png"], BOTH).images["mri"] == (None,)


def test_folders_pair_files_of_the_same_name(folder):
    for arguments in ([f"mri={folder}/mri", f"ct={folder}/ct"], [str(folder)]):
        cases = find_cases(arguments, BOTH)
        assert cases.record_ids == ("case0", "case1", "case2", "case3")
        assert [path.parent.name for path in cases.images["mri"]] == ["mri"] * 4


def test_a_case_may_lack_a_modality(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "some")
    (tmp_path / "some" / "mri" / "case2.png").unlink()
    assert find_cases([str(tmp_path / "some")], BOTH).images["mri"][2] is None


def test_one_modality_needs_no_name(folder):
    files = [str(folder / "mri" / f"case{n}.png") for n in (1, 0)]
    assert find_cases(files, ("mri",)).record_ids == tuple(sorted(files))
    assert len(find_cases([str(folder / "mri")], ("mri",)).record_ids) == 4


def test_a_table_names_records_and_paths(folder):
    table = folder / "cases.csv"
    table.write_text("record_id,mri,ct\nb,mri/case1.png,ct/case1.png\na,mri/case0.png,\n")
    cases = find_cases([str(table)], BOTH)
    table.unlink()
    assert cases.record_ids == ("b", "a")
    assert cases.images["ct"] == (folder / "ct" / "case1.png", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("record_id,mri,pet\na,mri/case0.png,x.png\n", "pet: is an unknown column"),
        ("id,mri\na,mri/case0.png\n", "record_id: is missing"),
        ("record_id\na\n", "at least one modality"),
        ("record_id,mri\na,mri/none.png\n", "line 2: names 'mri/none.png'"),
        ("record_id,mri\na,mri/case0.png\na,mri/case1.png\n", "line 3: repeats 'a'"),
        ("record_id,mri\n,mri/case0.png\n", "line 2: has no record_id"),
        ("record_id,mri,ct\na,,\n", "'a' has no image"),
        ("record_id,mri\n", "no rows"),
    ],
)
def test_a_table_that_does_not_fit_is_explained(folder, tmp_path, text, message):
    shutil.copytree(folder, tmp_path / "t")
    (tmp_path / "t" / "cases.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        find_cases([str(tmp_path / "t" / "cases.csv")], BOTH)


def test_arguments_that_do_not_fit_are_explained(folder, tmp_path):
    image = f"{folder}/mri/case0.png"
    for arguments, message in (
        ([], "Give images: mri=FILE ct=FILE"),
        ([image], "must say which they are"),
        ([f"pet={image}"], "'pet' is no modality of this network"),
        ([f"mri={image}", f"mri={image}"], "mri is given twice"),
        ([f"mri={image}", image], "Some images are named by modality"),
        (["mri=nowhere.png"], "mri=nowhere.png: there is no such file"),
        (["nowhere"], "nowhere does not exist"),
        ([f"mri={image}", f"ct={folder}/ct"], "a file and some a folder"),
        ([str(tmp_path)], "no subfolder named like a modality: mri, ct"),
        ([f"mri={tmp_path}", f"ct={folder}/ct"], "holds no image"),
    ):
        with pytest.raises(UserError, match=message):
            find_cases(arguments, BOTH)


def test_two_files_that_would_be_one_case_are_refused(folder, tmp_path):
    shutil.copytree(folder / "mri", tmp_path / "m")
    shutil.copy(tmp_path / "m" / "case0.png", tmp_path / "m" / "case0.bmp")
    with pytest.raises(UserError, match="would be the same case"):
        find_cases([str(tmp_path / "m")], ("mri",))


@pytest.fixture(scope="module")
def prepared(predictor, tmp_path_factory):
    """Two splits of the phantoms, as `drifa data prepare` stores them."""
    data = open_dataset(predictor.restored.config.data)
    output = tmp_path_factory.mktemp("prepared") / "brain"
    prepare({"validation": data.validation, "test": data.test}, output)
    return data.test, output


def test_a_prepared_set_is_predicted_as_its_records(predictor, prepared):
    test, output = prepared
    cases = find_cases([f"{output}:test"], predictor.description.readings)
    assert cases.record_ids == tuple(sorted(test.record_id(i) for i in range(len(test))))
    records = {test.record_id(i): test[i].images for i in range(len(test))}
    pixels, _ = predictor.read(cases.images)
    for row, one in enumerate(cases.record_ids):
        for name, of in pixels.items():
            np.testing.assert_array_equal(of[row], records[one][name])
    named = find_cases([f"mri={output}:test", f"ct={output}:test"], predictor.description.readings)
    assert named.record_ids == cases.record_ids


def test_prepared_sets_that_do_not_fit_are_explained(predictor, prepared, folder, tmp_path):
    _, output = prepared
    for arguments, modalities, message in (
        ([f"{output}"], BOTH, r"holds the splits validation, test; say which .*brain:test"),
        ([f"{output}:train"], BOTH, "not 'train'; choose one of them"),
        ([f"mri={output}:test", f"ct={folder}/ct"], BOTH, "a prepared set and some are not"),
        ([f"{output}:test"], ("mri", "pet"), r"\['ct'\], which this network does not read"),
        ([f"pet={output}:test"], ("mri", "pet"), "not of 'pet'"),
        ([f"{output}:test", f"{output}:validation"], BOTH, "mri is given twice"),
    ):
        with pytest.raises(UserError, match=message):
            find_cases(arguments, modalities)
    cases = find_cases([f"{output}:test"], BOTH)
    with pytest.raises(UserError, match=r"was prepared as \(16, 16, 1\), this network reads"):
        read_item(cases.images["mri"][0], ModalitySpec("mri", 32, 32, 1), Reading(), "x")
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="preparation was interrupted"):
        find_cases([str(tmp_path)], BOTH)
