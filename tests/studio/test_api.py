"""The HTTP interface of a studio."""

import io
import re
import zipfile

import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from pydicom import dcmread

from medfusion_monai.studio import api
from medfusion_monai.studio.api import make_api

YES = "cardiomegaly"


@pytest.fixture(scope="module")
def client(studio):
    return TestClient(make_api(studio), raise_server_exceptions=False)


def pixels_of(content):
    shown = Image.open(io.BytesIO(content))
    return torch.frombuffer(bytearray(shown.tobytes()), dtype=torch.uint8).reshape(shown.height, shown.width)


def test_health_says_ok(client):
    assert client.get("/health").json() == {"status": "ok"}


def test_the_model_is_described(client, studio):
    described = client.get("/model").json()
    assert described["class_names"] == ["no_cardiomegaly", YES]
    assert (described["image_size"], described["image_channels"]) == ([16, 24], 1)
    assert described["weights_sha256"] == studio.model.weights_sha256
    assert described["sampler"]["num_inference_steps"] == 4
    assert str(described["limits"]["count"]) == "20"
    assert "dicom_op" not in described["output_formats"]


def test_one_sample_is_a_png_of_the_model_s_pixels(client, studio):
    answer = client.post("/samples", json={"label": YES, "seed": 4})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    name = "1_cardiomegaly_000000.png"
    assert answer.headers["content-disposition"] == f"attachment; filename=\"{name}\"; filename*=UTF-8''{name}"
    assert torch.equal(pixels_of(answer.content), (studio.model.sample(YES, seed=4)[0, 0] * 255).round().byte())


def test_a_name_with_letters_of_other_alphabets_has_a_plain_one_beside_it():
    headers = api._download(b"", "0_größer.png").headers
    assert headers["content-disposition"] == (
        "attachment; filename=\"0_gr__er.png\"; filename*=UTF-8''0_gr%C3%B6%C3%9Fer.png"
    )


def test_several_samples_are_a_zip_with_a_manifest(client, studio):
    answer = client.post("/samples", json={"label": [0, YES], "count": 2, "seed": 4, "guidance_scale": 1.5})
    assert answer.headers["content-type"] == "application/zip"
    images = (studio.model.sample([0, YES], 2, seed=4, guidance_scale=1.5) * 255).round().byte()
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        *names, manifest = archive.namelist()
        assert torch.equal(torch.stack([pixels_of(archive.read(name)) for name in names]), images[:, 0])
        assert archive.read(manifest).decode().splitlines()[1].startswith("0_no_cardiomegaly_000000.png,0,")


def test_one_sample_is_dicom_if_asked_for(client):
    answer = client.post("/samples", json={"label": 1, "output_format": "dicom"})
    assert answer.headers["content-type"] == "application/dicom"
    assert dcmread(io.BytesIO(answer.content)).PatientName == "SYNTHETIC^NO REAL PATIENT"


@pytest.mark.parametrize("wanted", [{"output_format": "png"}, {"output_format": "dicom"}, {"count": 2}])
def test_the_same_request_has_the_same_bytes(client, wanted):
    answers = [client.post("/samples", json={"label": 1, **wanted}).content for _ in range(2)]
    assert answers[0] == answers[1]


def test_one_sample_is_a_zip_if_asked_for(client):
    answer = client.post("/samples", json={"label": 1, "archive": True})
    assert answer.headers["content-type"] == "application/zip"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            {"label": "pneumonia"},
            "label 'pneumonia' is not a class of this bundle: .*0 no_cardiomegaly, 1 cardiomegaly",
        ),
        ({"label": 1, "count": 0}, "count must be a whole number of at least 1, received 0"),
        ({"label": 1, "count": 21}, "count must be at most 20, received 21"),
        ({"label": 1, "seed": -1}, "seed must be"),
        ({"label": 1, "num_inference_steps": 31}, "num_inference_steps must be at most 30"),
        ({"label": 1, "guidance_scale": 21}, "guidance_scale must be at most 20"),
        ({"label": 1, "output_format": "dicom_op"}, "output_format dicom_op does not support images of 1 channels"),
        ({"label": 1, "count": 2, "archive": False}, "archive must be true or left out for 2 images"),
    ],
)
def test_a_request_out_of_range_is_refused_with_the_reason(client, wanted, message):
    answer = client.post("/samples", json=wanted)
    assert answer.status_code == 422
    assert re.search(message, answer.json()["detail"])


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ('{"label": 1, "strenght": 2}', "strenght: Extra inputs are not permitted"),
        ('{"count": 1}', "label: Field required"),
        ('{"label": 1, "count": "many"}', "count: Input should be a valid integer"),
        ('{"label": 1, "output_format": "gif"}', "output_format: Input should be 'png'"),
        ("{", "1: JSON decode error"),
        ("[]", "body: Input should be a valid dictionary"),
    ],
)
def test_a_request_of_another_form_is_refused_by_the_place_of_the_mistake(client, body, place):
    answer = client.post("/samples", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(place)


@pytest.mark.parametrize("wanted", [{"label": 1, "count": 2}, {"label": [0, 1]}, {"label": None}])
def test_several_images_without_an_archive_are_refused_before_they_are_sampled(client, monkeypatch, wanted):
    monkeypatch.setattr(api.tasks, "sample", lambda *args, **options: pytest.fail("it was submitted"))
    answer = client.post("/samples", json={**wanted, "archive": False})
    assert (answer.status_code, answer.json()["detail"]) == (422, "archive must be true or left out for 2 images")


def test_one_image_without_an_archive_is_a_file(client):
    answer = client.post("/samples", json={"label": 1, "archive": False})
    assert answer.headers["content-type"] == "image/png"


def test_a_request_to_a_full_queue_is_refused_until_later(client, studio, monkeypatch):
    monkeypatch.setattr(studio.jobs, "most_waiting", -1)
    answer = client.post("/samples", json={"label": 1})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "10")
    assert "jobs are waiting: try again" in answer.json()["detail"]


def test_a_job_that_fails_is_answered_with_the_reason(client, studio, monkeypatch):
    def fail(*args, **options):
        return studio.jobs.submit("failing", lambda job: 1 / 0)

    monkeypatch.setattr(api.tasks, "sample", fail)
    answer = client.post("/samples", json={"label": 1})
    assert (answer.status_code, answer.json()["detail"]) == (500, "division by zero")


def test_a_request_whose_client_is_gone_is_cancelled(client, studio, monkeypatch):
    jobs = []

    def submit(*args, **options):
        jobs.append(studio.jobs.submit("endless", endless))
        return jobs[-1]

    def endless(job):
        while True:
            job.step()

    async def gone(request):
        return True

    monkeypatch.setattr(api.tasks, "sample", submit)
    monkeypatch.setattr(api.Request, "is_disconnected", gone)
    assert client.post("/samples", json={"label": 1}).status_code == 503
    assert jobs[0].state == "cancelled"


def test_the_interface_describes_itself_without_pages_of_other_hosts(client):
    described = client.get("/openapi.json").json()
    assert {"/health", "/model", "/samples"} <= set(described["paths"])
    answers = described["paths"]["/samples"]["post"]["responses"]
    assert {"image/png", "application/zip", "application/dicom"} <= set(answers["200"]["content"])
    assert {"401", "413", "422", "429"} <= set(answers)
    assert described["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    for path in ("/docs", "/redoc"):
        assert client.get(path).status_code == 404
