"""The evaluation config against the same figures computed by hand."""

import csv
import json
import operator
import re
import shutil
from functools import partial, reduce

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from medfusion_monai.cli import main
from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.data.reading.images import read_image
from medfusion_monai.evaluation.metrics.features import load_extractor
from medfusion_monai.evaluation.metrics.fidelity import measure_fidelity
from medfusion_monai.evaluation.metrics.label_steering import label_steering
from medfusion_monai.evaluation.metrics.similarity import ms_ssim, mse, psnr
from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.runtime.errors import first_cause
from medfusion_monai.weights.model_info import read_model_info, write_model_info

SIZE = [48, 48]  # that of the samples


@pytest.fixture(scope="module")
def audit(dataset_dir, samples_dir, tmp_path_factory):
    """What ``medfusion audit`` finds in the samples, without weights."""
    folder = tmp_path_factory.mktemp("audit")
    places = ["--dataset-dir", str(dataset_dir), "--samples", str(samples_dir), "--output", str(folder)]
    assert main(["audit", *places, "--no-pictures"]) == 0
    return json.loads((folder / "audit.json").read_text())


@pytest.fixture
def evaluate(bundle, trained, dataset_dir, tmp_path):
    """Run ``evaluating`` with few settings and give what ``report.json`` holds."""

    def run(**overrides):
        places = {"dataset_dir": str(dataset_dir), "model_dir": str(trained / "models"), "output_dir": str(tmp_path)}
        quiet = {"samples_dir": "null", "sweep_steps": [], "classifier_seeds": [], "image_size": SIZE}
        bundle("evaluating", "evaluate.yaml", **(places | quiet | overrides))
        return json.loads((tmp_path / "report.json").read_text())

    return run


@pytest.fixture
def described(trained, tmp_path_factory):
    """Copy a models folder, that of ``trained`` by default, with a change in a part of what the weights say."""

    def describe(part, change, models=trained / "models"):
        folder = shutil.copytree(models, tmp_path_factory.mktemp("described") / "models")
        info = read_model_info(folder / "model.pt")
        reduce(operator.getitem, part, info).update(change)
        write_model_info(folder / "model.pt", info)
        return folder

    return describe


def images_of(dataset_dir, split):
    images = torch.from_numpy(np.stack([read_image(item["image"]) for item in read_datalist(dataset_dir, split)]))
    return F.interpolate(images, size=SIZE, mode="bilinear", antialias=True)


def test_reconstructions_of_a_split_are_measured(evaluate, trained, dataset_dir, tmp_path):
    results = evaluate(splits="validation")

    images = images_of(dataset_dir, "validation")
    network = Autoencoder(channels=[8, 8, 16, 16])
    network.load_state_dict(torch.load(trained / "models" / "autoencoder.pt", weights_only=True))
    with torch.no_grad():
        reconstructions = (network.eval().reconstruct(images * 2 - 1) * 0.5 + 0.5).clamp(0, 1)
    [row] = results["reconstructions"]
    assert (row["name"], row["split"], row["count"]) == ("Medfusion", "validation", len(images))
    for name, function in (("ms_ssim", ms_ssim), ("mse", mse), ("psnr", psnr)):
        expected = function(reconstructions, images)
        assert row[name]["mean"] == pytest.approx(expected.mean().item(), rel=1e-3)
        assert row[name]["std"] == pytest.approx(expected.std().item(), rel=1e-2)
    with open(tmp_path / "mse_raw.csv", newline="") as file:
        each = list(csv.reader(file))[1:]
    assert [line[0] for line in each] == [f"validation {number}" for number in range(len(images))]
    assert "fidelity" not in results


def test_generated_images_are_compared_overall_and_by_class(evaluate, samples_dir, dataset_dir, features):
    results = evaluate(samples_dir=str(samples_dir), features=features, replicates=5)

    extractor = load_extractor(features)
    real = extractor(images_of(dataset_dir, "test"))
    files = sorted(samples_dir.glob("*.png"))
    fake = extractor(torch.from_numpy(np.stack([read_image(file) for file in files])))
    expected = measure_fidelity(real, fake, replicates=0)
    rows = {row["class_name"]: row for row in results["fidelity"]}
    assert set(rows) == {None, "no_cardiomegaly", "cardiomegaly"}
    assert rows[None]["fid"]["value"] == pytest.approx(expected["fid"].value, rel=1e-3)
    assert rows[None]["fid"]["low"] < rows[None]["fid"]["high"]
    assert [rows[name]["count"] for name in rows] == [12, 6, 6]
    assert results["features"]["is_inception"] is False
    assert {picture["file"] for picture in results["pictures"]} == {
        "figure_2_reconstructions.png",
        "figure_4_samples.png",
        "neighbours_1.png",
    }


