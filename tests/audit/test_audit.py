"""``medfusion audit``: a data set and samples in, a report out, or an error in one sentence."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from tiny_models import info_of, tiny

from medfusion_monai import load
from medfusion_monai.audit.audit_settings import AuditSettings
from medfusion_monai.audit.guard import load_guard
from medfusion_monai.audit.power import DEGRADATIONS
from medfusion_monai.audit.run_audit import RESULTS, Audit
from medfusion_monai.cli import main
from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.data.pixels import fingerprint
from medfusion_monai.report.audit_sections import audit_warnings
from medfusion_monai.report.audit_verdict import verdict
from medfusion_monai.report.read_back import read_audit
from medfusion_monai.weights.model_info import read_model_info, write_model_info
from medfusion_monai.weights.state_dict import save_weights

pytestmark = pytest.mark.usefixtures("one_thread")  # figures of two processes are compared bit by bit


FEW = ("--replicates=100", "--power-images=10")


def alternating(count):
    return [k % 2 for k in range(count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory, alike, write_data):
    folder = tmp_path_factory.mktemp("planted_place")
    training, held_out = alike
    splits = {"training": training, "validation": held_out[:50], "test": held_out[50:]}
    write_data(folder, {name: (images, alternating(len(images))) for name, images in splits.items()})
    return folder


@pytest.fixture(scope="module")
def samples(tmp_path_factory, alike, others, write_set):
    """60 images, of which the first eight of each class are copies."""
    folder = tmp_path_factory.mktemp("samples")
    images = torch.cat([0.8 * alike[0][:16] + 0.1, others[:44]])
    write_set(folder / "a", images[0::2])
    write_set(folder / "b", images[1::2])
    return folder


def run(data, samples, output, *options):
    places = ["--dataset-dir", str(data), "--samples", str(samples), "--output", str(output)]
    code = main(["audit", *places, "--power-images=0", *options])
    file = output / "audit.json"
    return code, json.loads(file.read_text()) if file.is_file() else None


@pytest.fixture
def model(audited, tmp_path):
    """A copy of the model's weights and of their model.json, and a function to change the latter."""
    path = tmp_path / "models" / "model.pt"
    shutil.copytree(audited[0].parent / "models", path.parent)

    def change(**parts):
        write_model_info(path, {**read_model_info(path), **parts})

    return path, change


@pytest.fixture(scope="module")
def audited(data, samples, tmp_path_factory):
    """The audit of samples with a tiny model of random weights."""
    output = tmp_path_factory.mktemp("audit")
    network, weights = tiny(["a", "b"], image_size=(32, 32)), output / "models" / "model.pt"
    save_weights(network, weights)
    write_model_info(weights, {**info_of(network), "training": {}})
    code, results = run(data, samples, output / "report", "--model-file", str(weights), *FEW)
    assert code == 0
    return output / "report", results


def test_copies_are_counted_overall_and_by_class(audited):
    rows = audited[1]["audit"]["rows"]
    assert [row["class_name"] for row in rows] == [None, "a", "b"]
    assert 16 <= rows[0]["copies"] <= 18
    assert rows[0]["training_images"] >= 16
    assert rows[1]["copy_rate"]["value"] is None
    assert "30 generated images" in rows[1]["copy_rate"]["note"]


def test_closest_pairs_name_files_of_samples_and_numbers_of_training_images(audited):
    closest = audited[1]["audit"]["closest"]
    assert len(closest) == 8
    assert all(pair["copy"] for pair in closest)
    assert all(
        pair["training"] == 2 * int(pair["file"][:4]) or pair["training"] == 2 * int(pair["file"][:4]) + 1
        for pair in closest
    )
    assert set(closest[0]["ratios"]) == {"pixels", "structure", "features"}


def test_latents_of_the_model_are_the_features(audited):
    features = audited[1]["audit"]["features"]
    assert features["name"] == "latents of the autoencoder"
    assert features["dimensions"] == 8 * 8 * 8


def test_two_processes_write_the_report_and_the_guard_of_one(audited, data, samples, two_processes, tmp_path):
    output, options = tmp_path / "report", [*FEW]
    options += ["--model-file", str(audited[0].parent / "models" / "model.pt")]
    assert two_processes(lambda rank: run(data, samples, output, *options)[0], connect=False) == [0, 0]
    one, two = (
        {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".run.lock"}
        for folder in (audited[0], output)
    )
    assert {"audit.json", "audit.html", "copy_guard.npz", "closest.png"} <= one.keys()
    assert two == one


