"""``medfusion share``: what a package contains, what never, and when none is written."""

import getpass
import json
import shutil
import socket
import zipfile

import pytest
from PIL import Image, PngImagePlugin
from tiny_sites import PLANTED, shared, textures, write_model, write_samples

from medfusion_monai.cli import main
from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.data.pixels import fingerprint
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.runtime.locks import leave_folders
from medfusion_monai.sites.share import COLUMNS


def contents(package):
    with zipfile.ZipFile(package) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def refused(share, capsys):
    """Share with some files replaced, and return the error."""

    def run(*options, **places):
        capsys.readouterr()
        with pytest.raises(AssertionError):
            share(*options, name="none.zip", **places)
        return capsys.readouterr().err

    return run


@pytest.fixture
def copied(audited, tmp_path):
    """A copy of the samples, for a test to change."""
    return shutil.copytree(audited / "samples", tmp_path / "samples", ignore=shutil.ignore_patterns(".*"))


@pytest.fixture
def changed_audit(audited, tmp_path):
    """Write a changed copy of the audit."""

    def change(alter):
        audit = json.loads((audited / "audit" / "audit.json").read_text())
        alter(audit)
        (tmp_path / "audit.json").write_text(json.dumps(audit))
        return tmp_path / "audit.json"

    return change


def test_package_has_images_lists_card_audit_and_licence_and_no_weights(share, audited):
    files = contents(share())
    texts = ["package.json", "audit.json", "card.md", "LICENSE", "datalist.json", "images/manifest.csv"]
    images = sorted(f"images/{path.name}" for path in (audited / "samples").glob("*.png"))
    assert len(images) == 60
    assert list(files) == [*texts, *images, "checksums.sha256"]
    assert files["images/manifest.csv"] == (audited / "samples" / "manifest.csv").read_bytes()
    assert files["LICENSE"] == b"Public domain.\n"
    for name in images:
        assert files[name] == (audited / "samples" / name.removeprefix("images/")).read_bytes()


def test_package_describes_its_images(share, audited):
    files = contents(share())
    about = json.loads(files["package.json"])
    assert about["class_names"] == ["no_cardiomegaly", "cardiomegaly"]
    assert about["image"] == {"size": [16, 24], "channels": 1, "resize_mode": "crop"}
    assert about["latent_channels"] == 8
    assert about["weights_sha256"] == file_sha256(audited / "models" / "model.pt")
    datalist = json.loads(files["datalist.json"])
    assert datalist["counts"]["synthetic"] == len(datalist["training"]) == 60
    card = files["card.md"].decode()
    assert "The terms for these images are in the file LICENSE." in card
    assert "0 of 60 generated images are copies of a training image" in card
    assert "To be completed" not in card


def test_nothing_of_the_site_is_in_the_package(share, audited, copied):
    for path in copied.glob("*.png"):  # a program of the site left its marks
        text = PngImagePlugin.PngInfo()
        text.add_text("Synthetic", "true")
        text.add_text("Author", f"{PLANTED} at /data/{PLANTED}")
        Image.open(path).save(path, pnginfo=text)
    audit = (audited / "audit" / "audit.json").read_text()
    assert audit.count(PLANTED) > 10  # or there is nothing to strip
    planted = [PLANTED, str(audited), "/tmp", str(copied), socket.gethostname(), f"/{getpass.getuser()}/", "patient-"]
    for name, content in contents(share(samples=copied)).items():
        for word in planted:
            assert word.encode() not in content, (name, word)
            assert word not in name


def test_same_call_gives_the_same_bytes(share):
    assert share(name="a.zip").read_bytes() == share(name="b.zip").read_bytes()


def test_columns_are_those_that_inference_writes(audited):
    header = (audited / "samples" / "manifest.csv").read_text().splitlines()[0]
    assert header.split(",") == list(COLUMNS)


def test_more_copies_than_the_rate_given_are_refused(share, refused, changed_audit):
    def find(audit):
        audit["audit"]["rows"][0] |= {"copies": 3, "copy_rate": {"value": 0.05, "low": 0.01, "high": 0.14, "note": ""}}

    audit = changed_audit(find)
    error = refused(audit=audit)
    assert "3 of 60 images are copies of training images (5.00%), more than the 1% of --most-copies" in error
    assert share("--most-copies", "0.05", audit=audit).is_file()


