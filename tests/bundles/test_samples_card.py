"""The card of samples from a run of inference, an evaluation and an audit of the same images and weights."""

import json
import shutil

import pytest

from medfusion_monai.cli import main
from medfusion_monai.runtime.files import file_sha256

TITLES = ["Images", "Source", "Training images of the model", "Fidelity", "Diversity", "Utility", "Privacy", "Limits"]


@pytest.fixture(scope="module")
def measured(bundle, lively, samples_dir, dataset_dir, features, tmp_path_factory):
    """Report and audit of the samples, in a folder with a copy of them."""
    folder = tmp_path_factory.mktemp("card")
    samples = shutil.copytree(samples_dir, folder / "samples")
    places = {"dataset_dir": str(dataset_dir), "samples_dir": str(samples), "output_dir": str(folder / "report")}
    quiet = {"features": features, "replicates": 0, "classifier_seeds": [0], "splits": "validation", "neighbours": 0}
    bundle("evaluating", "evaluate.yaml", model_dir=str(lively), image_size=[48, 48], **places, **quiet)
    audit = ["audit", "--dataset-dir", str(dataset_dir), "--samples", str(samples), "--output", str(folder / "audit")]
    quick = ["--membership-images", "0", "--power-images", "2", "--no-pictures", "--model-file", str(lively)]
    assert main([*audit, *quick]) == 0
    return folder


@pytest.fixture
def card(measured, lively, tmp_path):
    """Write the card of a copy of the samples and give its sections by title."""

    def write(**files):
        folder = shutil.copytree(measured / "samples", tmp_path / "samples", dirs_exist_ok=True)
        options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
        assert main(["card", str(folder), "--model-file", str(lively), *options]) == 0
        return sections_of(folder)

    return write


def sections_of(folder):
    parts = (folder / "card.md").read_text().split("\n## ")
    return {"": parts[0], **{part.partition("\n")[0]: part.partition("\n")[2].strip() for part in parts[1:]}}


def test_inference_writes_what_is_known_then(samples_dir, lively):
    found = sections_of(samples_dir)
    assert list(found) == ["", *TITLES, "Licence", "Files and commands"]
    assert found[""].startswith("# Synthetic images: no_cardiomegaly, cardiomegaly\n\nNot audited")
    assert "Number of images: 12. Form: one channel, 48 pixels high, 48 wide; files: PNG, 8 bits" in found["Images"]
    assert "| 1 | cardiomegaly | 6 |" in found["Images"]
    assert f"| {file_sha256(lively / 'model.pt')} |" in found["Source"]
    assert "| ddim |" in found["Source"]
    assert "Number of training images: 32." in found["Training images of the model"]
    for title in ("Fidelity", "Diversity", "Utility"):
        assert found[title].startswith("Not measured")
    assert file_sha256(samples_dir / "manifest.csv") in found["Files and commands"]


def test_card_shows_the_figures_of_report_and_audit(card, measured):
    found = card(report=measured / "report" / "report.json", audit=measured / "audit" / "audit.json")
    report = json.loads((measured / "report" / "report.json").read_text())
    [row] = [row for row in report["fidelity"] if row["class_name"] is None]
    [reconstruction] = report["reconstructions"]
    assert f"| Medfusion | 12 | {row['reference_count']} | {row['fid']['value']:.2f}" in found["Fidelity"]
    assert f"| {reconstruction['ms_ssim']['mean']:.3f} ± " in found["Fidelity"]
    assert f"{row['diversity_ms_ssim']['value']:.3f}" in found["Diversity"]
    assert "| real | Medfusion |" in found["Utility"]
    assert "The number of copies among the generated images is not reported" in found["Privacy"]
    assert found[""].splitlines()[2].startswith("Whether these images may be shared cannot be answered")
    assert report["sets"][0]["content_sha256"] in found["Files and commands"]


def test_card_without_a_report_shows_the_audit(card, measured):
    found = card(audit=measured / "audit" / "audit.json")
    assert found["Fidelity"] == "Not measured: the last section has the commands."
    assert "The number of copies among the generated images is not reported" in found["Privacy"]


def changed(path, folder, change):
    content = json.loads(path.read_text())
    change(content)
    (folder / path.name).write_text(json.dumps(content))
    return folder / path.name


def test_figures_of_other_images_are_not_shown(card, measured, tmp_path):
    def replace(content):
        for item in content["sets"]:
            item["content_sha256"] = "0" * 64

    report = changed(measured / "report" / "report.json", tmp_path, replace)
    audit = changed(measured / "audit" / "audit.json", tmp_path, replace)
    found = card(report=report, audit=audit)
    assert "is of other images or labels than these" in found["Fidelity"]
    assert "FID" not in found["Fidelity"]
    assert "MS-SSIM" in found["Fidelity"]  # of reconstructions, by the same weights
    assert "The audit that was given is of other images" in found["Privacy"]
    assert found[""].splitlines()[2].startswith("Not audited")


def test_audit_against_other_training_images_is_not_shown(card, measured, tmp_path):
    def replace(content):
        del content["repeat"]["checksums"]["model.pt"]
        content["repeat"]["checksums"]["training images"] = "0" * 64

    found = card(audit=changed(measured / "audit" / "audit.json", tmp_path, replace))
    assert "compared with other training images than those of these weights" in found["Privacy"]
    assert found[""].splitlines()[2].startswith("Not audited")


def test_report_of_any_generators_counts_for_the_same_images(card, measured, dataset_dir, features, tmp_path):
    places = ["--reference", str(dataset_dir), "--output", str(tmp_path / "report"), "--features", features]
    assert (
        main(["compare", *places, "--images", f"A={measured / 'samples'}", "--replicates", "0", "--classifier-seeds"])
        == 0
    )
    found = card(report=tmp_path / "report" / "report.json")
    assert "| A | 12 |" in found["Fidelity"]
    assert "Not measured: the report that was given has no such figures" in found["Utility"]