def test_without_features_the_rest_is_measured(evaluate, samples_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDFUSION_WEIGHTS", str(tmp_path / "none"))
    results = evaluate(samples_dir=str(samples_dir), features="null", splits="validation", neighbours=2)
    assert results["reconstructions"]
    assert "fidelity" not in results
    assert {picture["file"] for picture in results["pictures"]} >= {"figure_4_samples.png", "neighbours_1.png"}
    text = (tmp_path / "report.md").read_text()
    assert "by pixels averaged to 32 x 32" in text
    assert "Real images were resized with antialiasing and cropped to 48x48" in text
    with pytest.raises(Exception) as caught:  # noqa: PT011  the bundle runner wraps it
        evaluate(features="null", sweep_steps=[2])
    assert "features is null: name features, or no steps" in str(first_cause(caught.value))


def test_report_takes_over_an_audit_of_the_same_samples(evaluate, audit, samples_dir, features, tmp_path):
    file = tmp_path / "audit.json"
    file.write_text(json.dumps(audit | {"warnings": ["Look at the leaks."]}))
    common = {"samples_dir": str(samples_dir), "features": features, "replicates": 0, "splits": "validation"}
    results = evaluate(audit_file=str(file), **common)
    assert results["audit"] == audit["audit"]
    assert results["warnings"] == ["Look at the leaks."]
    text = (tmp_path / "report.md").read_text()
    assert "The number of copies among the generated images is not reported: withheld" in text
    for title in ("Copies", "The set as a whole", "What this audit cannot detect"):
        assert f"## {title}\n" in text


def test_audit_of_other_samples_is_said_to_be_that(evaluate, audit, samples_dir, features, tmp_path):
    [generated] = [item for item in audit["sets"] if item["name"] == "generated"]
    other = [{**generated, "content_sha256": "0" * 64}]
    (tmp_path / "audit.json").write_text(json.dumps(audit | {"sets": other}))
    common = {"samples_dir": str(samples_dir), "features": features, "replicates": 0, "splits": "validation"}
    results = evaluate(audit_file=str(tmp_path / "audit.json"), **common)
    assert any("of other generated images" in warning for warning in results["warnings"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"repeat": {"checksums": {"model.pt": "0" * 64}}}, r"audit\.json is of other weights \(SHA-256 000000000000"),
        ({"audit": None}, r"audit\.json is not an audit: run medfusion audit"),
    ],
)
def test_audit_of_other_weights_and_files_that_are_none_are_refused(evaluate, audit, tmp_path, change, words):
    (tmp_path / "audit.json").write_text(json.dumps(audit | change))
    with pytest.raises(Exception) as caught:  # noqa: PT011  the bundle runner wraps it
        evaluate(audit_file=str(tmp_path / "audit.json"))
    assert re.search(words, str(first_cause(caught.value)))
    assert not (tmp_path / "report.json").exists()


def test_weights_of_another_prediction_are_refused(evaluate):
    with pytest.raises(Exception) as caught:  # noqa: PT011  the bundle runner wraps it
        evaluate(prediction_type="epsilon")
    assert "prediction_type v_prediction, this run has epsilon" in str(first_cause(caught.value))


