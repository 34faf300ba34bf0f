import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import LoadImage
from PIL import Image
from pydicom import dcmread

from medfusion_monai.audit.fingerprints import fingerprint
from medfusion_monai.audit.guard import CopyGuard
from medfusion_monai.audit.statistics import Calibration
from medfusion_monai.data.reading.images import read_image
from medfusion_monai.evaluation.image_set import open_image_set
from medfusion_monai.runtime.errors import first_cause
from medfusion_monai.runtime.files import file_sha256


@pytest.fixture
def infer(bundle, lively, tmp_path):
    """Samples with tiny networks and gives the folder."""

    def run(folder="samples", **overrides):
        places = {"model_dir": str(lively), "output_dir": str(tmp_path / folder)}
        bundle("inference", "inference.yaml", **(places | overrides))
        return tmp_path / folder

    return run


@pytest.fixture
def refused(infer, tmp_path):
    def run(**overrides):
        with pytest.raises((RuntimeError, ValueError)) as caught:
            infer(**overrides)
        assert not list(tmp_path.glob("samples/*.png"))
        cause = first_cause(caught.value)
        assert isinstance(cause, ValueError)
        return str(cause)

    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def manifest(folder):
    with open(folder / "manifest.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_images_of_every_class_and_their_manifest_are_written(infer, lively):
    folder = infer(num_samples=3, guidance_scale=2.0, sampler="ddim", eta=0.5, seed=7)
    rows = manifest(folder)
    assert [row["class_name"] for row in rows] == ["no_cardiomegaly"] * 3 + ["cardiomegaly"] * 3
    assert [row["label"] for row in rows] == ["0"] * 3 + ["1"] * 3
    assert len({row["seed"] for row in rows}) == 6
    checksum = file_sha256(lively / "model.pt")
    expected = {"num_inference_steps": "3", "guidance_scale": "2.0", "sampler": "ddim", "eta": "0.5"}
    expected |= {"weights_sha256": checksum}
    assert all(expected.items() <= row.items() for row in rows)
    for row in rows:
        with Image.open(folder / row["file"]) as image:
            assert (image.mode, image.size) == ("L", (32, 32))
            assert image.text["Synthetic"].startswith("true")
            assert json.loads(image.text["Comment"])["seed"] == int(row["seed"])


def test_image_is_the_same_alone_and_in_a_batch(infer):
    together = infer("together", label=1, num_samples=5, batch_size=5)
    alone = infer("alone", label="cardiomegaly", num_samples=5, batch_size=1)
    for row in manifest(together):
        first, second = (np.asarray(Image.open(folder / row["file"])).astype(int) for folder in (together, alone))
        assert first.std() > 5
        assert np.abs(first - second).max() <= 1  # float error may tip a rounding
    assert [row["seed"] for row in manifest(together)] == [row["seed"] for row in manifest(alone)]


def test_image_can_be_made_again_from_its_seed(infer):
    folder = infer("all", label=0, num_samples=3, batch_size=1)
    row = manifest(folder)[2]
    again = infer("again", label=0, image_seeds=[int(row["seed"])], batch_size=1)
    first, second = (np.asarray(Image.open(path)) for path in (folder / row["file"], next(again.glob("*.png"))))
    assert np.array_equal(first, second)


def test_rerun_continues_and_gives_the_same_bytes(infer):
    folder = infer(num_samples=4, batch_size=2)
    whole = contents(folder)
    (folder / "1_cardiomegaly_000001.png").unlink()
    kept = folder / "0_no_cardiomegaly_000000.png"
    stamp = kept.stat().st_mtime_ns
    infer(num_samples=4, batch_size=2)
    assert contents(folder) == whole
    assert kept.stat().st_mtime_ns == stamp


def test_more_images_of_the_same_run_are_added(infer):
    folder = infer(label=1, num_samples=2, batch_size=2)
    first = {name: data for name, data in contents(folder).items() if name.endswith(".png")}
    infer(label=1, num_samples=4, batch_size=2)
    assert len(manifest(folder)) == 4
    assert first.items() <= contents(folder).items()
    assert "Number of images: 4." in (folder / "card.md").read_text()


@pytest.mark.parametrize("changed", [{"eta": 0.0}, {"spacing": "linspace"}, {"guidance_scale": 2.0}, {"batch_size": 1}])
def test_folder_of_another_run_is_refused(changed, infer):
    folder = infer(label=1, num_samples=2)
    before = contents(folder)
    with pytest.raises(RuntimeError) as caught:
        infer(label=1, num_samples=2, **changed)
    assert next(iter(changed)) in str(first_cause(caught.value))
    assert contents(folder) == before


def test_interval_of_the_guidance_is_listed_and_part_of_the_run(infer):
    folder = infer(label=1, num_samples=1, guidance_scale=2.0, guidance_interval=[0.3, 3])
    assert manifest(folder)[0]["guidance_interval"] == "[0.3, 3.0]"
    assert contents(infer(label=1, num_samples=1, guidance_scale=2.0, guidance_interval=[0.3, 3.0])) == contents(folder)
    with pytest.raises(RuntimeError) as caught:
        infer(label=1, num_samples=1, guidance_scale=2.0)
    assert "guidance_interval [0.3, 3.0], this run has None" in str(first_cause(caught.value))


def test_guide_is_listed_by_its_checksum_and_part_of_the_run(infer, lively, trained):
    earlier = trained / "models"  # the same autoencoder is needed
    state = torch.load(lively / "model.pt", weights_only=True)
    own = torch.load(earlier / "model.pt", weights_only=True)
    file = lively.parent / "earlier" / "model.pt"
    file.parent.mkdir(exist_ok=True)
    torch.save({name: state[name] if name.startswith("autoencoder.") else own[name] for name in own}, file)
    shutil.copy(lively / "model.json", file.parent)
    settings = {"label": 1, "num_samples": 1, "guidance_scale": 2.0}
    folder = infer(**settings, guidance_model=str(file))
    assert manifest(folder)[0]["guidance_model"] == file_sha256(file)
    plain = infer("plain", **settings)
    assert manifest(plain)[0]["guidance_model"] == "none"
    assert contents(plain)["1_cardiomegaly_000000.png"] != contents(folder)["1_cardiomegaly_000000.png"]
    with pytest.raises(RuntimeError) as caught:
        infer(**settings)
    assert "this run has none" in str(first_cause(caught.value))


def test_rerun_may_spell_its_settings_in_another_way(infer):
    settings = {"label": 1, "num_samples": 1, "guidance_scale": 2.0, "eta": 0.0, "negative_label": 0}
    whole = contents(infer(**settings))
    again = infer(**settings | {"guidance_scale": 2, "eta": 0, "negative_label": "no_cardiomegaly"})
    assert contents(again) == whole


def test_sixteen_bit_png_holds_finer_steps(infer):
    coarse, fine = infer("8", num_samples=1, label=1), infer("16", num_samples=1, label=1, output_format="png16")
    eight = np.asarray(Image.open(next(coarse.glob("*.png")))).astype(float)
    sixteen = np.asarray(Image.open(next(fine.glob("*.png")))).astype(float)
    assert sixteen.max() > 255
    assert np.abs(sixteen / 65535 * 255 - eight).max() <= 0.5 + 1e-9  # rounded, not floored


def test_nifti_is_read_by_monai_and_says_that_it_is_synthetic(infer):
    picture = np.asarray(Image.open(next(infer("png", num_samples=1, label=1).glob("*.png")))).astype(float)
    file = next(infer("nifti", num_samples=1, label=1, output_format="nifti").glob("*.nii.gz"))
    image = LoadImage(image_only=True)(file)
    assert np.abs(image.numpy().T * 255 - picture).max() <= 0.5 + 1e-4
    assert b"SYNTHETIC" in bytes(nib.load(file).header["descrip"])


def test_dicom_files_have_the_pixels_of_png_files_and_are_read_as_samples(infer):
    pictures, folder = (
        infer("png", num_samples=3, label=1),
        infer("dicom", num_samples=3, label=1, output_format="dicom"),
    )
    files = sorted(folder.glob("*.dcm"))
    for picture, file in zip(sorted(pictures.glob("*.png")), files, strict=True):
        assert np.array_equal(read_image(picture), read_image(file))
    headers = [dcmread(file) for file in files]
    assert len({header.SOPInstanceUID for header in headers}) == 3
    assert len({(header.StudyInstanceUID, header.SeriesInstanceUID) for header in headers}) == 1
    assert [header.InstanceNumber for header in headers] == [1, 2, 3]
    assert "files: DICOM, Secondary Capture" in (folder / "card.md").read_text()
    again = infer("again", num_samples=3, label=1, output_format="dicom")
    assert [file.read_bytes() for file in sorted(again.glob("*.dcm"))] == [file.read_bytes() for file in files]
    assert len(open_image_set("samples", folder).paths) == 3


def test_size_is_a_multiple_of_what_this_autoencoder_divides_by(bundle, dataset_dir, tmp_path):
    places = {"model_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "runs")}
    networks = {"autoencoder_channels": [8, 16], "unet_channels": [16, 16], "ssim_window": 7}
    bundle("training", dataset_dir=str(dataset_dir), image_size=[18, 34], **networks, **places)
    places["output_dir"] = str(tmp_path / "samples")
    bundle("inference", "inference.yaml", image_size=[22, 34], label=0, num_samples=1, **places)
    assert Image.open(next((tmp_path / "samples").glob("*.png"))).size == (34, 22)
    with pytest.raises(RuntimeError) as caught:
        bundle("inference", "inference.yaml", image_size=[21, 34], **places)
    assert "multiples of 2" in str(first_cause(caught.value))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"label": "cardiomegally"}, ["cardiomegally", "no_cardiomegaly"]),
        ({"label": 2}, ["2", "classes"]),
        ({"label": 1.0}, ["label", "1.0", "no_cardiomegaly"]),
        ({"label": [0, 0]}, ["twice"]),
        ({"image_seeds": 5}, ["image_seeds", "5", "list"]),
        ({"image_seeds": []}, ["image_seeds", "[]"]),
        ({"image_seeds": [-3]}, ["image_seeds", "[-3]"]),
        ({"image_seeds": "none"}, ["image_seeds", "'none'"]),
        ({"num_samples": -1}, ["num_samples", "-1"]),
        ({"num_samples": 0}, ["num_samples", "0"]),
        ({"num_samples": 1_000_000_000}, ["num_samples", "2,000,000,000 images", "at most 10,000,000"]),
        ({"num_samples": 2.5}, ["num_samples", "2.5"]),
        ({"num_samples": "ten"}, ["num_samples", "'ten'", "whole numbers"]),
        ({"num_samples": [1, 2, 3]}, ["3 counts for 2"]),
        ({"num_inference_steps": 0}, ["num_inference_steps", "between 1 and 1000", "0"]),
        ({"num_inference_steps": 1001}, ["num_inference_steps", "1001"]),
        ({"num_inference_steps": "abc"}, ["num_inference_steps", "'abc'"]),
        ({"eta": 1.5}, ["eta", "1.5"]),
        ({"negative_label": "none"}, ["negative_label", "'none'", "no_cardiomegaly"]),
        ({"negative_label": [1], "guidance_scale": 2.0}, ["negative_label", "[1]", "a list of 2"]),
        ({"negative_label": 1, "guidance_scale": 1.0}, ["negative_label", "guidance_scale"]),
        ({"guidance_interval": [0.3, 3]}, ["guidance_interval", "guidance_scale 1"]),
        ({"guidance_interval": [3, 0.3], "guidance_scale": 2.0}, ["guidance_interval", "low < high", "[3, 0.3]"]),
        ({"guidance_model": "nowhere.pt", "guidance_scale": 2.0}, ["guidance_model", "nowhere.pt", "does not exist"]),
        ({"guidance_interval": 3, "guidance_scale": 2.0}, ["guidance_interval", "two noise levels", "3"]),
        ({"output_format": "jpeg"}, ["jpeg", "png16"]),
        ({"image_channels": 3}, ["model.pt", "image_channels 1, this run has 3"]),
        ({"batch_size": 0}, ["batch_size"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"seed": "first"}, ["seed", "'first'"]),
        ({"image_size": [36, 32]}, ["multiples of 8"]),
        ({"image_size": 128}, ["image_size", "[height, width]", "128"]),
        ({"model_dir": "/nowhere"}, ["/nowhere/model.pt", "run training"]),
        ({"unet_channels": [16, 16, 16, 16]}, ["model.pt", "unet_channels [16, 16, 16, 32], this run has [16, 16"]),
        ({"unet_norm_groups": 16}, ["model.pt", "unet_norm_groups 8, this run has 16"]),
        ({"autoencoder_steps": 5}, ["--autoencoder_steps", "not a key of this config"]),
    ],
)
def test_bad_request_is_refused_with_what_to_do(overrides, words, refused):
    message = refused(**overrides)
    assert all(word in message for word in words), message


