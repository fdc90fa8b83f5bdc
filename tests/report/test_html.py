"""The report as text: complete, self-contained, escaped, honest about blanks."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import xml.etree.ElementTree as ET

import pytest
from pyarrow import parquet

from drifa_jax.report.blocks import Prose, Section
from drifa_jax.report.checklists import CLAIM, TRIPOD_AI, claim, known_facts, tripod_ai
from drifa_jax.report.evaluation_report import metrics_document
from drifa_jax.report.html import render
from drifa_jax.report.sections import classification, headline, subgroups
from drifa_jax.report.sections.data import data


@pytest.fixture(scope="module")
def page(evaluation_folder) -> str:
    return (evaluation_folder / "report.html").read_text()


def test_all_sections_of_an_evaluation_are_there(page):
    titles = re.findall(r'<h2 id="[^"]+">([^<]+)</h2>', page)
    assert titles == [
        "Results in short",
        "Data, splits and leakage",
        "Learning curves",
        "Classification",
        "ROC and precision-recall",
        "Calibration",
        "Uncertainty and referral",
        "Gallery",
        "Subgroups",
        "Cost",
        "Environment and reproduction",
        "Model card",
        "TRIPOD+AI checklist",
        "CLAIM checklist (2024 update)",
    ]


def test_the_page_needs_nothing_else(page):
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert not re.search(r"@import|url\((?!#)", page)
    assert len(page) < 5_000_000


def test_names_from_the_data_are_text_and_never_markup(page):
    assert "<b>none</b>" not in page
    assert "&lt;b&gt;none&lt;/b&gt;" in page


def test_what_was_left_out_of_the_data_is_listed(evaluated, tmp_path):
    note = "scans: left out: 2 hidden files, 1 reports (SR)"
    _, of = evaluated
    noted = dataclasses.replace(of, data=dataclasses.replace(of.data, notes=(note,)))
    page = render("t", "s", [data(noted, tmp_path)], synthetic=False, made="m")
    assert note in page
    assert metrics_document(noted)["data_notes"] == [note]
    assert "left out" not in render("t", "s", [data(of, tmp_path)], synthetic=False, made="m")


def test_no_id_occurs_twice_and_every_reference_has_its_target(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page):
        assert target in ids
    for target in re.findall(r'aria-labelledby="([^"]+)"', page):
        assert target in ids


def test_synthetic_data_are_stamped_and_real_ones_are_not(page):
    assert "<title>SYNTHETIC: " in page
    assert "SYNTHETIC DATA" in page
    other = render("t", "s", [Section("a", "A", [Prose("p")])], synthetic=False, made="m")
    assert "SYNTHETIC" not in other
    assert "Not a medical device" in other


def test_figures_are_files_too_and_say_synthetic(evaluation_folder):
    names = {path.name for path in (evaluation_folder / "figures").iterdir()}
    for name in ("roc-tumour", "confusion-stroke", "reliability-stroke", "risk-coverage-tumour"):
        assert {f"{name}.png", f"{name}.svg"} <= names
    for path in (evaluation_folder / "figures").glob("*.svg"):
        text = path.read_text()
        ET.fromstring(text)
        assert "SYNTHETIC data" in text


def test_predictions_are_equal_in_csv_and_parquet_with_their_uncertainty(evaluation_folder):
    table = parquet.read_table(evaluation_folder / "predictions.parquet").to_pylist()
    with (evaluation_folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(table) == len(rows) == 240
    assert [row["record_id"] for row in rows] == [row["record_id"] for row in table]
    for name in ("stroke/predictive_entropy", "stroke/mutual_information", "stroke/p(early)"):
        assert float(rows[7][name]) == pytest.approx(table[7][name])
    assert table[0]["stroke/true"] is None and table[0]["stroke/right"] is None
    assert table[7]["sex"] == "m"


def test_metrics_json_is_plain_and_holds_every_figure(evaluation_folder):
    document = json.loads(
        (evaluation_folder / "metrics.json").read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )
    assert document["synthetic"] is True
    stroke = document["tasks"]["stroke"]
    assert stroke["num_records"] == 235
    assert stroke["num_groups"] == 118
    assert stroke["metrics"]["auroc"]["low"] < stroke["metrics"]["auroc"]["value"]
    assert set(stroke["subgroups"]) == {"sex", "age"}


def test_a_single_class_says_that_auroc_is_undefined(single_class, tmp_path):
    from drifa_jax.report.sections import curves

    assert single_class.tasks["tumour"].metrics.scalars["auroc"].value is None
    shown = render(
        "t",
        "s",
        [make(single_class, tmp_path) for make in (headline, classification, curves)],
        synthetic=False,
        made="m",
    )
    assert "undefined: only the class &#39;glioma&#39; occurs among the 240 labels" in shown
    assert "so that there is no curve" in shown


def test_records_without_columns_say_that_nothing_is_known_of_subgroups(single_class, tmp_path):
    shown = render("t", "s", [subgroups(single_class, tmp_path)], synthetic=False, made="m")
    assert "carry no sex, age, site or source" in shown


def test_checklists_fill_only_what_the_run_knows(evaluated, tmp_path):
    _, of = evaluated
    assert [len(items) for items in (TRIPOD_AI, CLAIM)] == [52, 44]
    facts = known_facts(of)
    assert {fact for *_, fact in TRIPOD_AI + CLAIM if fact} <= set(facts)
    for section in (tripod_ai(of, tmp_path), claim(of, tmp_path)):
        rows = {row[0]: row[2] for row in section.blocks[1].rows}
        blank = [number for number, cell in rows.items() if cell.blank]
        assert len(blank) > len(rows) / 4
    ethics = {row[0]: row[2] for row in tripod_ai(of, tmp_path).blocks[1].rows}["17"]
    assert ethics.blank