@pytest.mark.slow
def test_torchrun_command_writes_the_report_of_one_process(data, samples, tmp_path):
    places = ["--dataset-dir", str(data), "--samples", str(samples)]
    command = ["-m", "medfusion_monai", "audit", *places, *FEW, "--no-pictures", "--size", "32", "32"]
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    reports = {}
    for name, launcher in {"one": [], "two": together}.items():
        words = [sys.executable, *launcher, *command, "--features", "efficientnet-lite0", "--output", "report"]
        folder = tmp_path / name
        folder.mkdir()
        subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, cwd=folder)
        reports[name] = [(folder / "report" / file).read_bytes() for file in ("audit.json", "copy_guard.npz")]
    assert reports["two"] == reports["one"]


def test_spoilt_sample_ends_both_processes_with_its_name(data, samples, two_processes, tmp_path, capfd):
    spoilt = shutil.copytree(samples, tmp_path / "samples")
    (spoilt / "b" / "0001.png").write_bytes(b"no image at all")
    codes = two_processes(lambda rank: run(data, spoilt, tmp_path / "report", "--no-pictures")[0], connect=False)
    assert codes == [2, 2]
    assert "0001.png: is not an image" in capfd.readouterr().err
    assert not (tmp_path / "report" / "audit.json").exists()


def test_recall_of_the_guard_is_reported_beside_its_false_alarms(audited):
    power = audited[1]["audit"]["power"]
    assert power["images"] == 10
    assert power["recall"]["mirrored"]["value"] == 1.0
    assert power["false_alarms"]["low"] <= 0.01
    text = (audited[0] / "audit.md").read_text()
    assert "10 training images were degraded and passed to the guard" in text
    assert all(name in text for name in power["recall"])


def test_held_out_near_duplicate_is_left_out_and_blinds_nothing(alike, tmp_path, write_data, write_set):
    training, held_out = alike
    near = torch.cat([held_out, DEGRADATIONS["noise 0.05"](training[20:22])])
    write_data(tmp_path / "data", {"training": (training, alternating(120)), "test": (near, alternating(102))})
    write_set(tmp_path / "samples", training[:60].flip(3))
    _, results = run(tmp_path / "data", tmp_path / "samples", tmp_path / "out", "--no-pictures")
    assert results["audit"]["rows"][0]["copies"] == 60
    assert results["audit"]["apart"] + len(results["audit"]["leaks"]) == 2


def test_held_out_scores_that_stand_apart_are_warned_of(audited):
    def warned(number):
        results = {**audited[1], "audit": {**audited[1]["audit"], "apart": number}}
        return [warning for warning in audit_warnings(results) if "stand apart from the rest" in warning]

    assert warned(0) == []
    assert warned(2)[0].startswith("2 held-out images have scores that stand apart")


def test_membership_is_measured_on_equal_classes(audited):
    membership = audited[1]["audit"]["membership"]
    assert membership["images"] == 100
    assert membership["auc"]["low"] <= membership["auc"]["value"] <= membership["auc"]["high"]
    assert membership["tpr_at_1_fpr"]["value"] is not None


def test_report_is_html_markdown_and_json_with_pictures_of_the_pairs(audited):
    folder, results = audited
    assert {"audit.html", "audit.md", "audit.json", "closest.png", "copy_guard.npz"} <= {
        path.name for path in folder.iterdir()
    }
    text = (folder / "audit.md").read_text()
    for sentence in (
        "cannot detect",
        "shows real images",
        "are copies of a training image",
        "AUC",
        "Nearer to training",
    ):
        assert sentence in text
    html = (folder / "audit.html").read_text()
    assert "audit.json contains the same figures" in html
    assert "report.json" not in html
    assert f"below {results['audit']['threshold']:.3f}" in text


def test_report_answers_first_whether_the_images_may_be_shared(audited):
    answer = verdict(audited[1]["audit"])
    assert answer.startswith("These images should not be shared: 16 of 60")
    assert (audited[0] / "audit.md").read_text().splitlines()[2] == answer
    html = (audited[0] / "audit.html").read_text()
    assert html.index("These images should not be shared") < html.index('id="warnings"')