def test_folder_that_cannot_be_written_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in refused(output_dir=str(tmp_path / "file" / "samples"))


def test_weights_file_that_is_cut_off_is_refused(refused, lively, tmp_path):
    shutil.copytree(lively, tmp_path / "models")
    model = tmp_path / "models" / "model.pt"
    model.write_bytes(model.read_bytes()[:1000])
    assert "cannot be read" in refused(model_dir=str(tmp_path / "models"))


def test_none_in_the_runner_s_own_way_stands_for_every_class(infer):
    assert {row["label"] for row in manifest(infer(label="$None", num_samples=1))} == {"0", "1"}


def test_label_changes_the_image_of_a_seed(infer):
    first, second = (next(infer(str(n), label=n, image_seeds=[5]).glob("*.png")) for n in (0, 1))
    assert not np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(second)))


@pytest.fixture
def sample(infer, trained):
    """As ``infer``, of weights that stand beside what they were trained with."""

    def run(folder="samples", **overrides):
        return infer(folder, **({"model_dir": str(trained / "models")} | overrides))

    return run


@pytest.fixture
def models(trained, tmp_path):
    """A copy of the trained weights that a test may change."""
    return Path(shutil.copytree(trained / "models", tmp_path / "copy"))


def set_info(models, **changes):
    info = json.loads((models / "model.json").read_text())
    (models / "model.json").write_text(json.dumps(info | changes))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"class_names": ["cardiomegaly", "no_cardiomegaly"]}, ["class_names", "['no_cardiomegaly', 'cardiomegaly']"]),
        ({"prediction_type": "sample"}, ["prediction_type", "v_prediction", "sample"]),
        ({"noise_schedule": "cosine"}, ["noise_schedule", "scaled_linear", "cosine"]),
        ({"zero_terminal_snr": True}, ["zero_terminal_snr", "False", "True"]),
        ({"unet_attention": True}, ["unet_attention", "False", "True"]),
    ],
)
def test_other_settings_than_those_of_the_training_are_refused(changed, words, refused, trained):
    message = refused(model_dir=str(trained / "models"), num_samples=1, **changed)
    assert all(word in message for word in [*words, "model.pt", "leave out"]), message