def test_audit_without_a_rate_of_copies_is_refused(refused, changed_audit):
    def withhold(audit):
        audit["audit"]["rows"][0]["copy_rate"] = {"value": None, "low": None, "high": None, "note": "withheld: few"}

    assert "states no rate of copies (withheld: few)" in refused(audit=changed_audit(withhold))


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (lambda audit: audit["repeat"]["checksums"].pop("model.pt"), "does not state the weights it is of"),
        (lambda audit: audit["repeat"]["checksums"].update({"model.pt": "0" * 64}), "is of other weights"),
        (lambda audit: audit["repeat"]["checksums"].update({"training images": "0"}), "other training images"),
        (lambda audit: audit.pop("audit"), "is not an audit"),
    ],
)
def test_other_audit_is_refused(alter, words, refused, changed_audit):
    assert words in refused(audit=changed_audit(alter))


def test_image_that_was_changed_after_the_audit_is_refused(refused, copied):
    path = next(copied.glob("*.png"))
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    assert "The audit that was given is of other images or labels" in refused(samples=copied)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("file,label", "file,source,label", "has columns that inference does not write: ['source']"),
        ("0_no_cardiomegaly_000000.png", "0_Erika_000000.png", "'0_Erika_000000.png' is not the name that inference"),
        (",0,no_cardiomegaly,", ",0,healthy,", "is of class 0 'healthy', but the weights have"),
        (",png,", ",dicom,", "Sample them again with --output_format png"),
    ],
)
def test_manifest_that_inference_does_not_write_is_refused(old, new, words, refused, copied):
    manifest = copied / "manifest.csv"
    lines = manifest.read_text().replace(old, new).splitlines()
    if "source" in new:
        lines[1:] = [line.replace(".png,", ".png,x,", 1) for line in lines[1:]]
    manifest.write_text("\n".join(lines) + "\n")
    for path in copied.glob("0_no_cardiomegaly_000000.png"):
        shutil.copy(path, copied / "0_Erika_000000.png")
    assert words in refused(samples=copied)


def test_licence_without_text_is_refused(refused, tmp_path):
    (tmp_path / "empty").write_text(" \n")
    assert "is empty or larger than 1 MiB" in refused(licence=tmp_path / "empty")
    assert "cannot be read as text" in refused(licence=tmp_path / "nowhere")


def test_audit_is_required(audited, capsys):
    with pytest.raises(SystemExit):
        main(["share", str(audited / "samples"), "--model-file", "m", "--licence", "l", "--output", "o.zip"])
    leave_folders()
    assert "--audit" in capsys.readouterr().err


def test_other_file_than_a_zip_and_an_odd_rate_are_refused(share, refused, tmp_path):
    assert "must be a share from 0 to 1" in refused("--most-copies", "2")


@pytest.mark.slow
def test_audit_of_the_program_is_shared(audited, tmp_path, capsys):
    images = textures(180, seed=7)
    document = {"class_names": ["no_cardiomegaly", "cardiomegaly"]}
    for split, start, count in (("training", 0, 60), ("test", 60, 120)):
        (tmp_path / "data" / split).mkdir(parents=True)
        document[split] = []
        for index in range(count):
            name = f"{split}/{PLANTED}_{index}.png"
            Image.fromarray((images[start + index, 0] * 255).byte().numpy()).save(tmp_path / "data" / name)
            document[split].append({"image": name, "label": index % 2, "patient": f"{PLANTED}-{split}-{index}"})
    (tmp_path / "data" / "datalist.json").write_text(json.dumps(document))
    trained_on = fingerprint(read_datalist(tmp_path / "data", "training"))
    model = write_model(tmp_path / "models", trained_on=trained_on)
    samples = write_samples(tmp_path / "samples", model)
    places = ["--dataset-dir", str(tmp_path / "data"), "--samples", str(samples), "--output", str(tmp_path / "audit")]
    quick = ["--membership-images", "60", "--power-images", "10", "--replicates", "50", "--model-file", str(model)]
    assert main(["audit", *places, *quick]) == 0
    audit, licence = tmp_path / "audit" / "audit.json", audited / "licence.txt"
    package = shared(samples, model, audit, licence, tmp_path / "site.zip", "--most-copies", "0.1")
    files = contents(package)
    own, original = json.loads(files["audit.json"])["audit"], json.loads(audit.read_text())["audit"]
    assert {**own, "closest": []} == {**original, "closest": []}
    assert not [name for name, content in files.items() if PLANTED.encode() in content]
