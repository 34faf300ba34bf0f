"""Files of pictures: the bytes of a run, again and again."""

import csv
import io
import zipfile

import pytest
import torch
from PIL import Image
from pydicom import dcmread

from medfusion_monai.sampling.plan import sampling_plan
from medfusion_monai.sampling.writer import SampleWriter, sample_settings
from medfusion_monai.studio import tasks
from medfusion_monai.studio.downloads import encode, formats_of, name_of, zip_of
from medfusion_monai.studio.picture import Picture


@pytest.fixture(scope="module")
def pictures(studio):
    """Three samples."""
    job = tasks.sample(studio, "cardiomegaly", 3, seed=1, num_inference_steps=2)
    assert job.wait(60)
    return job.pictures


@pytest.fixture(scope="module")
def edited(studio, pictures):
    """A picture that was made from an image."""
    job = tasks.edit(studio, "reconstruct", pictures[0].image[None], source="1.2.840.5/scan.dcm")
    assert job.wait(60)
    return job.pictures[0]


class Engine:
    """What a writer reads of an engine."""

    class state:
        batch: dict = {}  # noqa: RUF012
        output: dict = {}  # noqa: RUF012


@pytest.mark.parametrize("output_format", ["png", "dicom"])
def test_files_and_manifest_are_those_of_a_run(studio, pictures, output_format, tmp_path):
    sampler = studio.model.sampler.__class__(
        studio.model.schedule, None, **{**studio.sampler_defaults, "num_inference_steps": 2}
    )
    suffix = {"png": ".png", "dicom": ".dcm"}[output_format]
    plan = sampling_plan(studio.model.class_names, "cardiomegaly", 3, 1, suffix=suffix)
    settings = sample_settings(sampler, studio.model.network, studio.model.image_size, 16, output_format)
    writer = SampleWriter(plan, tmp_path, settings, studio.model.path, 16, output_format)
    Engine.state.batch = {name: [item[name] for item in plan] for name in writer.item_columns}
    Engine.state.output = {"pred": torch.stack([picture.image for picture in pictures])}
    writer(Engine)
    writer.report()
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with zipfile.ZipFile(io.BytesIO(zip_of(pictures, output_format))) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == written
    assert encode(pictures[1], output_format) == written[name_of(pictures[1], output_format)]


@pytest.mark.parametrize("output_format", ["png", "png16", "nifti", "dicom", "dicom_dx"])
def test_a_second_download_has_the_same_bytes(pictures, output_format):
    assert encode(pictures[0], output_format) == encode(pictures[0], output_format)
    assert zip_of(pictures, output_format) == zip_of(pictures, output_format)


def test_a_png_shows_the_picture_and_says_that_it_is_synthetic(pictures):
    shown = Image.open(io.BytesIO(encode(pictures[0])))
    expected = (pictures[0].image[0] * 255).round().byte()
    assert torch.equal(torch.frombuffer(bytearray(shown.tobytes()), dtype=torch.uint8).reshape(16, 24), expected)
    assert shown.text["Synthetic"].startswith("true: made by a generative model")


def test_dicom_says_that_it_is_synthetic(pictures):
    assert dcmread(io.BytesIO(encode(pictures[0], "dicom"))).PatientName == "SYNTHETIC^NO REAL PATIENT"


def test_an_edited_picture_says_so_in_every_format(edited):
    assert formats_of(edited) == ["png", "png16", "nifti", "dicom", "dicom_dx"]
    assert Image.open(io.BytesIO(encode(edited))).text["Synthetic"].endswith("may show a real patient")
    file = dcmread(io.BytesIO(encode(edited, "dicom")))
    assert file.PatientName == "EDITED^PATIENT NOT NAMED"
    assert "may show a real patient" in file.ImageComments


def edits_of(studio, picture, edit, **settings):
    """Return the DICOM headers of the edits of a picture."""
    job = tasks.edit(studio, edit, picture.image[None], source="a.png", **settings)
    assert job.wait(60)
    assert job.error is None
    return [dcmread(io.BytesIO(encode(made, "dicom"))) for made in job.pictures]


def test_two_variations_are_two_images_of_one_series(studio, pictures):
    first, second = edits_of(studio, pictures[0], "variations", number=2, own_label=1)
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert (first.InstanceNumber, second.InstanceNumber) == (1, 2)


def test_content_under_another_mask_is_another_image(studio, pictures):
    masks = torch.zeros(2, 1, 1, 16, 24)
    masks[0, ..., 8:12, 8:12], masks[1, ..., 4:8, 4:8] = 1, 1
    (first,), (second,) = (edits_of(studio, pictures[0], "inpaint", label=1, mask=mask, repeats=1) for mask in masks)
    assert first.SOPInstanceUID != second.SOPInstanceUID


def test_another_class_of_the_source_makes_another_image(studio, pictures):
    (first,), (second,) = (edits_of(studio, pictures[0], "counterfactual", label=1, own_label=own) for own in (0, 1))
    assert first.SOPInstanceUID != second.SOPInstanceUID


def test_frames_between_images_are_images_of_one_series_that_depends_on_their_classes(studio, pictures):
    ends = [picture.image[None] for picture in pictures[:2]]
    jobs = [tasks.interpolate(studio, *ends, label=label, frames=2, source="a, b") for label in ([0, 1], [0, 0])]
    assert all(job.wait(60) and job.error is None for job in jobs)
    frames, others = ([dcmread(io.BytesIO(encode(made, "dicom"))) for made in job.pictures] for job in jobs)
    assert len({frame.SOPInstanceUID for frame in (*frames, *others)}) == 4
    assert len({frame.SeriesInstanceUID for frame in frames}) == 1


def test_frames_between_seeds_are_one_study_and_say_between_what(studio):
    job = tasks.interpolate(studio, 3, 4, label=[0, 1], frames=2)
    assert job.wait(60)
    files = [dcmread(io.BytesIO(encode(made, "dicom"))) for made in job.pictures]
    assert len({file.StudyInstanceUID for file in files}) == 1
    assert "frame 2 of 2 from class 0 no_cardiomegaly, seed 3, to class 1 cardiomegaly" in files[1].ImageComments


def test_formats_fit_the_channels(pictures):
    assert formats_of(pictures[0]) == ["png", "png16", "nifti", "dicom", "dicom_dx"]
    colour = Picture(torch.rand(3, 8, 8), pictures[0].row)
    assert formats_of(colour) == ["png", "nifti", "dicom", "dicom_op", "dicom_gm"]
    with pytest.raises(ValueError, match="output_format png16 does not support images of 3 channels"):
        encode(colour, "png16")


def test_an_unknown_format_is_refused(pictures):
    with pytest.raises(ValueError, match="output_format must be one of png"):
        encode(pictures[0], "gif")


def test_pictures_of_one_name_have_different_names_in_a_zip(pictures, edited):
    with zipfile.ZipFile(io.BytesIO(zip_of([pictures[0], pictures[0], edited]))) as archive:
        names = archive.namelist()
        rows = list(csv.DictReader(io.StringIO(archive.read("manifest.csv").decode())))
    assert names == [
        "1_cardiomegaly_000000.png",
        "1_cardiomegaly_000000_2.png",
        "1.2.840.5__scan.png",
        "manifest.csv",
    ]
    assert [row["file"] for row in rows] == names[:3]
    assert (rows[2]["edit"], rows[0]["edit"]) == ("reconstruct", "")


def test_a_zip_of_nothing_is_refused():
    with pytest.raises(ValueError, match="there are no pictures to download"):
        zip_of([])
