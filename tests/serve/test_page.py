"""The page without a script, and what it is made of."""

from __future__ import annotations

import re

import numpy as np
import pytest
from starlette.testclient import TestClient

from drifa_jax.data.record import ModalitySpec, TabularSpec
from drifa_jax.data.table import TableColumns, fit_table
from drifa_jax.predict.reading import TABLE, Reading
from drifa_jax.predict.restored import Description
from drifa_jax.predictions.table import Predictions
from drifa_jax.serve.app import build_app
from drifa_jax.serve.cases import Answered, Case, Held
from drifa_jax.serve.guard import Access
from drifa_jax.serve.options import Refused
from drifa_jax.serve.overlays import _placed
from drifa_jax.serve.pages import render
from drifa_jax.serve.service import Service
from drifa_jax.serve.uploads import Form
from drifa_jax.serve.view import form_view, percent
from tests.serve.conftest import png


def test_the_page_asks_for_every_modality_and_holds_nothing_inline(client):
    text = client.get("/").text
    assert 'name="mri"' in text and 'name="ct"' in text and "Research use only" in text
    assert "SYNTHETIC" in text
    assert not re.search(r"<script(?! src)|<style| style=| on\w+=|https?://", text)


def test_without_a_script_a_form_is_answered_and_explained_at_once(client, files):
    text = client.post("/case", files=files[0]).text
    for word in ("The answer", "Uncertainty", "What each modality added", "What if one were"):
        assert word in text
    assert 'class="heat"' in text and "data-waiting" not in text


def test_the_answer_comes_first_and_its_explanation_by_name(client, files):
    first = client.post("/case?part=1", files=files[0])
    assert "tumour: " in first.headers["x-summary"]
    assert "data-waiting" in first.text and 'class="heat"' not in first.text
    name = re.search(r'data-case="([^"]+)"', first.text)[1]
    assert 'class="heat"' in client.get(f"/case/{name}").text
    assert client.get("/case/unknown").status_code == 404


def test_a_problem_is_said_in_the_page(client):
    wrong = {"mri": ("a.png", b"words", "image/png")}
    response = client.post("/case", files=wrong)
    assert response.status_code == 422 and "mri.png: is not an image" in response.text


def test_a_drawn_case_is_at_hand_for_a_network_of_drawn_ones(client):
    assert client.get("/drawn/3/mri.png").content[:4] == b"\x89PNG"
    assert client.get("/drawn/99/mri.png").status_code == 404
    assert client.get("/drawn/3/xray.png").status_code == 404


@pytest.mark.parametrize("path", ["/static/serve.css", "/static/serve.js", "/api"])
def test_all_that_the_page_needs_is_here(client, path):
    assert client.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/nothing"])
def test_nothing_else_is_here(client, path):
    assert client.get(path).status_code == 404


def test_a_browser_signs_in_once(client):
    app = build_app(client.service, Access(("127.0.0.1",), True, "a-long-enough-token"))
    browser = TestClient(app, base_url="http://192.0.2.7", follow_redirects=False)
    html = {"accept": "text/html"}
    assert browser.get("/", headers=html).headers["location"] == "/sign-in"
    assert browser.post("/sign-in", data={"token": "wrong"}).status_code == 401
    entered = browser.post("/sign-in", data={"token": "a-long-enough-token"})
    assert entered.status_code == 303
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "enough" not in cookie
    assert browser.get("/", headers=html).status_code == 200


@pytest.fixture
def described():
    """Pictures beside a table."""
    rows = [{"age": "40", "sex": "f"}, {"age": "60", "sex": "m"}]
    encoding = fit_table(TableColumns("mri_table", ("age",), ("sex",)), rows)
    specs = (ModalitySpec("mri", 8, 8, 1), TabularSpec("mri_table", 6))
    readings = {"mri": Reading(), "mri_table": Reading(TABLE, encoding=encoding)}
    return Description(specs, readings, {"lesion": ("no", "yes")}, True, False, "a test")


def test_a_table_is_a_form_with_the_columns_of_training(described):
    asked = form_view(described)
    text = render(
        "index.html", described, asked=asked, shown=None, problem="", most_bytes=1,
        calibrated=False, examples=0, example_names=(), members="1 member",
    )  # fmt: skip
    assert 'name="mri_table.age"' in text and "about 50 ± 10 in training" in text
    assert "<option>f</option><option>m</option>" in text


def test_fields_of_a_table_become_its_row(described, monkeypatch):
    service = Service.__new__(Service)
    service.description = described
    service._specs = {spec.name: spec for spec in described.modalities}
    form = Form(fields={"mri_table.age": "50", "mri_table.sex": "", "record_id": "a"})
    rows, rest, numbers = service._fields(form)
    assert (rows, rest, numbers) == (
        {"mri_table": {"age": "50", "sex": ""}},
        {"record_id": "a"},
        {},
    )
    from drifa_jax.serve.decoding import Decoded

    case = service._case(Decoded({}, {}, {}, {}), rows, "a")
    assert case.present == {"mri": False, "mri_table": True}
    assert case.rows == {"mri_table": {"age": "50", "sex": "missing"}}
    with pytest.raises(Refused, match="'old' in the column 'age' is not a number"):
        service._case(Decoded({}, {}, {}, {}), {"mri_table": {"age": "old", "sex": ""}}, "a")


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_a_map_lies_where_the_network_saw_the_place(fit):
    from drifa_jax.data.decode import fit_image

    picture = np.zeros((40, 80, 1), np.uint8)
    picture[18:22, 38:42] = 255
    seen = fit_image(picture, ModalitySpec("mri", 32, 32, 1), fit=fit)[..., 0] / 255.0
    placed = _placed(seen.astype(np.float32), (40, 80), fit)
    assert placed.shape == (40, 80)
    centre = np.argwhere(placed > 0.5 * placed.max()).mean(0)
    np.testing.assert_allclose(centre, (19.5, 39.5), atol=1.0)


def test_certainty_is_never_claimed():
    assert [percent(p) for p in (0.0, 0.004, 0.5, 0.996, 1.0)] == [
        "under 1 %", "under 1 %", "50 %", "over 99 %", "over 99 %",
    ]  # fmt: skip


def test_held_cases_go_when_they_are_old_many_or_large():
    now = [0.0]
    held = Held(2, 1000, 60.0, lambda: now[0])
    case = Case("a", {"mri": np.zeros(300, np.uint8)}, {"mri": True}, {}, {}, {})
    one = Answered(case, Predictions((), {}), {})
    names = [held.keep(one, one.case.num_bytes) for _ in range(3)]
    assert [held.find(name) is one for name in names] == [False, True, True]
    now[0] = 61.0
    assert held.find(names[2]) is None and len(held) == 0
    assert held.find(held.keep(one, 2000)) is None


def test_text_of_a_client_is_text_in_the_page(client, files):
    text = client.post(
        "/case", files=files[0], data={"record_id": "<script>alert(1)</script>"}
    ).text
    assert "<script>alert" not in text and "&lt;script&gt;" in text


def test_a_picture_of_a_volume_shows_four_slices():
    from drifa_jax.serve.reading_case import montage

    assert montage(np.zeros((9, 6, 5, 1), np.uint8)).shape == (12, 10)
    assert montage(np.zeros((3, 6, 5, 3), np.uint8)).shape == (12, 10, 3)
    assert png(np.zeros((4, 4), np.uint8))[:4] == b"\x89PNG"
