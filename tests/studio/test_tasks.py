"""What the jobs of a studio make: the results of the Python API, with lines of a manifest."""

import threading

import pytest
import torch

from medfusion_monai import editing
from medfusion_monai.studio import tasks

SOON = 60.0
NO, YES = "no_cardiomegaly", "cardiomegaly"


@pytest.fixture(scope="module")
def image(studio):
    """An image (1, C, H, W) of the model's size."""
    return studio.model.sample(NO, seed=11)


@pytest.fixture(scope="module")
def classified(studio, image):
    """What the Python API finds of this image."""
    return editing.classify(studio.model, image)


def done(job):
    assert job.wait(SOON)
    assert job.error is None
    assert (job.state, job.progress) == ("done", 1.0)
    return job


def stacked(job):
    return torch.stack([picture.image for picture in done(job).pictures])


@pytest.mark.parametrize("choices", [{}, {"num_inference_steps": 3, "guidance_scale": 1.5}])
@pytest.mark.parametrize("batch_size", [16, 2])
def test_samples_are_those_of_the_model_for_label_and_seed(studio, choices, batch_size):
    job = tasks.sample(studio, YES, 5, seed=3, batch_size=batch_size, **choices)
    assert torch.equal(stacked(job), studio.model.sample(YES, 5, seed=3, batch_size=batch_size, **choices))


def test_samples_of_several_classes_name_them_in_their_lines(studio):
    rows = [picture.row for picture in done(tasks.sample(studio, [1, 0], 2, seed=3)).pictures]
    assert [(row["file"], row["class_name"]) for row in rows] == [
        ("1_cardiomegaly_000000.png", YES),
        ("1_cardiomegaly_000001.png", YES),
        ("0_no_cardiomegaly_000000.png", NO),
        ("0_no_cardiomegaly_000001.png", NO),
    ]
    assert {row["weights_sha256"] for row in rows} == {studio.model.weights_sha256}


def test_sampling_reports_each_call_of_the_unet_and_ends_at_the_next_when_cancelled(studio):
    calls = []

    def interrupt(*_):
        calls.append(job.progress)
        if len(calls) == 3:
            job.cancel()

    hook = studio.model.network.unet.register_forward_hook(interrupt)
    release = blocked(studio)
    job = tasks.sample(studio, YES, 4, num_inference_steps=10, batch_size=4)
    release()
    assert job.wait(SOON)
    hook.remove()
    assert (job.state, job.pictures) == ("cancelled", [])
    assert calls == [0.1, 0.2, 0.3]


def blocked(studio):
    """Keep the queue from working until the returned function is called."""
    event = threading.Event()
    studio.jobs.submit("block", lambda job: event.wait(SOON))
    return event.set


def test_a_cancelled_job_leaves_no_hook_on_the_network(studio):
    done(tasks.sample(studio, YES, 1, num_inference_steps=2))
    assert not studio.model.network.unet._forward_pre_hooks


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label": "pneumonia"}, "label 'pneumonia' is not a class .*0 no_cardiomegaly, 1 cardiomegaly"),
        ({"count": 0}, "count must be a whole number of at least 1, received 0"),
        ({"count": 21}, "count must be at most 20, received 21"),
        ({"label": None, "count": 11}, "count must be at most 20, received 22"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"seed": 2**53}, "seed must be at most"),
        ({"num_inference_steps": 31}, "num_inference_steps must be at most 30, received 31"),
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number of at least 1"),
        ({"guidance_scale": -1.0}, "guidance_scale must be a finite number of at least 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number"),
        ({"guidance_scale": 21.0}, "guidance_scale must be at most 20, received 21"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
    ],
)
def test_a_request_out_of_range_is_refused_before_it_waits(studio, values, message):
    with pytest.raises(ValueError, match=message):
        tasks.sample(studio, **{"label": YES, **values})


def test_a_counterfactual_is_that_of_the_python_api(studio, image):
    options = {"own_label": NO, "strength": 0.6, "guidance_scale": 1.5}
    job = tasks.edit(studio, "counterfactual", image, source="scan.png", label=YES, **options)
    assert torch.equal(stacked(job), editing.counterfactual(studio.model, image, YES, **options))
    row = job.pictures[0].row
    assert (row["file"], row["source"], row["edit"], row["strength"]) == (
        "scan.png",
        "scan.png",
        "counterfactual",
        "0.6",
    )
    assert job.pictures[0].is_edited


def test_variations_of_an_unknown_class_are_those_of_the_python_api(studio, image, classified):
    job = tasks.edit(studio, "variations", image, source="scan.dcm", number=2, strength=0.4, seed=5)
    expected = editing.variations(studio.model, image, classified.labels, 0.4, n=2, seed=5, batch_size=1)
    assert torch.equal(stacked(job), expected)
    assert [picture.row["file"] for picture in job.pictures] == ["scan_0.png", "scan_1.png"]