def described(models, **changes):
    """The network that ``model.json`` describes, as a config would define it, with other arguments."""
    networks = json.loads((models / "model.json").read_text())["networks"]
    parts = {}
    for name, part in networks.items():
        arguments = {key: value for key, value in part.items() if key != "type"}
        parts[name] = {"_target_": f"medfusion_monai.networks.{part['type']}", **arguments, **changes.get(name, {})}
    names = ["no_cardiomegaly", "cardiomegaly"]
    return {"_target_": "medfusion_monai.networks.Medfusion", **parts, "class_names": names, "image_size": [32, 32]}


@pytest.mark.parametrize("name", ["autoencoder", "unet"])
def test_network_of_the_same_weights_with_other_norm_groups_is_refused(name, refused, trained):
    network = described(trained / "models", **{name: {"norm_groups": 4}})
    message = refused(model_dir=str(trained / "models"), num_samples=1, network_def=network)
    assert f"{name} was trained with other arguments: norm_groups was 8, now it is 4" in message
    assert "Leave out network_def" in message


def test_network_that_is_written_out_as_described_gives_the_same_images(sample, trained):
    folder = sample("first", label=1, num_samples=1)
    again = sample("second", label=1, num_samples=1, network_def=described(trained / "models"))
    assert contents(folder) == contents(again)