def test_report_counts_passed_images_that_are_nearer_than_held_out_ones(audited):
    passed = audited[1]["audit"]["passed"]
    assert passed["count"] == 44
    assert passed["nearer_than_all"]["value"] <= passed["nearer_than_99"]["value"] < 0.2
    assert "Of the 44 images that are not copies, " in (audited[0] / "audit.md").read_text()


def test_report_has_the_sections_of_an_audit(audited):
    lines = (audited[0] / "audit.md").read_text().splitlines()
    assert [line.removeprefix("## ") for line in lines if line.startswith("## ")] == [
        "Pictures",
        "Image sets",
        "Copies",
        "What the copy guard finds",
        "Closest pairs",
        "The set as a whole",
        "Membership from the denoising loss",
        "What this audit cannot detect",
        "To repeat this",
    ]


def test_audit_is_read_again_for_the_weights_that_it_is_of(audited, tmp_path):
    file, results = audited[0] / "audit.json", audited[1]
    assert read_audit(file, results["repeat"]["checksums"]["model.pt"]) == results
    with pytest.raises(ValueError, match=r"audit\.json is of other weights"):
        read_audit(file, "0" * 64)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ValueError, match="is not an audit"):
        read_audit(tmp_path / "report.json", "0" * 64)


def test_report_names_no_patient_and_no_place(audited):
    for path in audited[0].glob("audit.*"):
        text = path.read_text()
        assert "planted" not in text
        assert "/tmp" not in text


def test_guard_of_the_audit_refuses_the_copies(audited, alike, others):
    guard = load_guard(audited[0])
    assert guard.check(torch.cat([alike[0][:4], others[:4]])).copies.tolist() == [True] * 4 + [False] * 4


QUICK = ("--membership-images=0", "--no-pictures")


def test_model_of_other_images_is_not_audited(model, data, samples, tmp_path, capsys):
    path, change = model
    change(training={"images": fingerprint(read_datalist(data, "training"))})
    code, results = run(data, samples, tmp_path / "out", "--model-file", str(path), *QUICK)
    assert code == 0
    assert not any("No file states which images" in warning for warning in results["warnings"])
    change(training={"images": "0" * 16})
    code, results = run(data, samples, tmp_path / "other", "--model-file", str(path), *QUICK)
    assert (code, results) == (2, None)
    assert "the model was trained on other images" in capsys.readouterr().err


def test_model_of_images_with_the_same_names_and_labels_but_other_pixels_is_not_audited(
    model, data, samples, tmp_path, capsys
):
    path, change = model
    change(training={"images": fingerprint(read_datalist(data, "training"))})
    other = shutil.copytree(data, tmp_path / "other")
    (other / "training" / "0000.png").write_bytes((data / "test" / "0000.png").read_bytes())
    assert run(other, samples, tmp_path / "out", "--model-file", str(path), *QUICK) == (2, None)
    assert "the model was trained on other images" in capsys.readouterr().err


def test_refused_audit_leaves_nothing_of_an_earlier_one(model, data, samples, tmp_path):
    path, change = model
    output = tmp_path / "out"
    assert run(data, samples, output, "--model-file", str(path), "--membership-images=0")[0] == 0
    left = set(RESULTS) & {file.name for file in output.iterdir()}
    assert left == set(RESULTS)
    change(training={"images": "0" * 16})
    assert run(data, samples, output, "--model-file", str(path), *QUICK) == (2, None)
    assert not set(RESULTS) & {file.name for file in output.iterdir()}


def test_model_that_does_not_say_its_images_is_audited_with_a_warning(model, data, samples, tmp_path):
    code, results = run(data, samples, tmp_path / "out", "--model-file", str(model[0].parent.parent), *QUICK)
    assert code == 0
    assert any("No file states which images" in warning for warning in results["warnings"])


def test_weights_without_a_description_are_not_audited(model, data, samples, tmp_path, capsys):
    model[0].with_suffix(".json").unlink()
    code, results = run(data, samples, tmp_path / "out", "--model-file", str(model[0]))
    assert (code, results) == (2, None)
    error = capsys.readouterr().err
    assert "model.json is missing. Copy the file that was written with them" in error
    assert "Without --model-file only the images are audited" in error


def test_description_of_another_network_is_not_taken_for_that_of_the_weights(model, data, samples, tmp_path, capsys):
    path, change = model
    networks = read_model_info(path)["networks"]
    change(networks={**networks, "unet": {**networks["unet"], "channels": [16, 16, 64]}})
    code, results = run(data, samples, tmp_path / "out", "--model-file", str(path))
    assert (code, results) == (2, None)
    assert "do not fit this network" in capsys.readouterr().err


