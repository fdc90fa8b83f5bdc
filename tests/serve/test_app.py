"""The endpoint for programs: the answer of `drifa predict`, and a clear no to all else."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from drifa_jax.predictions.files import flat_rows
from drifa_jax.serve.answers import tasks_json
from drifa_jax.serve.cases import Case
from drifa_jax.serve.guard import Access
from drifa_jax.serve.server import bound
from drifa_jax.serve.service import Service
from drifa_jax.serve.tokens import COOKIE, session_of
from tests.serve.conftest import LIMITS, png, wait_for

PICTURE = ("a.png", png(np.zeros((4, 4), np.uint8)), "image/png")
BATCH_ROUNDING = 2e-6
"""Of float32 products that are tiled otherwise in a batch of two."""


def post(client, files=None, data=None, **more):
    return client.post("/v1/predict", files=files, data=data, **more)


def reason(response) -> str:
    return response.json()["error"]["reason"]


def test_the_answer_is_that_of_drifa_predict_to_the_last_bit(client, predictor, files, tmp_path):
    images = {}
    for name, (file, content, _) in files[0].items():
        (tmp_path / file).write_bytes(content)
        images[name] = [tmp_path / file]
    expected = predictor(images, ["case0"])
    found = post(client, files[0], {"record_id": "case0"}).json()
    assert found["tasks"] == tasks_json(expected)
    (row,) = flat_rows(expected)
    for task, classes in predictor.description.tasks.items():
        for name in classes:
            assert found["tasks"][task]["probabilities"][name] == row[f"{task}/p({name})"]
    assert found["out_of_distribution"]["p_value"] == row["ood/p_value"]
    assert found["modalities"]["mri"]["window"] == "8 bits as stored"


def test_arrays_in_json_give_the_answer_of_the_files(client, files, pixels):
    arrays = {m: x[0].tolist() for m, x in pixels.items()}
    found = client.post("/v1/predict", json={"modalities": arrays}).json()
    assert found["tasks"] == post(client, files[0]).json()["tasks"]
    assert found["record_id"].startswith("image-")


def test_cases_that_come_together_are_answered_together_and_alike(client, predictor):
    engine, draw = client.service.engine, np.random.default_rng(0)
    cases = []
    for _ in range(2):
        pixels = {
            s.name: draw.integers(0, 256, s.shape, np.uint8)
            for s in predictor.description.modalities
        }
        cases.append(Case("x", pixels, dict.fromkeys(pixels, True), {}, {}, {}))
    sizes = []
    engine._on_batch, before = sizes.append, engine._on_batch
    alone = [engine.answer(case).result() for case in cases]
    with engine._changed:  # both are there before the thread may look
        futures = [engine.answer(case) for case in cases]
    together = [future.result() for future in futures]
    engine._on_batch = before
    assert sizes == [1, 1, 2]
    for one, other in zip(alone, together, strict=True):
        for task in predictor.description.tasks:
            np.testing.assert_allclose(
                one.predictions[task].probabilities,
                other.predictions[task].probabilities,
                atol=BATCH_ROUNDING,
            )


def test_many_clients_at_once_are_all_answered(client, files):
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda k: post(client, files[k % 2]).status_code, range(24)))
    assert found == [200] * 24


def test_the_explanation_comes_where_it_is_asked_for(client, predictor, files):
    found = post(client, files[0], {"explain": "true"}).json()["explanation"]
    assert found["extrapolates"] is True
    for one in found["tasks"].values():
        assert set(one["contributions"]) == {"mri", "ct"}
    without = found["without"]
    assert set(without) == {"mri", "ct"}
    assert without["mri"]["tasks"] != without["ct"]["tasks"]


@pytest.mark.parametrize(
    ("files", "data", "status", "told"),
    [
        ({"xray": ("a.png", b"x", "image/png")}, None, 422, "this network reads mri, ct"),
        ({"mri": ("a.png", b"#!/bin/sh\nrm -rf /\n", "image/png")}, None, 422, "is not an image"),
        ({"mri": ("a.png", b"", "image/png")}, None, 422, "is empty"),
        ({"mri": ("a.dcm", b"x" * 200, "")}, None, 422, "is not a DICOM file"),
        ({"mri": ("a.nii", b"x" * 600, "")}, None, 422, "is not a NIfTI file"),
        ({"mri": PICTURE}, None, 422, "The case lacks ct"),
        ({}, {"mri": "words"}, 422, "needs a file name"),
        ({}, {"mri.slice": "-1"}, 422, "number of a slice"),
        ({}, {"record_id": "x" * 5000}, 413, "longer than"),
        ({}, {f"field{k}": "x" for k in range(300)}, 413, "more than the 256 fields"),
        (dict.fromkeys(("mri", "ct"), PICTURE), {"record_id": "x" * 300}, 422, "at most 200"),
    ],
)
def test_what_does_not_fit_is_told_and_the_server_goes_on(client, files, data, status, told):
    # Without files a form would be sent urlencoded.
    response = post(client, files or {"ct": ("", b"", "")}, data)
    assert (response.status_code, told in reason(response)) == (status, True), response.text
    assert client.get("/healthz").json() == {"status": "ready"}


def test_two_files_for_one_modality_are_one_too_many(client, files):
    twice = [("mri", files[0]["mri"]), ("mri", files[0]["mri"]), ("ct", files[0]["ct"])]
    response = post(client, twice)
    assert response.status_code == 422 and "mri was given 2 files" in reason(response)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("{", "no JSON"),
        ("[]", "Send"),
        ('{"modalities": {"xray": []}}', "unknown"),
        ('{"modalities": {"mri": [[1, 2], [3]]}}', "different lengths"),
        ('{"modalities": {"mri": [[0.5]]}}', "whole numbers"),
        ('{"modalities": {"mri": [[256]]}}', "whole numbers"),
        ('{"modalities": {"mri": []}}', "whole numbers"),
        ('{"modalities": {}, "exploit": 1}', "means nothing"),
        ('{"modalities": {}}', "empty"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_json_that_is_no_case_is_told(client, body, told):
    response = client.post(
        "/v1/predict", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code == 422 and told in reason(response)


def test_a_request_that_is_too_large_is_refused_before_it_is_read(client):
    response = post(client, {"mri": ("a.png", bytes(LIMITS.upload_bytes), "image/png")})
    assert response.status_code == 413 and "8 MiB" in reason(response)
    response = client.post(
        "/v1/predict", content=bytes(2**20 + 1), headers={"content-type": "application/json"}
    )
    assert response.status_code == 413


def test_a_length_that_is_not_told_is_counted(client):
    def endless():
        yield b"--x\r\ncontent-disposition: form-data; name=mri; filename=a.png\r\n\r\n"
        for _ in range(9):
            yield bytes(2**20)

    response = client.post(
        "/v1/predict",
        content=endless(),
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("text/plain", b"x", 415),
        ("multipart/form-data", b"x", 415),
        ("multipart/form-data; boundary=x", b"nonsense", 400),
        ("multipart/form-data; boundary=x", b"--x\r\ncontent-disposition: form-data\r\n\r\n", 400),
        ("multipart/form-data; boundary=x", b"--x\r\na: " + b"b" * 10_000, 400),
    ],
)
def test_what_is_no_form_is_told(client, kind, body, status):
    response = client.post("/v1/predict", content=body, headers={"content-type": kind})
    assert response.status_code == status, response.text


def test_a_field_given_twice_is_refused(client):
    part = b'--x\r\ncontent-disposition: form-data; name="record_id"\r\n\r\na\r\n'
    response = client.post(
        "/v1/predict",
        content=part * 2 + b"--x--\r\n",
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    assert response.status_code == 400 and "twice" in reason(response)


def test_a_full_queue_and_full_memory_say_when_to_come_back(client, files, monkeypatch):
    service = client.service
    monkeypatch.setattr(service, "_open", service.limits.queue)
    response = post(client, files[0])
    assert response.status_code == 429 and response.headers["retry-after"] == "1"
    monkeypatch.setattr(service, "_open", 1)
    monkeypatch.setattr(service, "_bytes", service.limits.upload_bytes * 4)
    assert post(client, files[0]).status_code == 503


def test_nothing_is_answered_before_all_is_compiled_nor_after_the_end(predictor, client, files):
    service = Service(predictor, LIMITS)
    from starlette.testclient import TestClient

    from drifa_jax.serve.app import build_app

    early = TestClient(build_app(service, Access()), base_url="http://127.0.0.1")
    try:
        assert early.get("/healthz").status_code == 503
        response = post(early, files[0])
        assert response.status_code == 503 and "0 of 4" in reason(response)
    finally:
        service.stopping = True
        assert "stopping" in reason(post(early, files[0]))
        service.decoders.close()


def test_a_lost_decoder_is_started_again(client, files):
    (process,) = [client.service.decoders._idle.get() for _ in range(1)]
    os.kill(process._process.pid, 9)
    wait_for(lambda: not process.alive)
    client.service.decoders._idle.put(process)
    assert post(client, files[0]).status_code == 200
    assert "drifa_decoder_restarts_total 1" in client.get("/metrics").text


def test_a_run_without_post_processing_answers_and_says_what_lacks(client, files, monkeypatch):
    monkeypatch.setattr(client.service.predictor, "post_processing", None)
    monkeypatch.setattr(client.service, "_lacks", "Its data are gone.")
    found = post(client, files[0]).json()
    assert "not calibrated" in found["lacks"][0] and "data are gone" in found["lacks"][0]
    assert found["out_of_distribution"] is None
    assert {one["prediction_set"] for one in found["tasks"].values()} == {None}
    page = client.post("/case?part=1", files=files[0]).text
    assert "Probabilities, not calibrated" in page and "No referral threshold" in page


def test_no_file_is_written_and_no_name_is_told(client, files, capfd, caplog):
    written = []
    watching = [True]

    def hook(event, arguments):
        if watching and event == "open" and isinstance(arguments[2], int):
            if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                written.append(arguments[0])

    sys.addaudithook(hook)
    large = {
        m: ("JANE_DOE.png", c + bytes(2**21), "image/png") for m, (_, c, _) in files[0].items()
    }
    assert post(client, large).status_code == 200
    broken = {"mri": ("JANE_DOE.png", b"no picture", "image/png")}
    said = post(client, broken).text
    watching.clear()
    assert written == []
    told = capfd.readouterr()
    assert "JANE" not in said + told.out + told.err + caplog.text


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "10.0.0.1"])
def test_names_that_were_made_to_point_here_are_not_served(client, host):
    assert client.get("/healthz", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:80", "127.0.0.1:8317", "[::1]:80", "LOCALHOST"])
def test_the_machine_itself_is_served(client, host):
    assert client.get("/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:81"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://127.0.0.1"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_other_sites_may_not_send_cases(client, files, headers, status):
    assert post(client, files[0], headers=headers).status_code == status


def test_with_a_token_only_who_has_it_is_answered(client, files):
    from starlette.testclient import TestClient

    from drifa_jax.serve.app import build_app

    token = "a-long-enough-token"
    app = build_app(client.service, Access(("127.0.0.1",), True, token))
    guarded = TestClient(app, base_url="http://192.0.2.7")
    assert post(guarded, files[0]).status_code == 401
    wrong = {"authorization": "Bearer a-long-enough-tokem"}
    assert post(guarded, files[0], headers=wrong).status_code == 401
    right = {"authorization": f"Bearer {token}"}
    assert post(guarded, files[0], headers=right).status_code == 200
    assert guarded.get("/metrics").status_code == 401
    assert guarded.get("/healthz").status_code == 200
    guarded.cookies.set(COOKIE, session_of(token))
    assert guarded.get("/metrics").status_code == 200


def test_every_answer_forbids_what_a_page_does_not_need(client):
    headers = client.get("/healthz").headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"


def test_the_interface_is_described_as_this_network_has_it(client, predictor):
    found = client.get("/openapi.json").json()
    assert found["openapi"].startswith("3.1")
    form = found["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
    fields = form["multipart/form-data"]["schema"]["properties"]
    assert set(fields) == {"record_id", "explain", "mri", "ct", "mri.slice", "ct.slice"}
    answer = found["paths"]["/v1/predict"]["post"]["responses"]["200"]
    assert json.dumps(answer).count("glioma") >= 2


def test_a_defect_is_told_by_its_place_alone(client, files, monkeypatch, capfd):
    def broken(form):
        raise ValueError("JANE DOE")

    monkeypatch.setattr(client.service, "answered", broken)
    response = post(client, files[0])
    assert response.status_code == 500
    told = capfd.readouterr().err
    assert "ValueError at" in told and "JANE" not in told + response.text


def test_a_port_in_use_is_told():
    from drifa_jax.errors import UserError

    with bound("127.0.0.1", 0) as taken, pytest.raises(UserError, match="give another"):
        bound("127.0.0.1", taken.getsockname()[1])
