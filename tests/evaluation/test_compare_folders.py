"""``medfusion compare``: folders in, a report out, or an error in one sentence."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from medfusion_monai.cli import main
from medfusion_monai.data.reading.transforms import read_and_resize
from medfusion_monai.demo.phantoms.draw_chest import draw_chest_phantom
from medfusion_monai.demo.phantoms.families import prepare_phantoms
from medfusion_monai.demo.phantoms.network import train_phantom_features
from medfusion_monai.evaluation.compare_folders import compare as compare_sets
from medfusion_monai.evaluation.measured_set import measure_set
from medfusion_monai.evaluation.metrics.features import load_extractor
from medfusion_monai.evaluation.metrics.fidelity import measure_fidelity
from medfusion_monai.evaluation.metrics.label_steering import label_steering


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "features.pt"
    train_phantom_features("cxr", path, num_images=64, steps=10)
    return f"phantoms:{path}"


def write_phantoms(folder, labels, first_seed=0, size=64, contrast=1.0):
    """Write phantoms, one sub-folder per class, and return them."""
    images = []
    for index, label in enumerate(labels):
        image = draw_chest_phantom(first_seed + index, label, size)[0] * contrast
        path = folder / ("no_cardiomegaly", "cardiomegaly")[label] / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(image[0] * 255).astype(np.uint8)).save(path)
        images.append(torch.from_numpy(np.rint(image * 255) / 255).float())
    return torch.stack(images)


@pytest.fixture
def compare(features, tmp_path):
    own = features

    def run(reference, *images, options=(), features=own):
        arguments = ["compare", "--reference", str(reference), "--output", str(tmp_path / "report")]
        arguments += ["--features", features, "--replicates", "5", *options, "--images"]
        return main([*arguments, *(f"{name}={folder}" for name, folder in images)])

    return run


def results_of(folder):
    return json.loads((folder / "report" / "report.json").read_text())


def test_generators_are_compared_in_one_report(compare, features, tmp_path, capsys):
    labels = [0, 1] * 8
    real = write_phantoms(tmp_path / "real", labels)
    good = write_phantoms(tmp_path / "good", labels, first_seed=100)
    write_phantoms(tmp_path / "dark", labels, first_seed=200, contrast=0.5)
    assert compare(tmp_path / "real", ("good", tmp_path / "good"), ("dark", tmp_path / "dark")) == 0
    assert capsys.readouterr().out.strip().endswith("report.html")
    results = results_of(tmp_path)
    rows = {(row["name"], row["class_name"]): row for row in results["fidelity"]}
    assert len(rows) == 6
    extractor = load_extractor(features)
    expected = measure_fidelity(extractor(real), extractor(good), replicates=0)
    assert rows["good", None]["fid"]["value"] == pytest.approx(expected["fid"].value, rel=1e-4)
    assert rows["good", None]["fid"]["value"] < rows["dark", None]["fid"]["value"]
    assert results["features"]["sha256"] == extractor.sha256
    assert [row["name"] for row in results["published"]["rows"]] == [
        "ProGAN (paper, CheXpert)",
        "Medfusion (paper, CheXpert)",
        "StyleGAN-3 (journal version, CheXpert)",
    ]
    html = (tmp_path / "report" / "report.html").read_text()
    assert "not Inception" in html
    assert str(tmp_path) not in html  # does not reveal where a hospital keeps its images
    assert "steering" not in results  # no file states which images a model was trained on


def test_prepared_data_adds_neighbours_and_label(compare, tmp_path, monkeypatch):
    short = partial(label_steering, steps=60)
    monkeypatch.setattr("medfusion_monai.evaluation.report_parts.label_steering", short)
    prepare_phantoms(tmp_path / "data", num_images=200, size=64)
    write_phantoms(tmp_path / "s", [0, 1] * 12, first_seed=500)
    options = ("--classifier-seeds", "0", "--neighbours", "3")
    assert compare(tmp_path / "data", ("phantoms", tmp_path / "s"), options=options) == 0
    results = results_of(tmp_path)
    assert [picture["file"] for picture in results["pictures"]] == ["figure_4_samples.png", "neighbours_1.png"]
    accuracy = {(row["trained_on"], row["tested_on"]): row["accuracy"] for row in results["steering"]["rows"]}
    assert accuracy["real", "phantoms"]["value"] > 0.6
    assert accuracy["phantoms", "real test"]["value"] is not None


def test_images_without_classes_are_compared_as_a_whole(compare, tmp_path):
    write_phantoms(tmp_path / "real", [0, 1] * 4)
    write_phantoms(tmp_path / "fake", [1] * 6, first_seed=50)
    assert compare(tmp_path / "real", ("GAN", tmp_path / "fake" / "cardiomegaly")) == 0
    assert [row["class_name"] for row in results_of(tmp_path)["fidelity"]] == [None]


def test_few_images_are_measured_with_a_note(compare, tmp_path):
    write_phantoms(tmp_path / "real", [0, 1, 0])
    write_phantoms(tmp_path / "fake", [0, 1, 0], first_seed=50)
    assert compare(tmp_path / "real", ("GAN", tmp_path / "fake")) == 0
    rows = {row["class_name"]: row for row in results_of(tmp_path)["fidelity"]}
    assert "singular" in rows[None]["fid"]["note"]
    assert rows[None]["precision"]["value"] is None
    assert (rows["cardiomegaly"]["count"], rows["cardiomegaly"]["fid"]["value"]) == (1, None)
    assert "NaN" not in (tmp_path / "report" / "report.json").read_text()


def test_training_images_handed_in_as_generated_are_told(compare, tmp_path):
    write_phantoms(tmp_path / "real", [0, 1] * 4)
    assert compare(tmp_path / "real", ("copies", tmp_path / "real")) == 0
    results = results_of(tmp_path)
    assert results["fidelity"][0]["fid"]["value"] == pytest.approx(0, abs=1e-3)
    assert "copies: 8 of 8 images equal images of reference" in results["warnings"][0]


def test_second_run_reads_its_features(compare, tmp_path, monkeypatch):
    write_phantoms(tmp_path / "real", [0, 1] * 4)
    write_phantoms(tmp_path / "fake", [0, 1] * 4, first_seed=50)
    assert compare(tmp_path / "real", ("GAN", tmp_path / "fake")) == 0
    first = results_of(tmp_path)["fidelity"]

    def refuse(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr("medfusion_monai.evaluation.metrics.feature_networks.PhantomFeatures.extract", refuse)
    assert compare(tmp_path / "real", ("GAN", tmp_path / "fake")) == 0
    assert results_of(tmp_path)["fidelity"] == first


@pytest.mark.parametrize(
    ("arrange", "words"),
    [
        (lambda folder: (folder / "fake" / "cardiomegaly" / "001.png").write_bytes(b"\x89PNG\r\n\x1a\n"), "001.png"),
        (lambda folder: write_phantoms(folder / "fake", [1], size=32), "64x64"),
        (lambda folder: (folder / "fake" / "empty").mkdir(), "classes ['empty'] have no images"),
        (lambda folder: Image.new("RGB", (64, 64), "red").save(folder / "fake" / "cardiomegaly" / "r.png"), "colour"),
    ],
)
def test_images_that_cannot_be_compared_are_refused(arrange, words, compare, tmp_path, capsys):
    write_phantoms(tmp_path / "real", [0, 1] * 4)
    write_phantoms(tmp_path / "fake", [0, 1] * 4, first_seed=50)
    arrange(tmp_path)
    assert compare(tmp_path / "real", ("GAN", tmp_path / "fake")) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "report" / "report.json").exists()


def test_damaged_image_of_a_split_is_refused_before_measuring(compare, tmp_path, capsys):
    prepare_phantoms(tmp_path / "data", num_images=40, size=64)
    write_phantoms(tmp_path / "s", [0, 1] * 4, first_seed=500)
    datalist = tmp_path / "data" / "datalist.json"
    document = json.loads(datalist.read_text())
    datalist.write_text(json.dumps(document | {"reference": document["validation"]}))
    path = tmp_path / "data" / document["test"][0]["image"]
    path.write_bytes(path.read_bytes()[:900])
    assert compare(tmp_path / "data", ("GAN", tmp_path / "s")) == 2
    assert "cannot be decoded" in capsys.readouterr().err
    assert not (tmp_path / "report" / "cache").exists()


@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_real_images_are_resized_as_a_bundle_reads_them(mode, compare, features, tmp_path):
    prepare_phantoms(tmp_path / "data", num_images=40, size=64)
    write_phantoms(tmp_path / "s", [0, 1] * 4, first_seed=500, size=64)
    document = json.loads((tmp_path / "data" / "datalist.json").read_text())
    for number, entry in enumerate(document["training"] + document["test"]):
        path = tmp_path / "data" / entry["image"]
        Image.open(path).resize((80 + number, 100)).save(path)
    options = ("--classifier-seeds", "--neighbours", "2", "--resize-mode", mode)
    assert compare(tmp_path / "data", ("GAN", tmp_path / "s"), options=options) == 0
    results = results_of(tmp_path)
    read = read_and_resize([64, 64], mode=mode)
    real = torch.stack(
        [read({"image": str(tmp_path / "data" / entry["image"])})["image"] for entry in document["test"]]
    )
    fake = torch.stack([read({"image": str(path)})["image"] for path in sorted((tmp_path / "s").rglob("*.png"))])
    extractor = load_extractor(features)
    expected = measure_fidelity(extractor(real), extractor(fake), replicates=0)["fid"].value
    assert results["fidelity"][0]["fid"]["value"] == pytest.approx(expected, rel=1e-4)
    fitted = {"crop": "cropped", "pad": "padded"}[mode]
    assert f"resized with antialiasing and {fitted} to 64x64" in (tmp_path / "report" / "report.md").read_text()


def test_without_features_there_are_pixel_neighbours_and_the_label(compare, tmp_path, monkeypatch):
    short = partial(label_steering, steps=10)
    monkeypatch.setattr("medfusion_monai.evaluation.report_parts.label_steering", short)
    prepare_phantoms(tmp_path / "data", num_images=200, size=64)
    write_phantoms(tmp_path / "s", [0, 1] * 12, first_seed=500)
    training = json.loads((tmp_path / "data" / "datalist.json").read_text())["training"]
    Image.open(tmp_path / "data" / training[5]["image"]).save(tmp_path / "s" / "cardiomegaly" / "copy.png")
    options = ("--classifier-seeds", "0", "--neighbours", "3")
    assert compare(tmp_path / "data", ("GAN", tmp_path / "s"), options=options, features="null") == 0
    results = results_of(tmp_path)
    assert not {"fidelity", "features", "published"} & results.keys()
    assert results["steering"]["rows"]
    [neighbours] = [item for item in results["pictures"] if item["file"] == "neighbours_1.png"]
    assert "by pixels averaged to 32 x 32 (distance 0 to" in neighbours["caption"]
    assert any("features is null" in sentence for sentence in results["summary"])


def test_split_that_is_missing_says_how_to_go_on_without(compare, tmp_path, capsys):
    prepare_phantoms(tmp_path / "data", num_images=40, size=64)
    write_phantoms(tmp_path / "s", [0, 1] * 4, first_seed=500)
    datalist = tmp_path / "data" / "datalist.json"
    datalist.write_text(json.dumps(json.loads(datalist.read_text()) | {"training": []}))
    assert compare(tmp_path / "data", ("GAN", tmp_path / "s")) == 2
    assert "by --neighbours 0" in capsys.readouterr().err
    assert not (tmp_path / "report" / "cache").exists()
    assert compare(tmp_path / "data", ("GAN", tmp_path / "s"), options=("--neighbours", "0", "--classifier-seeds")) == 0


def test_image_that_is_replaced_while_it_is_measured_is_told(compare, tmp_path, capsys, monkeypatch):
    write_phantoms(tmp_path / "real", [0, 1] * 4)
    write_phantoms(tmp_path / "fake", [0, 1] * 4, first_seed=50)

    def replaced(*args, **kwargs):
        write_phantoms(tmp_path / "fake", [0], first_seed=99, contrast=0.5)
        return measure_set(*args, **kwargs)

    monkeypatch.setattr("medfusion_monai.evaluation.compare_folders.measure_set", replaced)
    assert compare(tmp_path / "real", ("GAN", tmp_path / "fake")) == 2
    assert "GAN: 1 of 8 images were changed or removed" in capsys.readouterr().err
    assert not (tmp_path / "report" / "report.json").exists()


@pytest.mark.parametrize("inner", ["", "report"])
def test_report_among_images_is_refused(inner, tmp_path):
    write_phantoms(tmp_path / "real", [0, 1] * 4)
    write_phantoms(tmp_path / "fake", [0, 1] * 4, first_seed=50)
    with pytest.raises(ValueError, match="is in the folder of GAN"):
        compare_sets(tmp_path / "real", {"GAN": tmp_path / "fake"}, tmp_path / "fake" / inner)
    assert sorted(path.name for path in (tmp_path / "fake").iterdir()) == ["cardiomegaly", "no_cardiomegaly"]


@pytest.mark.parametrize("names", [[" "], ["a", "a "]])
def test_names_that_a_table_cannot_tell_apart_are_refused(names, tmp_path):
    with pytest.raises(ValueError, match="give each a distinct name"):
        compare_sets(tmp_path, dict.fromkeys(names, tmp_path), tmp_path / "report")


@pytest.mark.parametrize(
    ("name", "options", "other", "words"),
    [
        ("real", (), {}, "the names ['real'] are reserved for the real images"),
        ("GAN", ("--split", "test"), {}, "no split 'test'"),
        ("GAN", ("--device", "gpu"), {}, "device 'gpu' cannot be used"),
        ("GAN", ("--device", "meta"), {}, "device 'meta' cannot be used"),
        ("GAN", ("--classifier-seeds", "1", "1"), {}, "classifier_seeds are [1, 1]: give each once"),
        ("GAN", (), {"features": "inception"}, "medfusion weights add"),
        ("GAN", (), {"features": "resnet50"}, "features 'resnet50' are unknown"),
        ("GAN", (), {"features": "inception:features.pt"}, "SHA-256"),
    ],
)
def test_settings_that_do_not_fit_are_refused(name, options, other, words, compare, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MEDFUSION_WEIGHTS", str(tmp_path / "no_weights"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "features.pt").write_bytes(b"others")
    write_phantoms(tmp_path / "real", [0, 1] * 2)
    assert compare(tmp_path / "real", (name, tmp_path / "real"), options=options, **other) == 2
    assert words in capsys.readouterr().err


def test_report_says_that_it_shows_real_images(compare, tmp_path):
    write_phantoms(tmp_path / "real", [0, 1] * 4)
    write_phantoms(tmp_path / "fake", [0, 1] * 4, first_seed=50)
    assert compare(tmp_path / "real", ("GAN", tmp_path / "fake")) == 0
    assert "share it only where the real images may be shared" in (tmp_path / "report" / "report.html").read_text()