def test_another_size_than_that_of_the_training_is_warned_of(sample, capsys):
    folder = sample(label=0, num_samples=1, image_size=[24, 40])
    assert "image_size [32, 32], this run has [24, 40]" in capsys.readouterr().out
    assert Image.open(next(folder.glob("*.png"))).size == (40, 24)


def test_real_shares_are_those_of_the_training_data(infer, models):
    set_info(models, class_shares=[0.9, 0.1])
    folder = infer(model_dir=str(models), num_samples=10, class_shares="real")
    assert [row["label"] for row in manifest(folder)] == ["0"] * 9 + ["1"]


def test_real_shares_that_the_weights_do_not_say_are_asked_for(refused, models):
    set_info(models, class_shares=None)
    message = refused(model_dir=str(models), num_samples=10, class_shares="real")
    assert "class_shares real" in message
    assert "'[0.97, 0.03]'" in message


def test_null_on_the_command_line_stands_for_every_class(infer):
    assert {row["label"] for row in manifest(infer(label="null", num_samples=1))} == {"0", "1"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "model.json is missing. Copy the file that was written with them"),
        ("", "cannot be read as JSON"),
        ("[1]", "is not a JSON object"),
        ('{"format": 2}', "is of format 2"),
        ('{"class_names": ["a"]}', "has no image, networks, schedule, sampler"),
    ],
)
def test_weights_that_do_not_say_what_they_are_are_refused(content, words, refused, models):
    (models / "model.json").unlink()
    if content is not None:
        (models / "model.json").write_text(content)
    assert words in refused(model_dir=str(models))