def test_inpainting_changes_nothing_outside_the_mask(studio, image):
    mask = torch.zeros(1, 1, *image.shape[-2:])
    mask[..., 4:12, 6:18] = 1
    result = stacked(tasks.edit(studio, "inpaint", image, source="a.png", label=YES, mask=mask, repeats=1))
    assert torch.equal(result[mask == 0], image[mask == 0])
    assert not torch.equal(result, image)


def test_an_anomaly_map_has_its_score_in_its_line(studio, image):
    (picture,) = done(tasks.edit(studio, "anomaly_map", image, source="a.png", label=NO)).pictures
    assert picture.row["score"] == round(float(picture.image.max()), 6)


def test_a_reconstruction_is_that_of_the_model(studio, image):
    result = stacked(tasks.edit(studio, "reconstruct", image, source="a.png"))
    assert torch.equal(result, studio.model.reconstruct(image))


@pytest.mark.parametrize("strength", [0, 0.0, 1.01, float("nan"), "half"])
def test_a_strength_outside_its_range_is_refused(studio, image, strength):
    with pytest.raises(ValueError, match="strength must be above 0 and at most 1"):
        tasks.edit(studio, "counterfactual", image, source="a.png", label=YES, strength=strength)


@pytest.mark.parametrize(
    ("edit", "values", "message"),
    [
        ("sharpen", {}, "edit must be one of reconstruct, counterfactual"),
        ("counterfactual", {}, "label must be given for edit counterfactual"),
        ("counterfactual", {"label": "pneumonia"}, "label 'pneumonia' is not a class"),
        ("counterfactual", {"label": YES, "own_label": "pneumonia"}, "own_label 'pneumonia' is not a class"),
        ("reconstruct", {"strength": 0.5}, "strength 0.5 has no effect on edit reconstruct"),
        ("variations", {"number": 21}, "count must be at most 20"),
        ("inpaint", {"label": YES}, "mask must be given for edit inpaint"),
        ("inpaint", {"label": YES, "mask": torch.ones(1, 1, 8, 8)}, "mask must be"),
        ("variations", {"mask": torch.ones(16, 24)}, "mask has no effect on edit variations"),
    ],
)
def test_an_edit_that_cannot_be_made_is_refused_before_it_waits(studio, image, edit, values, message):
    with pytest.raises(ValueError, match=message):
        tasks.edit(studio, edit, image, source="a.png", **values)


def test_an_image_of_another_size_is_refused(studio):
    with pytest.raises(ValueError, match=r"image must be a tensor \(B, 1, 16, 24\)"):
        tasks.edit(studio, "reconstruct", torch.zeros(1, 1, 24, 24), source="a.png")


def test_frames_between_seeds_are_those_of_the_python_api_and_show_no_patient(studio):
    job = tasks.interpolate(studio, 3, 4, label=YES, frames=5)
    assert torch.equal(stacked(job), editing.interpolate(studio.model, 3, 4, 5, YES))
    assert not any(picture.is_edited for picture in job.pictures)
    assert [picture.row["frame"] for picture in job.pictures] == [0, 1, 2, 3, 4]


def test_frames_between_images_are_those_of_the_python_api_and_count_as_edited(studio, image):
    other = studio.model.sample(YES, seed=12)
    options = {"label": [NO, YES], "frames": 2, "num_inference_steps": 3}
    job = tasks.interpolate(studio, image, other, source="a.png, b.png", **options)
    assert torch.equal(stacked(job), editing.interpolate(studio.model, image[0], other[0], **options))
    assert all(picture.is_edited for picture in job.pictures)


@pytest.mark.parametrize(
    ("start", "end", "values", "message"),
    [
        (0, 1, {}, "label must be given between two seeds"),
        (0, -1, {"label": YES}, "seed must be a whole number of at least 0"),
        (0, 1, {"label": YES, "frames": 1}, "frames must be a whole number of at least 2"),
        (0, 1, {"label": YES, "frames": 65}, "frames must be at most 64"),
        (0, torch.zeros(1, 1, 16, 24), {}, "start and end must be two images or two seeds"),
    ],
)
def test_frames_that_cannot_be_made_are_refused_before_they_wait(studio, start, end, values, message):
    with pytest.raises(ValueError, match=message):
        tasks.interpolate(studio, start, end, **values)


def test_a_classification_is_that_of_the_python_api(studio, image, classified):
    found = done(tasks.classify(studio, image)).value
    assert torch.equal(found.probabilities, classified.probabilities)


def test_values_that_are_not_finite_fail_the_job_with_the_reason(studio):
    weight = studio.model.network.unet.get_parameter(next(iter(dict(studio.model.network.unet.named_parameters()))))
    kept = weight.data.clone()
    weight.data.fill_(float("nan"))
    try:
        job = tasks.sample(studio, YES, 1, num_inference_steps=2)
        assert job.wait(SOON)
    finally:
        weight.data.copy_(kept)
    assert job.state == "failed"
    assert "has values that are not finite" in job.error
