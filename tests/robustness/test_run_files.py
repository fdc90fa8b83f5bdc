"""Files of a run that were damaged or edited are named; no answer changes in silence."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest

from drifa_jax.config import from_mapping
from drifa_jax.errors import UserError
from drifa_jax.predict.restored import restore
from drifa_jax.sealed_files import read_sealed, write_sealed
from drifa_jax.train import older_checkpoints
from drifa_jax.train.metrics_log import line_of, read_metrics
from drifa_jax.train.run_directory import CONFIG_FILE, saved_config

ENTRIES = [
    {"split": "train_step", "step": 1, "epoch": 1, "total": 0.5, "gradient_norm": 1.0},
    {"split": "train", "step": 2, "epoch": 1, "total": 0.25, "members": [{"total": 0.25}]},
]


def flipped(content: bytes, moments: random.Random) -> bytes:
    changed, place = bytearray(content), moments.randrange(8 * len(content))
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def test_a_sealed_file_gives_what_was_written_or_is_named(tmp_path):
    path, moments = tmp_path / "a.json", random.Random(0)
    values = {"a": [1, 2.5, None], "b": {"c": "ü"}}
    write_sealed(path, values)
    content = path.read_bytes()
    for _ in range(100):
        path.write_bytes(flipped(content, moments))
        try:
            found = read_sealed(path, "Copy it.")
        except UserError as error:
            assert str(error).startswith(f"{path}: ") and str(error).endswith("Copy it.")
        else:  # a flip in the word "digest" leaves the values
            assert {name: found[name] for name in values} == values


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, '{"a": ', '{"a": 1, "digest": "0"}'])
def test_other_json_is_damaged(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json: is damaged or was changed"):
        read_sealed(tmp_path / "a.json", "")


def test_every_flipped_bit_of_the_metrics_is_noticed(tmp_path):
    path, moments = tmp_path / "metrics.jsonl", random.Random(0)
    path.write_text("".join(map(line_of, ENTRIES)) + '{"half a li')
    content = path.read_bytes()
    assert read_metrics(tmp_path) == ENTRIES
    for _ in range(200):
        path.write_bytes(flipped(content, moments))
        try:
            found = read_metrics(tmp_path)
        except UserError as error:
            assert "is not what was written" in str(error) and "Delete the line" in str(error)
        else:  # the half line, or the newline of the last whole one
            assert found == ENTRIES[: len(found)] and len(found) >= 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rubbish", "line 2"),
        ("[1]", "it is no object"),
        ('{"split": 1, "step": 1, "epoch": 1}', "split is no name"),
        ('{"split": "train", "step": "1", "epoch": 1}', "step is '1', no number"),
        ('{"split": "train", "step": 1, "epoch": -1}', "epoch is -1, no number"),
        ('{"split": "train", "step": 1, "epoch": 1, "total": "x"}', "total is 'x', no number"),
        ('{"split": "train", "step": 1, "epoch": 1, "members": 3}', "line 2"),
    ],
)
def test_a_rubbish_line_is_named_and_lines_of_earlier_releases_are_read(line, words, tmp_path):
    old = json.dumps(ENTRIES[0]) + "\n"
    (tmp_path / "metrics.jsonl").write_text(old + line + "\n" + old)
    with pytest.raises(UserError, match=words):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(old)
    assert read_metrics(tmp_path) == [ENTRIES[0]]


@pytest.mark.parametrize(
    "text", ["{}", "words", '{"validation_loss": NaN}', '{"validation_loss": []}']
)
def test_malformed_metrics_of_an_older_checkpoint_choose_no_epoch(text, tmp_path):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "metrics").write_text(text)
    with pytest.raises(UserError, match="unknown which epoch was the best"):
        older_checkpoints.losses(tmp_path)


@pytest.fixture
def copied(finished_run, tmp_path):
    """The run, copied to another place."""
    return shutil.copytree(finished_run, tmp_path / "copied")


def test_a_copied_run_is_the_same_run(finished_run, copied):
    ours, theirs = restore([copied]), restore([finished_run])
    assert ours.model_identity == theirs.model_identity


@pytest.mark.parametrize("sealed", (True, False))
@pytest.mark.parametrize(
    ("group", "field", "value"),
    [("model", "dropout_rate", 0.5), ("model", "compute_dtype", "bfloat16")],
)
def test_an_edited_configuration_is_never_taken_for_the_trained_one(
    copied, sealed, group, field, value
):
    """Also where who edited it took the digest away."""
    path = copied / CONFIG_FILE
    values = json.loads(path.read_text())
    values[group][field] = value
    if not sealed:
        del values["digest"]
    path.write_text(json.dumps(values))
    words = r"config\.json: is damaged" if sealed else rf"config\.json was changed[\s\S]*{field}"
    with pytest.raises(UserError, match=words):
        restore([copied])


@pytest.mark.parametrize("field", ("height", "channels", "classes"))
def test_edited_preprocessing_is_never_taken_for_the_trained_one(copied, field):
    path = copied / "preprocessing.json"
    values = json.loads(path.read_text())
    del values["digest"]
    if field == "classes":
        values["tasks"] = {task: names[::-1] for task, names in values["tasks"].items()}
    else:
        values["modalities"][0][field] += 1
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"preprocessing\.json was changed: its (tasks|modalities)"):
        restore([copied])


def test_a_configuration_out_of_range_names_the_file(copied):
    values = json.loads((copied / CONFIG_FILE).read_text())
    del values["digest"]
    values["uncertainty"]["num_mc_samples"] = "many"
    (copied / CONFIG_FILE).write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"config\.json: .*num_mc_samples"):
        saved_config(copied)


def test_a_configuration_of_an_earlier_release_has_no_digest(copied):
    config = saved_config(copied)
    (copied / CONFIG_FILE).write_text(config.to_json())
    assert saved_config(copied) == config == from_mapping(json.loads(config.to_json()))
    assert np.size(restore([copied]).steps) == 1