def test_description_of_another_network_is_refused(refused, models):
    networks = json.loads((models / "model.json").read_text())["networks"]
    networks["unet"]["channels"] = [16, 16, 16, 48]
    set_info(models, networks=networks)
    message = refused(model_dir=str(models))
    assert "do not fit" in message
    assert "model.json" in message


def test_description_names_no_code_to_run(refused, models):
    networks = json.loads((models / "model.json").read_text())["networks"]
    set_info(models, networks=networks | {"unet": {"type": "os.system", "command": "true"}})
    assert "'os.system' is a custom network" in refused(model_dir=str(models))


def test_config_may_say_all_that_weights_do_not(bundle, models, tmp_path):
    info = json.loads((models / "model.json").read_text())
    (models / "model.json").unlink()
    parts = {name: {k: v for k, v in part.items() if k != "type"} for name, part in info["networks"].items()}
    network = {"_target_": "medfusion_monai.networks.Medfusion"}
    network["autoencoder"] = {"_target_": "medfusion_monai.networks.Autoencoder", **parts["autoencoder"]}
    network["unet"] = {"_target_": "medfusion_monai.networks.UNet", **parts["unet"]}
    given = {"class_names": info["class_names"], "image_size": [32, 32], "image_channels": 1}
    given["prediction_type"] = "v_prediction"
    places = {"model_dir": str(models), "output_dir": str(tmp_path / "s")}
    bundle("inference", "inference.yaml", network_def=network, num_samples=1, label="cardiomegaly", **given, **places)
    assert len(list((tmp_path / "s").glob("*.png"))) == 1


