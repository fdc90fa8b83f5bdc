"""Attributes of records reach the evaluation through every wrapper, and name whose they are."""

from __future__ import annotations

import numpy as np
from PIL import Image

from drifa_jax.data.attributes import attributes_of
from drifa_jax.data.pairing import combine
from drifa_jax.data.record import ModalitySpec
from drifa_jax.data.sources.manifest import ManifestColumns, ManifestSource
from drifa_jax.data.sources.phantoms import TASKS, PhantomSource
from drifa_jax.data.splits import Concatenated, Subset
from drifa_jax.data.table import TableColumns, add_table


def manifest(folder, modality="mri", sex=("f", "m", "")):
    folder.mkdir()
    lines = ["id,file,label,sex,site"]
    for i, of in enumerate(sex):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / f"{i}.png")
        lines.append(f"r{i},{i}.png,{'yes' if i % 2 else 'no'},{of},north")
    table = folder / "table.csv"
    table.write_text("\n".join(lines) + "\n")
    columns = ManifestColumns("id", images={modality: "file"}, tasks={modality: "label"})
    return ManifestSource(table, folder, columns, [ModalitySpec(modality, 4, 4, 1)])


def test_a_manifest_tells_the_columns_that_mean_nothing_else(tmp_path):
    source = manifest(tmp_path / "a")
    assert attributes_of(source, 0) == {"sex": "f", "site": "north"}
    assert attributes_of(source, 2) == {"sex": "", "site": "north"}


def test_wrappers_pass_them_on(tmp_path):
    source = manifest(tmp_path / "a")
    assert attributes_of(Subset(source, [1]), 0)["sex"] == "m"
    assert attributes_of(Concatenated([Subset(source, [0]), Subset(source, [1])]), 1)["sex"] == "m"
    columns = TableColumns("mri_table", (), ("sex",))
    with_table = add_table({"train": source}, source.rows, columns)[0]["train"]
    assert attributes_of(with_table, 1)["sex"] == "m"


def test_a_pair_of_strangers_says_whose_an_attribute_is(tmp_path):
    sources = {
        "mri": manifest(tmp_path / "a"),
        "ct": manifest(tmp_path / "b", "ct", sex=("m", "f", "f")),
    }
    strangers = combine("index", sources, evaluation=True)
    assert attributes_of(strangers, 0) == {
        "mri/sex": "f",
        "mri/site": "north",
        "ct/sex": "m",
        "ct/site": "north",
    }
    assert attributes_of(combine("by_task", sources, evaluation=True), 3)["sex"] == "m"
    assert attributes_of(combine("paired", sources, evaluation=True), 0)["sex"] == "f"


def test_phantoms_tell_which_modalities_show_the_lesion():
    source = PhantomSource("test", 60, 0, 16)
    seen = {attributes_of(source, i)["tumour/lesion shows in"] for i in range(60)}
    assert {"no lesion", "mri and ct", "mri", "ct"} <= seen
    task = TASKS["tumour"]
    called = [task.spec.classes[k] == task.healthy for k in source.labels("tumour")]
    told = [attributes_of(source, i)["tumour/lesion shows in"] == "no lesion" for i in range(60)]
    assert told == called


def test_a_source_without_attributes_has_none():
    class Bare:
        pass

    assert attributes_of(Bare(), 0) == {}
