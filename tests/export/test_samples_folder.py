"""The card in a folder of samples: when it is written, kept and refused."""

import json
from types import SimpleNamespace

import pytest
import torch
from tiny_models import save, tiny

from medfusion_monai.cli import main
from medfusion_monai.evaluation.image_form import content_sha256, inspect_set
from medfusion_monai.evaluation.image_set import open_image_set
from medfusion_monai.export.samples_folder import CARD, describe_samples, write_card
from medfusion_monai.model import Model
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.runtime.locks import leave_folders
from medfusion_monai.sampling.image_formats import suffix_of
from medfusion_monai.sampling.plan import sampling_plan
from medfusion_monai.sampling.writer import SampleWriter, sample_settings

PLANTED = "planted-id-4711"


class DarkGuard:
    """Takes dark images for copies."""

    def check(self, images):
        means = images.mean(dim=(1, 2, 3))
        return SimpleNamespace(copies=means < 0.1, scores=means)


@pytest.fixture(autouse=True)
def _unlocked():
    yield
    leave_folders()


@pytest.fixture
def model_of(tmp_path):
    """Make a model of so many channels, in a bundle."""

    def make(channels=1):
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "configs").mkdir(exist_ok=True)
        (tmp_path / "configs" / "metadata.json").write_text('{"name": "Tiny", "version": "9.8"}')
        return Model(save(tiny(channels=channels), tmp_path / "models" / "model.pt"))

    return make


@pytest.fixture
def sample(tmp_path):
    """Write noise as samples of a model and their card, as inference does, and give the folder."""

    def run(model, num_samples=2, output_format="png", guard=None):
        folder = tmp_path / "samples"
        folder.mkdir(exist_ok=True)
        plan = sampling_plan(model.class_names, num_samples=num_samples, suffix=suffix_of(output_format, 1))
        own = ("ef" * 32) if guard else "none"
        settings = sample_settings(model.sampler, model.network, model.image_size, 2, output_format, own)
        writer = SampleWriter(plan, folder, settings, model.path, 2, output_format, guard=guard)
        for batch in writer:
            items = [plan[index] for index in batch]
            generator = torch.Generator().manual_seed(batch[0])
            shape = (len(batch), model.image_channels, *model.image_size)
            # The second image of each batch is dark.
            images = torch.rand(shape, generator=generator) * torch.tensor([1.0, 0.05])[: len(batch), None, None, None]
            columns = {name: [item[name] for item in items] for name in items[0]}
            writer(SimpleNamespace(state=SimpleNamespace(batch=columns, output={"pred": images})))
        writer.report()
        describe_samples(folder, model)
        return folder

    return run


def text_of(folder):
    return (folder / CARD).read_text()


@pytest.fixture
def report_of(tmp_path):
    """Write a report of a folder of samples, as far as a card reads it, and give its path."""

    def write(folder, **changes):
        images = open_image_set("Medfusion", folder)
        content = content_sha256(inspect_set(images))
        described = {"name": "Medfusion", "classes": images.counts(), "content_sha256": content, "source": PLANTED}
        figure = {"value": 0.32, "low": 0.3, "high": 0.34, "note": ""}
        row = {"name": "Medfusion", "class_name": None, "count": 4, "reference_count": 9, "recall": figure}
        report = {"title": "R", "sets": [described], "fidelity": [row], "warnings": []}
        report["repeat"] = {"checksums": {"model.pt": file_sha256(tmp_path / "models" / "model.pt")}}
        (tmp_path / "report.json").write_text(json.dumps(report | changes))
        return tmp_path / "report.json"

    return write


@pytest.mark.parametrize(("channels", "words"), [(1, "one channel"), (3, "three channels")])
@pytest.mark.parametrize(("output_format", "files"), [("png", "PNG, 8 bits"), ("nifti", "NIfTI, float32")])
def test_card_is_written_with_gray_and_coloured_images(channels, words, output_format, files, model_of, sample):
    model = model_of(channels)
    folder = sample(model, output_format=output_format)
    card = text_of(folder)
    assert f"Number of images: 4. Form: {words}, 16 pixels high, 24 wide; files: {files}" in card
    assert f"| {file_sha256(model.path)} |" in card
    assert "Tiny 9.8" in card
    assert "Number of training images: 557." in card
    write_card(folder)
    assert f"Form: {words}, 16 pixels high" in text_of(folder)  # as read from the images


def test_rerun_keeps_the_card_of_the_same_images_with_its_figures_and_edits(model_of, sample, report_of):
    model = model_of()
    folder = sample(model)
    write_card(folder, model.path, report_of(folder))
    edited = text_of(folder) + "\nTrained on phantoms.\n"
    (folder / CARD).write_text(edited)
    assert "0.320 (0.300 to 0.340)" in edited
    sample(model)
    assert text_of(folder) == edited