def test_weights_without_a_description_are_refused(evaluate, trained, tmp_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undescribed")
    shutil.copy(trained / "models" / "model.pt", folder)
    with pytest.raises(Exception) as caught:  # noqa: PT011  the bundle runner wraps it
        evaluate(model_dir=str(folder))
    assert "model.json is missing. Copy the file that was written with them" in str(first_cause(caught.value))
    assert not list(tmp_path.glob("*.*"))


def test_size_and_way_of_reading_are_those_that_the_weights_say(evaluate, described):
    size = [48, 56]
    said = described(["image"], {"size": size, "resize_mode": "pad"})
    results = evaluate(splits="validation", image_size=None, model_dir=str(said))
    padded, cropped = (evaluate(splits="validation", image_size=size, resize_mode=mode) for mode in ("pad", "crop"))
    assert results["reconstructions"] == padded["reconstructions"] != cropped["reconstructions"]
    assert results["repeat"]["settings"]["image_size"] == size


def test_sweep_measures_each_number_of_steps_and_goes_on(evaluate, features, tmp_path, monkeypatch):
    settings = {"sweep_steps": [2, 3], "sweep_samples": 3, "features": features, "replicates": 0}
    first = evaluate(**settings)["sweep"]["rows"]
    assert [(row["num_inference_steps"], row["count"]) for row in first] == [(2, 6), (3, 6)]
    assert first[0]["fid"]["value"] != first[1]["fid"]["value"]

    def refuse(*args, **kwargs):
        raise AssertionError("sampled again")

    monkeypatch.setattr("medfusion_monai.evaluation.step_sweep._sampled_features", refuse)
    assert evaluate(**settings)["sweep"]["rows"] == first


SWEEP = {"sweep_steps": [2], "sweep_samples": 3, "replicates": 0, "splits": "validation"}


@pytest.mark.parametrize("change", [{"guidance_scale": 2.0}, {"seed": 1}])
def test_sweep_of_other_settings_is_sampled_again(change, evaluate, lively, features):
    settings = {**SWEEP, "features": features, "model_dir": str(lively)}
    [first] = evaluate(**settings)["sweep"]["rows"]
    [other] = evaluate(**settings, **change)["sweep"]["rows"]
    assert other["fid"]["value"] != first["fid"]["value"]


@pytest.mark.parametrize(
    ("part", "change"), [(["schedule"], {"prediction_type": "epsilon"}), (["networks", "unet"], {"norm_groups": 4})]
)
def test_sweep_of_weights_that_say_something_else_of_themselves_is_sampled_again(
    part, change, evaluate, described, lively, features
):
    folders = lively, described(part, change, lively)
    rows = [evaluate(**SWEEP, features=features, model_dir=str(folder))["sweep"]["rows"] for folder in folders]
    assert rows[0][0]["fid"]["value"] != rows[1][0]["fid"]["value"]


def test_damaged_features_of_a_sweep_are_sampled_again(evaluate, features, tmp_path):
    settings = {**SWEEP, "features": features}
    first = evaluate(**settings)["sweep"]
    [path] = (tmp_path / "cache").glob("sweep_*")
    whole = path.read_bytes()
    for damaged in (b"", whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]):
        path.write_bytes(damaged)
        assert evaluate(**settings)["sweep"] == first


def test_split_that_is_named_twice_counts_once(evaluate):
    [row] = evaluate(splits=["validation", "validation"])["reconstructions"]
    assert row["count"] == 4


def test_label_steering_is_measured(evaluate, samples_dir, features, monkeypatch):
    monkeypatch.setattr("medfusion_monai.evaluation.report_parts.label_steering", partial(label_steering, steps=2))
    rows = evaluate(samples_dir=str(samples_dir), features=features, replicates=0, classifier_seeds=[0])["steering"]
    assert {row["trained_on"] for row in rows["rows"]} >= {"real"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"features": "inception"}, "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"),
        ({"image_size": [56, 56]}, r"Medfusion: its images are 48x48 \(12\), height x width, but image_size is"),
        ({"sweep_steps": [0]}, "num_inference_steps must be a whole number"),
        ({"other_samples": {"GAN": "missing"}}, "GAN: 'missing' is not a folder"),
        ({"other_autoencoders": {"SD": "missing"}}, "missing"),
        ({"other_autoencoders": {"Medfusion": "missing"}}, r"the names \['Medfusion'\] are reserved for this bundle"),
        ({"other_samples": {"Medfusion": "missing", "real": "missing"}}, r"the names \['Medfusion', 'real'\]"),
        ({"splits": ["test", "tset"]}, "split 'tset' is missing"),
        ({"replicates": -1}, "replicates must be a whole number of at least 0"),
        ({"lpips": "alexx"}, "alexx"),
        ({"splits": []}, "splits is empty"),
        ({"splits": 3}, r"splits must be names, as \[test\], received 3"),
        ({"other_samples": "gan"}, "other_samples must be folders by name, .* received 'gan'"),
        ({"other_autoencoders": ["vae"]}, "other_autoencoders must be folders by name"),
        ({"sweep_steps": 50}, r"sweep_steps must be a list of numbers, as \[50,150\], received 50"),
        ({"classifier_seeds": 3}, "classifier_seeds must be a list of numbers"),
        ({"classifier_seeds": [0, -1, 2]}, "each of classifier_seeds must be a whole number of at least 0"),
        ({"classifier_seeds": [0, 0]}, "give each once"),
    ],
)
def test_what_does_not_fit_is_refused_before_measuring(
    overrides, words, evaluate, samples_dir, features, tmp_path, monkeypatch
):
    monkeypatch.setenv("MEDFUSION_WEIGHTS", str(tmp_path / "no_weights"))
    with pytest.raises(Exception) as caught:  # noqa: PT011  wrapped by MONAI's parser
        evaluate(**({"samples_dir": str(samples_dir), "features": features} | overrides))
    assert isinstance(first_cause(caught.value), ValueError)
    assert re.search(words, str(first_cause(caught.value)))
    assert not list(tmp_path.glob("*.*"))


