"""Configuration: defaults, overrides, and errors that name the field and the cure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drifa_jax.config import Config, from_mapping
from drifa_jax.config_files import load_config
from drifa_jax.errors import UserError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
QUICK = f"{CONFIGS / 'brain.py'}:quick"


@pytest.mark.parametrize(
    "name",
    ("brain.py", "brain.py:quick", "brain.py:folders", "skin_cervix.py", "skin_cervix.py:herlev"),
)
def test_every_config_file_resolves(name):
    assert isinstance(load_config(str(CONFIGS / name)), Config)


def test_override_changes_one_field_and_keeps_its_type():
    config = load_config(
        QUICK, [("train.batch_size", "8"), ("train.learning_rate", "1"), ("model.mifa_parts", "[]")]
    )
    assert (config.train.batch_size, config.model.mifa_parts) == (8, ())
    assert isinstance(config.train.learning_rate, float)


def test_a_number_may_be_written_without_a_point():
    config = load_config(QUICK, [("train.learning_rate", "1e-4")])
    assert config.train.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("name", "texts", "expected"),
    [
        ("model.fuse_at", ("(9,)", "[9]", "9", " [ 9, ] "), (9,)),
        ("model.fuse_at", ("(2, -1)", "[2,-1]", "2,-1"), (2, -1)),
        ("model.fuse_at", ("resolutions", "('resolutions',)"), ("resolutions",)),
        ("model.mifa_parts", ("()", "[]", ""), ()),
        ("data.modalities.mri.spacing", ("(5, 1e0, 1)", "5,1,1"), (5.0, 1.0, 1.0)),
        ("data.modalities.mri.classes", ("no,yes", "[no, 'yes']"), ("no", "yes")),
        ("data.modalities.mri.classes", ("0,1",), ("0", "1")),
        ("data.modalities.mri.classes", ("['nevus, blue', mel]",), ("nevus, blue", "mel")),
    ],
)
def test_a_list_may_be_written_in_several_ways(name, texts, expected):
    mri = "data.modalities.mri"
    of_volumes = [(f"{mri}.depth", "4"), (f"{mri}.format", "nifti")]
    for text in texts:
        value = load_config(QUICK, [*of_volumes, (name, text)]).flat()[name]
        assert value == expected and [*map(type, value)] == [*map(type, expected)]


def test_override_of_one_modality_leaves_the_others_alone():
    """Also where the file gives both the same object, as `brain.py:quick` does."""
    config = load_config(QUICK, [("data.modalities.mri.height", "32")])
    assert [m.height for m in config.data.modalities.values()] == [64, 32]


def test_text_fields_keep_text_that_looks_like_something_else():
    pattern = "[a-z]+_(?P<id>[0-9]+): .*"
    overrides = {"root": "2024", "group_pattern": pattern}
    config = load_config(QUICK, [(f"data.modalities.mri.{k}", v) for k, v in overrides.items()])
    mri = config.data.modalities["mri"]
    assert (mri.root, mri.group_pattern) == ("2024", pattern)


def test_saved_configuration_reads_back_equal():
    config = load_config(QUICK)
    assert from_mapping(json.loads(config.to_json())) == config


def test_run_may_go_on_with_activations_computed_again():
    kept, again = (load_config(QUICK, [("train.rematerialise", on)]) for on in ("false", "true"))
    assert again.train.rematerialise and again.essence() == kept.essence()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("train.bathc_size", "1"), r"no field 'train.bathc_size'. Did you mean 'batch_size'\?"),
        (("trian.seed", "1"), r"no field 'trian'"),
        (("data.modalities.mri.heigth", "64"), r"Did you mean 'height'\?"),
        (("train", "1"), "is a group; set one of its fields"),
        (("train.batch_size", "many"), "train.batch_size is 'many'; it must be of type int"),
        (("train.batch_size", "1.5"), "train.batch_size is 1.5; it must be of type int"),
        (("train.batch_size", "0"), "train.batch_size is 0; it must be at least 1"),
        (("train.schedule", "step"), "one of plateau, cosine, constant"),
        (("model.dropout_rate", "1"), r"it must be in \[0, 1\)"),
        (("data.modalities.mri.height", "4"), "at least 16 pixels"),
        (("model.compute_dtype", "float16"), "one of float32, bfloat16"),
        (("model.mfa_parts", "[hifa"), r"cannot be read. A list is written as \[a, b\]"),
        (("model.fuse_at", "[[1]]"), r"model.fuse_at is \['1'\]; it must be of type"),
    ],
)
def test_wrong_override_is_named_with_its_cure(override, message):
    with pytest.raises(UserError, match=message):
        load_config(QUICK, [override])


def test_all_wrong_values_are_listed_at_once():
    with pytest.raises(UserError, match=r"dropout_rate.*batch_size"):
        load_config(QUICK, [("train.batch_size", "0"), ("model.dropout_rate", "2")])


def test_missing_file_and_unknown_variant_are_named():
    with pytest.raises(UserError, match=r"there is no file 'nowhere.py'"):
        load_config("nowhere.py")
    with pytest.raises(UserError, match="no variant 'slow'; it has 'quick', 'folders'"):
        load_config(f"{CONFIGS / 'brain.py'}:slow")


def test_config_file_that_fails_is_named_with_its_error(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(variant):\n    return 1 / 0\n")
    with pytest.raises(UserError, match=r"broken.py failed with ZeroDivisionError"):
        load_config(str(broken))


def test_unknown_group_in_a_saved_configuration_is_named():
    with pytest.raises(UserError, match="no field 'optimiser'"):
        from_mapping({"optimiser": {}})