def test_run_that_adds_images_writes_a_new_card(model_of, sample, report_of):
    model = model_of()
    folder = sample(model)
    report = report_of(folder)
    write_card(folder, model.path, report)
    sample(model, num_samples=3)
    assert "Number of images: 6." in text_of(folder)
    assert "0.320" not in text_of(folder)
    write_card(folder, model.path, report)
    assert "0.320" not in text_of(folder)
    assert "of other images or labels than these" in text_of(folder)


def test_same_samples_give_the_same_bytes(model_of, sample):
    model = model_of()
    folder = sample(model)
    first = (folder / CARD).read_bytes()
    assert write_card(folder, model.path).read_bytes() == first


def test_refused_copies_are_counted_by_class(model_of, sample):
    card = text_of(sample(model_of(), guard=DarkGuard()))
    assert "Number of images: 2." in card
    assert "| 0 | no_cardiomegaly | 1 | 1 |" in card
    assert "refused 2 as copies of training images" in card


def test_run_all_of_whose_images_were_refused_has_no_card(model_of, sample):
    class StrictGuard(DarkGuard):
        def check(self, images):
            return super().check(images * 0.0)

    folder = sample(model_of(), guard=StrictGuard())
    assert not (folder / CARD).exists()


def test_changed_pixel_takes_the_figures_off_the_card_and_is_warned_of(model_of, sample, report_of, caplog):
    model = model_of()
    folder = sample(model)
    report = report_of(folder)
    first, second = sorted(folder.glob("*.png"))[:2]
    first.write_bytes(second.read_bytes())
    write_card(folder, model.path, report)
    assert "0.320" not in text_of(folder)
    assert "The report that was given is of other images" in caplog.text


def test_changed_label_takes_the_figures_off_the_card(model_of, sample, report_of):
    folder = sample(model_of())
    report = report_of(folder)
    manifest = folder / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(",0,no_cardiomegaly,", ",1,cardiomegaly,", 1))
    write_card(folder, report=report)
    assert "0.320" not in text_of(folder)


def test_report_of_other_weights_is_refused_and_the_card_stays(model_of, sample, report_of):
    folder = sample(model_of())
    before = text_of(folder)
    report = report_of(folder, repeat={"checksums": {"model.pt": "00" * 32}})
    with pytest.raises(ValueError, match=r"report\.json is of other weights"):
        write_card(folder, report=report)
    assert text_of(folder) == before


def test_other_weights_than_those_of_the_samples_are_refused(model_of, sample, tmp_path):
    folder = sample(model_of())
    other = tmp_path / "other"
    other.mkdir()
    save(tiny(channels=3), other / "model.pt")
    with pytest.raises(WeightsError, match="are other weights than those of the samples"):
        write_card(folder, other)
    with pytest.raises(WeightsError, match="do not exist"):
        write_card(folder, tmp_path / "nowhere.pt")


def test_samples_of_two_models_have_no_card(model_of, sample):
    folder = sample(model_of())
    manifest = folder / "manifest.csv"
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*lines[:-1], lines[-1].rpartition(",")[0] + f",{'00' * 32}"]) + "\n")
    with pytest.raises(ValueError, match="names 2 weights in weights_sha256"):
        write_card(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "manifest.csv").unlink(), "has no manifest.csv: name a folder that run inference"),
        (lambda folder: next(folder.glob("*.png")).unlink(), "1 of 4 samples of the manifest do not exist"),
    ],
)
def test_folder_that_lacks_files_is_refused(change, words, model_of, sample, capsys):
    folder = sample(model_of())
    change(folder)
    assert main(["card", str(folder)]) == 2
    assert words in capsys.readouterr().err


def test_card_that_cannot_be_written_is_an_error_of_one_line(model_of, sample, capsys):
    folder = sample(model_of())
    (folder / CARD).unlink()
    (folder / CARD).mkdir()
    assert main(["card", str(folder)]) == 2
    assert "card.md cannot be written (Is a directory): make the folder writable" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["report", "audit"])
def test_file_that_is_missing_or_something_else_is_refused(kind, model_of, sample, tmp_path, capsys):
    folder = sample(model_of())
    (tmp_path / "list.json").write_text("[1]")
    for name in ("missing.json", "list.json"):
        assert main(["card", str(folder), f"--{kind}", str(tmp_path / name)]) == 2
        assert name in capsys.readouterr().err


def test_command_prints_the_path_of_the_card(model_of, sample, report_of, capsys):
    folder = sample(model_of())
    report = report_of(folder)
    capsys.readouterr()
    assert main(["card", str(folder), "--report", str(report)]) == 0
    assert capsys.readouterr().out == f"{folder / CARD}\n"
    assert PLANTED not in text_of(folder)
    assert str(folder) not in text_of(folder)