@pytest.fixture
def edited(dataset_dir, tmp_path_factory):
    """Give a data set of other splits or content of the datalist, whose images are those of ``dataset_dir``."""

    def edit(content=None, **splits):
        folder = tmp_path_factory.mktemp("edited")
        (folder / "images").symlink_to(dataset_dir / "images")
        document = json.loads((dataset_dir / "datalist.json").read_text())
        (folder / "datalist.json").write_text(content or json.dumps(document | splits))
        return str(folder)

    return edit


@pytest.mark.parametrize("overrides", [{"neighbours": 1}, {"neighbours": 0, "classifier_seeds": [0]}])
def test_missing_training_split_is_told_before_measuring(overrides, evaluate, edited, samples_dir, features, tmp_path):
    overrides = {"samples_dir": str(samples_dir), "features": features, "replicates": 0} | overrides
    with pytest.raises(Exception) as caught:  # noqa: PT011  wrapped by MONAI's parser
        evaluate(dataset_dir=edited(training=[]), **overrides)
    assert "--neighbours 0 --classifier_seeds '[]'" in str(first_cause(caught.value))
    assert not list(tmp_path.glob("*.*"))


def test_damaged_datalist_is_named(evaluate, edited):
    with pytest.raises(Exception) as caught:  # noqa: PT011  wrapped by MONAI's parser
        evaluate(dataset_dir=edited("{"))
    assert "datalist.json: cannot be read as JSON" in str(first_cause(caught.value))


def test_reference_of_one_image_is_refused(evaluate, edited, dataset_dir, features, tmp_path):
    [first, *_] = json.loads((dataset_dir / "datalist.json").read_text())["test"]
    with pytest.raises(Exception) as caught:  # noqa: PT011  wrapped by MONAI's parser
        evaluate(dataset_dir=edited(test=[first]), sweep_steps=[2], features=features, samples_dir="$None")
    assert "split 'test': a single image has no spread" in str(first_cause(caught.value))
    assert not list(tmp_path.glob("*.*"))


def test_samples_that_are_not_there_are_told_in_the_report(evaluate, tmp_path):
    results = evaluate(splits="validation", samples_dir=str(tmp_path / "evla"))
    assert "the folder 'evla' contains no manifest.csv" in results["warnings"][0]
    for none in ("$None", "null"):
        assert evaluate(splits="validation", samples_dir=none)["warnings"] == []


def test_other_first_stage_of_another_size_is_told_before_measuring(evaluate, tmp_path, tmp_path_factory):
    diffusers = pytest.importorskip("diffusers", reason="the extra 'diffusers' is not installed")
    folder = tmp_path_factory.mktemp("vae")
    block = {"down_block_types": ["DownEncoderBlock2D"] * 6, "up_block_types": ["UpDecoderBlock2D"] * 6}
    diffusers.AutoencoderKL(block_out_channels=[4] * 6, norm_num_groups=4, **block).save_pretrained(folder)
    with pytest.raises(Exception) as caught:  # noqa: PT011  wrapped by MONAI's parser
        evaluate(other_autoencoders={"SD VAE": str(folder)})
    assert "is not divisible by 32" in str(first_cause(caught.value))
    assert not list(tmp_path.glob("*.*"))


def test_other_first_stages_stand_in_the_same_table(evaluate, tmp_path, tmp_path_factory):
    diffusers = pytest.importorskip("diffusers", reason="the extra 'diffusers' is not installed")
    folder = tmp_path_factory.mktemp("vae")
    block = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    diffusers.AutoencoderKL(block_out_channels=[8, 8], norm_num_groups=4, **block).save_pretrained(folder)
    rows = evaluate(splits="validation", other_autoencoders={"SD VAE": str(folder)})["reconstructions"]
    assert [row["name"] for row in rows] == ["Medfusion", "SD VAE"]
    assert rows[0]["mse"]["mean"] != rows[1]["mse"]["mean"]
    assert rows[0]["count"] == rows[1]["count"]
    with open(tmp_path / "mse_raw.csv", newline="") as file:
        values = [float(line[1]) for line in list(csv.reader(file))[1:]]
    assert np.mean(values) == pytest.approx(rows[0]["mse"]["mean"], rel=1e-5)  # each image's values are ours