def test_model_of_other_classes_is_not_audited(model, data, samples, tmp_path, capsys):
    path, change = model
    change(class_names=["a", "c"])
    assert run(data, samples, tmp_path / "out", "--model-file", str(path)) == (2, None)
    assert "nothing can be concluded about copies" in capsys.readouterr().err


def test_loss_is_that_of_the_prediction_that_the_weights_say(audited, model, data, samples, tmp_path):
    path, change = model
    change(schedule={**read_model_info(path)["schedule"], "prediction_type": "epsilon"})
    options = ["--model-file", str(path), "--no-pictures", "--replicates", "100"]
    _, results = run(data, samples, tmp_path / "out", *options)
    assert results["audit"]["rows"] == audited[1]["audit"]["rows"]
    auc = results["audit"]["membership"]["auc"]["value"]
    assert auc != pytest.approx(audited[1]["audit"]["membership"]["auc"]["value"], abs=1e-4)


def test_network_of_ones_own_is_audited_in_python(model, data, samples, tmp_path, capsys):
    path, change = model
    change(networks={"autoencoder": {"type": "Own"}, "unet": {"type": "Own"}})
    assert run(data, samples, tmp_path / "out", "--model-file", str(path)) == (2, None)
    assert "'Own' is a custom network" in capsys.readouterr().err
    own = load(path, "cpu", network=tiny(["a", "b"], image_size=(32, 32)))
    results = Audit(
        data, samples, tmp_path / "out", own, AuditSettings(pictures=False, membership_images=0, power_images=0)
    ).run()
    assert results["audit"]["features"]["name"] == "latents of the autoencoder"


