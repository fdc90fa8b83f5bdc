"""Attributes of records reach the evaluation through every wrapper, and name whose they are."""

from __future__ import annotations

import numpy as np
from PIL import Image

from drifa_jax.data.pairing import combine
from drifa_jax.data.record import ModalitySpec
from drifa_jax.data.records import concatenate
from drifa_jax.data.sources.manifest import ManifestColumns, manifest_records
from drifa_jax.data.sources.phantoms import TASKS, PhantomSource
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
    return manifest_records(table, folder, columns, [ModalitySpec(modality, 4, 4, 1)])


def test_a_manifest_tells_the_columns_that_mean_nothing_else(tmp_path):
    source = manifest(tmp_path / "a")
    assert source.attributes(0) == {"sex": "f", "site": "north"}
    assert source.attributes(2) == {"sex": "", "site": "north"}


def test_every_change_of_a_table_keeps_them(tmp_path):
    source = manifest(tmp_path / "a")
    assert source.take([1]).attributes(0)["sex"] == "m"
    assert concatenate([source.take([0]), source.take([1])]).attributes(1)["sex"] == "m"
    assert source.regrouped(["a", "b", "c"]).attributes(1)["sex"] == "m"
    assert source.in_memory().only(("mri",)).attributes(1)["sex"] == "m"
    columns = TableColumns("mri_table", (), ("sex",))
    rows = {record_id: {"sex": "f"} for record_id in source.ids}
    with_table = add_table({"train": source}, rows, columns)[0]["train"]
    assert with_table.attributes(1)["sex"] == "m"


def test_a_pair_of_strangers_says_whose_an_attribute_is(tmp_path):
    sources = {
        "mri": manifest(tmp_path / "a"),
        "ct": manifest(tmp_path / "b", "ct", sex=("m", "f", "f")),
    }
    strangers = combine("index", sources, evaluation=True)
    assert strangers.attributes(0) == {
        "mri/sex": "f",
        "mri/site": "north",
        "ct/sex": "m",
        "ct/site": "north",
    }
    assert combine("by_task", sources, evaluation=True).attributes(3)["sex"] == "m"
    assert combine("paired", sources, evaluation=True).attributes(0)["sex"] == "f"


def test_phantoms_tell_which_modalities_show_the_lesion():
    source = PhantomSource("test", 60, 0, 16)
    seen = {source.attributes(i)["tumour/lesion shows in"] for i in range(60)}
    assert {"no lesion", "mri and ct", "mri", "ct"} <= seen
    task = TASKS["tumour"]
    called = [task.spec.classes[k] == task.healthy for k in source.labels("tumour")]
    told = [source.attributes(i)["tumour/lesion shows in"] == "no lesion" for i in range(60)]
    assert told == called
