"""Tables, folders and manifests of any structure: records, or an error that says what is wrong."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from drifa_jax.config import ModalityConfig
from drifa_jax.console import harmless, printable
from drifa_jax.data.label_checks import label_findings
from drifa_jax.data.problems import Problems
from drifa_jax.data.sources.opening import open_modality
from drifa_jax.data.splits import shares
from drifa_jax.data.table import read_table
from drifa_jax.errors import UserError

# Examples are drawn from a fixed seed, so that a failure is the same everywhere.
COMMON = dict(deadline=None, database=None, derandomize=False, suppress_health_check=[*HealthCheck])
HOSTILE = st.sampled_from(
    ["<b>x</b>", "=1+1", "\x1b[31mred", "\u202egnp.exe", "-2+3", "@cmd", "a\x00b", "NaN", "None",
     "", " ", "0", "0.0", "00", "1e999", "n\u00e9", "ne\u0301", "..", "/", "C:\\x", "a/b", "\ud800"]
)  # fmt: skip
CELLS = HOSTILE | st.text(max_size=12)
NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=20
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 200)


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(file, "PNG")
    return file.getvalue()


PICTURE = picture()


def opened(root, **fields):
    config = ModalityConfig(height=16, width=16, channels=1, root=str(root), task="dx", **fields)
    return open_modality("ct", config, shares(0.2, 0.2))


def check(root, **fields):
    """Opening ends well, or with words that a terminal can show."""
    try:
        splits = opened(root, **fields)
    except UserError as error:
        assert printable(str(error)).strip()
        return
    ids = [i for records in splits.values() for i in records.ids]
    assert len(ids) == len(set(ids))
    for finding in label_findings(splits):
        assert printable(finding.text)
    for records in splits.values():
        for row in range(len(records)):
            try:
                assert records[row].images["ct"].shape == (16, 16, 1)
            except UserError:
                pass


@seed(0)
@settings(max_examples=60, **COMMON)
@given(st.lists(st.lists(CELLS, max_size=5), max_size=8), st.sampled_from(",;\t|"), st.booleans())
def test_any_table_is_rows_or_an_error(lines, mark, quoted):
    text = io.StringIO()
    quoting = csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL
    csv.writer(text, delimiter=mark, quoting=quoting).writerows(lines)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_bytes(text.getvalue().encode("utf-8", "replace"))
        try:
            rows = read_table(path)
        except UserError as error:
            assert str(path) in str(error)
            return
        assert len({tuple(row) for row in rows}) <= 1


@seed(0)
@settings(max_examples=60, **COMMON)
@given(st.data())
def test_any_manifest_is_records_or_an_error(data):
    count = data.draw(st.integers(1, 12))
    row = st.tuples(
        st.sampled_from([f"r{k}" for k in range(12)]) | CELLS,
        st.sampled_from(["im0", "im1.png", "deep/im2", "im3", ""]) | CELLS,
        st.sampled_from(["a", "b", "A", "0", "0.0", "None", ""]) | CELLS,
        st.sampled_from(["p1", "p2", "NA", ""]) | CELLS,
        st.sampled_from(["train", "val", "test", "TRAIN", ""]) | CELLS,
    )
    rows = data.draw(st.lists(row, min_size=count, max_size=count))
    fields = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "group_column": st.just("patient"),
                "split_column": st.just("split"),
                "rows": st.sampled_from(["patient=p1", "patient", "=", "x=y"]),
                "classes": st.just(("a", "b")),
                "label_column": st.sampled_from(["label,split", "label", "id", "absent"]),
            },
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("im0.png", "im1.png", "deep/im2.png", "im3.dcm"):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(PICTURE)
        with (root / "t.csv").open("w", newline="", errors="replace") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "image", "label", "patient", "split"])
            writer.writerows(rows)
        columns = {"table": "t.csv", "id_column": "id", "image_column": "image"}
        check(root, format="manifest", **columns, **fields)


@seed(0)
@settings(max_examples=30, **COMMON)
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "Training/a", "Testing/a", "train", "x/Training/b"])
        | st.tuples(NAMES, NAMES).map("/".join),
        st.lists(NAMES.map(lambda name: name + ".png") | NAMES, max_size=4),
        max_size=5,
    ),
    st.sampled_from(["", r"^(\w)", "(", "x"]),
)
def test_any_tree_of_folders_is_records_or_an_error(tree, pattern):
    with tempfile.TemporaryDirectory() as top:
        root = Path(top) / "root"
        root.mkdir()
        for folder, names in tree.items():
            try:
                (root / folder).mkdir(parents=True, exist_ok=True)
                for name in names:
                    (root / folder / name).write_bytes(PICTURE)
            except OSError:  # a name that is a file already, or too long with its suffix
                continue
        for format in ("folders", "dicom", "nifti"):
            check(root, format=format, group_pattern=pattern)
        assert [path.name for path in Path(top).iterdir()] == ["root"]


@seed(0)
@settings(max_examples=25, **COMMON)
@given(st.lists(st.tuples(CELLS, CELLS), max_size=5))
def test_reports_of_problems_hold_no_formula_and_stay_whole(found):
    with tempfile.TemporaryDirectory() as folder:
        problems = Problems("the folder")
        for where, what in found:
            problems.add(where, what)
        problems.write_report(Path(folder) / "report.csv")
        with (Path(folder) / "report.csv").open(newline="") as file:
            rows = list(csv.reader(file))
    assert len(rows) == len(found) + 1
    assert all(cell == harmless(cell) for row in rows for cell in row)