def test_weights_of_a_zip_are_to_be_unpacked(model, data, samples, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as file:
        for path in model[0].parent.iterdir():
            file.write(path, f"bundle/models/{path.name}")
    assert run(data, samples, tmp_path / "out", "--model-file", str(tmp_path / "bundle.zip")) == (2, None)
    assert "unpack a zip first" in capsys.readouterr().err


def test_pictures_can_be_left_out(data, samples, tmp_path):
    code, results = run(data, samples, tmp_path, "--no-pictures")
    assert code == 0
    assert results["pictures"] == []
    assert not (tmp_path / "closest.png").exists()
    assert "shows real images" not in (tmp_path / "audit.md").read_text()
    assert results["audit"]["features"]["name"] == "efficientnet-lite0"
    assert "needs the model's weights" in results["audit"]["membership"]["auc"]["note"]
    assert any("No file states which images" in warning for warning in results["warnings"])


def test_missing_training_set_ends_with_what_is_needed_and_no_number(samples, tmp_path, capsys):
    code, results = run(tmp_path / "nowhere", samples, tmp_path / "out")
    assert code == 2
    assert results is None
    error = capsys.readouterr().err
    assert "nothing can be concluded about copies" in error
    assert "--dataset-dir" in error


def test_missing_training_image_ends_likewise(alike, samples, tmp_path, write_data, capsys):
    write_data(tmp_path / "data", {"training": (alike[0][:60], alternating(60)), "test": (alike[1], alternating(100))})
    (tmp_path / "data" / "training" / "0007.png").unlink()
    code, results = run(tmp_path / "data", samples, tmp_path / "out")
    assert code == 2
    assert results is None
    assert "nothing can be concluded" in capsys.readouterr().err


def test_few_images_are_audited_without_a_number(alike, others, tmp_path, write_data, write_set, capsys):
    write_data(
        tmp_path / "data", {"training": (alike[0][:40], alternating(40)), "test": (alike[1][:30], alternating(30))}
    )
    write_set(tmp_path / "samples", others[:20])
    code, results = run(tmp_path / "data", tmp_path / "samples", tmp_path / "out", "--no-pictures")
    assert code == 0
    audit = results["audit"]
    assert audit["rows"][0]["copy_rate"]["value"] is None
    assert audit["nearer_to_training"]["value"] is None
    assert "cannot be answered (withheld: fewer than 50 held-out images" in capsys.readouterr().out
    assert not (tmp_path / "out" / "copy_guard.npz").exists()


def test_without_held_out_images_no_figure_is_reported(alike, others, tmp_path, write_data, write_set):
    write_data(tmp_path / "data", {"training": (alike[0], alternating(120))})
    write_set(tmp_path / "samples", others)
    code, results = run(tmp_path / "data", tmp_path / "samples", tmp_path / "out")
    assert code == 0
    assert results["audit"]["rows"][0]["copy_rate"]["value"] is None
    assert results["audit"]["nearer_to_training"]["value"] is None


def test_one_class_is_said_to_be_all_that_is_concluded_about(alike, others, tmp_path, write_data, write_set):
    write_data(tmp_path / "data", {"training": (alike[0], [0] * 120), "test": (alike[1], [0] * 100)}, ["a"])
    write_set(tmp_path / "samples", others)
    _, results = run(tmp_path / "data", tmp_path / "samples", tmp_path / "out", "--no-pictures")
    assert len(results["audit"]["rows"]) == 1
    assert "All training images are of class a" in (tmp_path / "out" / "audit.md").read_text()


def test_samples_of_one_class_say_nothing_about_the_other(data, others, tmp_path, write_set):
    write_set(tmp_path / "samples" / "b", others)
    _, results = run(data, tmp_path / "samples", tmp_path / "out", "--no-pictures")
    assert "no generated images of class a" in results["audit"]["rows"][1]["copy_rate"]["note"]
    assert "nothing can be concluded about copies of a. " in (tmp_path / "out" / "audit.md").read_text()


def test_images_of_another_size_are_brought_to_that_of_the_samples(data, alike, tmp_path, write_set):
    large = torch.nn.functional.interpolate(alike[0][:60], scale_factor=2, mode="bilinear")
    write_set(tmp_path / "samples", large)
    code, results = run(data, tmp_path / "samples", tmp_path / "out", "--no-pictures")
    assert code == 0
    assert results["audit"]["rows"][0]["copies"] == 60


def test_coloured_samples_of_gray_training_images_are_refused(data, others, tmp_path, write_set, capsys):
    coloured = torch.cat([others, others * 0.5, others * 0.2], dim=1)
    write_set(tmp_path / "samples", coloured)
    assert run(data, tmp_path / "samples", tmp_path / "out")[0] == 2
    assert "Compare gray with gray" in capsys.readouterr().err


def test_unreadable_sample_is_named(data, others, tmp_path, write_set, capsys):
    write_set(tmp_path / "samples", others)
    (tmp_path / "samples" / "0003.png").write_bytes(b"no image")
    assert run(data, tmp_path / "samples", tmp_path / "out")[0] == 2
    assert "0003.png" in capsys.readouterr().err


def test_leaks_and_repetitions_are_named_by_number(alike, others, tmp_path, write_data, write_set):
    training, held_out = alike
    splits = {"training": torch.cat([training, training[:3]]), "test": torch.cat([held_out[:80], training[5:7]])}
    write_data(tmp_path / "data", {name: (images, alternating(len(images))) for name, images in splits.items()})
    write_set(tmp_path / "samples", others)
    _, results = run(tmp_path / "data", tmp_path / "samples", tmp_path / "out", "--no-pictures")
    assert results["audit"]["leaks"] == [{"split": "test", "number": 80 + k, "equal": True} for k in range(2)]
    assert results["audit"]["repeats"] == 3
    text = (tmp_path / "out" / "audit.md").read_text()
    assert "2 held-out images are also training images" in text
    assert "3 training images repeat another one" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model-file", "x.pt"], "weights x.pt do not exist"),
        (["--features", "latents"], "needs the model's weights"),
        (["--features", "other"], "features 'other' are unknown"),
        (["--flips", "sideways"], "use one of none, horizontal, all"),
        (["--device", "tpu"], "device"),
    ],
)
def test_settings_that_do_not_fit_are_refused(data, samples, tmp_path, capsys, options, message):
    code, results = run(data, samples, tmp_path / "out", *options)
    assert code == 2
    assert results is None
    assert message in capsys.readouterr().err


def test_earlier_guard_is_removed_where_none_can_be_made(alike, others, tmp_path, write_data, write_set):
    write_data(tmp_path / "data", {"training": (alike[0], alternating(120)), "test": (alike[1][:20], alternating(20))})
    write_set(tmp_path / "samples", others)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "copy_guard.npz").write_bytes(b"of an earlier audit")
    run(tmp_path / "data", tmp_path / "samples", tmp_path / "out", "--no-pictures")
    assert not (tmp_path / "out" / "copy_guard.npz").exists()
