"""Tables joined from sets as their publishers hand them out."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from drifa_jax.benchmark.publishers import join
from drifa_jax.cli import main
from drifa_jax.errors import UserError


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("name", "place", "table", "key"),
    [
        ("milk10k", "milk10k", "lesions_wide.csv", "lesion_id"),
        ("bus_bra", "bus-bra/BUSBRA", "cases_view_1.csv", "case"),
        ("bus_bra", "bus-bra/BUSBRA", "cases_view_2.csv", "case"),
    ],
)
def test_joined_tables_are_those_that_the_published_parts_were_drawn_from(
    shared, tmp_path, name, place, table, key
):
    source = shared / "data" / place
    for path in source.glob("*.csv"):
        if path.name.startswith(("MILK10k", "bus_data")):
            shutil.copy(path, tmp_path)
    if (source / "Images").is_dir():
        (tmp_path / "Images").symlink_to(source / "Images")
    join(name, tmp_path)
    theirs = {row[key]: row for row in rows(source / table)}
    ours = {row[key]: row for row in rows(tmp_path / table)}
    assert ours == {
        record: {column: theirs[record][column] for column in ours[record]} for record in theirs
    }


def write_slices(folder):
    """Two patients of two slices; the second has no picture after contrast."""
    draw = np.random.default_rng(0)
    for patient in ("TCGA_A_1_19990101", "TCGA_A_2_19990101"):
        (folder / patient).mkdir()
        for number in (1, 2):
            pixels = draw.integers(0, 255, (64, 64, 3)).astype(np.uint8)
            if "A_2" in patient:
                pixels[..., 2] = pixels[..., 1]
            mask = np.zeros((64, 64), np.uint8)
            mask[0, : 8 * (number - 1)] = 255
            Image.fromarray(pixels).save(folder / patient / f"{patient}_{number}.tif")
            Image.fromarray(mask).save(folder / patient / f"{patient}_{number}_mask.tif")
    (folder / "data.csv").write_text(
        "Patient,tumor_location,age_at_initial_pathologic\nTCGA_A_1,2,44\nTCGA_A_2,,\n"
    )


def test_channels_of_slices_become_sequences_and_a_filled_one_is_left_out(tmp_path, capsys):
    write_slices(tmp_path)
    assert main(["benchmark", "paired-v1", "--join", f"lgg={tmp_path}"]) == 0
    out = tmp_path / "sequences"
    assert str(out / "slices_flair.csv") in capsys.readouterr().out
    flair, post = rows(out / "slices_flair.csv"), rows(out / "slices_post.csv")
    assert [row["tumour_in_slice"] for row in flair] == ["no", "yes", "no", "yes"]
    assert flair[0]["patient"] == "TCGA_A_1" and flair[0]["age"] == "44"
    assert {row["patient"] for row in post} == {"TCGA_A_1"}
    original = np.asarray(Image.open(tmp_path / "TCGA_A_1_19990101/TCGA_A_1_19990101_2.tif"))
    assert np.array_equal(np.asarray(Image.open(out / post[1]["post"])), original[..., 2])


def test_labels_of_slices_are_those_of_the_published_parts(shared, tmp_path):
    source = shared / "data" / "lgg-mri-segmentation"
    theirs = {row["slice_id"]: row for row in rows(source / "sequences" / "slices_post.csv")}
    for patient in ("TCGA_CS_4942", "TCGA_CS_5396"):
        shutil.copytree(source / "kaggle_3m" / patient, tmp_path / patient)
    shutil.copy(source / "kaggle_3m" / "data.csv", tmp_path)
    join("lgg", tmp_path)
    for row in rows(tmp_path / "sequences" / "slices_post.csv"):
        for column in ("tumour_in_slice", "age", "tumor_location_code", "patient"):
            assert row[column] == theirs[row["slice_id"]][column]


@pytest.mark.parametrize("name", ["milk10k", "bus_bra", "lgg"])
def test_another_folder_is_no_set_and_is_left_alone(tmp_path, name):
    (tmp_path / "bus_data.csv").write_text("ID,Case\nx,1\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"hands it out|does not exist"):
        join(name, tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_a_table_that_is_there_is_not_written_over(tmp_path):
    write_slices(tmp_path)
    join("lgg", tmp_path)
    with pytest.raises(UserError, match="exists already"):
        join("lgg", tmp_path)