def test_network_of_a_config_wins(bundle, models, tmp_path):
    networks = json.loads((models / "model.json").read_text())["networks"]
    set_info(models, networks=networks | {"unet": {"type": "MyUNet"}})
    unet = {"_target_": "medfusion_monai.networks.UNet", **{k: v for k, v in networks["unet"].items() if k != "type"}}
    autoencoder = {**networks["autoencoder"], "_target_": "medfusion_monai.networks.Autoencoder"}
    del autoencoder["type"]
    network = {"_target_": "medfusion_monai.networks.Medfusion", "autoencoder": autoencoder, "unet": unet}
    places = {"model_dir": str(models), "output_dir": str(tmp_path / "s")}
    bundle("inference", "inference.yaml", network_def=network, num_samples=1, label=1, **places)
    assert len(list((tmp_path / "s").glob("*.png"))) == 1


def test_given_shares_make_up_the_total_and_keep_each_image(sample):
    shared = sample("shared", num_samples=4, class_shares=[0.25, 0.75])
    each = sample("each", num_samples=4)
    assert [row["label"] for row in manifest(shared)] == ["0", "1", "1", "1"]
    seeds = {row["file"]: row["seed"] for row in manifest(each)}
    assert all(seeds[row["file"]] == row["seed"] for row in manifest(shared))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"class_shares": "equal"}, ["'equal'", "real"]),
        ({"class_shares": [0.5, 0.4]}, ["sum to 1"]),
        ({"class_shares": [0.5, 0.5], "num_samples": [2, 2]}, ["num_samples"]),
        ({"class_shares": [0.5, 0.5], "image_seeds": [2, 2]}, ["image_seeds"]),
    ],
)
def test_shares_that_make_no_sense_are_refused(overrides, words, refused):
    message = refused(**overrides)
    assert all(word in message for word in words), message


@pytest.fixture
def guarded(infer, tmp_path):
    """The folder of a guard that knows the second and third of the images that ``infer(num_samples=2)`` gives."""
    known = sorted(infer("known", num_samples=2).glob("*.png"))[1:3]
    images = torch.stack([torch.from_numpy(read_image(path)) for path in known])
    others = torch.rand(60, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    (tmp_path / "audit").mkdir()
    calibration = Calibration(threshold=0.01, rate=0.01, held_out=60)
    CopyGuard(fingerprint(images), fingerprint(others), calibration, [32, 32], "none").save(tmp_path / "audit")
    return tmp_path / "audit"


def test_copies_of_training_images_are_counted_and_not_written(infer, guarded, capsys):
    folder = infer(num_samples=2, refuse_copies_of=str(guarded))
    names = {"0_no_cardiomegaly_000000.png", "1_cardiomegaly_000001.png"}
    assert {path.name for path in folder.glob("*.png")} == {row["file"] for row in manifest(folder)} == names
    with open(folder / "refused.csv", newline="") as file:
        refused = [row["file"] for row in csv.DictReader(file)]
    assert refused == ["0_no_cardiomegaly_000001.png", "1_cardiomegaly_000000.png"]
    assert "2 images were refused" in capsys.readouterr().out
    before = contents(folder)
    infer(num_samples=2, refuse_copies_of=str(guarded))
    assert contents(folder) == before


def test_audit_folder_without_a_guard_is_refused(refused, tmp_path):
    assert "run medfusion audit" in refused(refuse_copies_of=str(tmp_path))
