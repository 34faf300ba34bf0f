"""The three bundles: what they share is the same, and each of them trains, samples and measures."""

import json
import re
from pathlib import Path

import pytest
import yaml
from monai.bundle import ConfigWorkflow
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import save, tiny, tool_named

from medfusion_monai.demo.phantoms.families import prepare_phantoms
from medfusion_monai.runtime.locks import leave_folders

ROOT = Path(__file__).parents[2]
SOURCE, OTHERS = (
    ROOT / "bundles" / "medfusion_cxr",
    [ROOT / "bundles" / f"medfusion_{name}" for name in ("fundus", "histo")],
)
CONFIGS = ("train.yaml", "inference.yaml", "evaluate.yaml")


@pytest.fixture(scope="module")
def tool():
    return tool_named("copy_common")


@pytest.mark.parametrize("folder", OTHERS, ids=lambda path: path.name)
def test_bundles_differ_only_in_their_own_parts(folder, tool):
    assert tool.common_files(folder) == tool.common_files(SOURCE)
    for name in tool.common_files(SOURCE):
        source, target = ((place / name).read_text() for place in (SOURCE, folder))
        assert target == tool.expected_text(name, source, target), f"{name}: run python tools/copy_common.py"
    for name in tool.OWN_FILES:
        assert (folder / name).is_file()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("configs/train.yaml", "diffusion_lr: 1.0e-4", "diffusion_lr: 2.0e-4"),
        ("configs/inference.yaml", "batch_size: 16", "batch_size: 8"),
        ("configs/metadata.json", '"monai_version": "', '"monai_version": "9'),
        ("LICENSE", "Apache", "Other"),
    ],
)
def test_planted_difference_is_found(name, old, new, tool):
    source = (SOURCE / name).read_text()
    assert old in source
    planted = source.replace(old, new, 1)
    assert tool.expected_text(name, source, planted) == source != planted


@pytest.mark.parametrize("folder", [SOURCE, *OTHERS], ids=lambda path: path.name)
def test_configs_are_written_for_people(folder):
    for path in (folder / "configs").glob("*.yaml"):
        text = path.read_text()
        assert not [line for line in text.splitlines() if len(line) > 120], path
        assert "lambda" not in text, path


@pytest.mark.parametrize("folder", [SOURCE, *OTHERS], ids=lambda path: path.name)
def test_own_block_holds_only_named_keys(folder, tool):
    for path in (folder / "configs").glob("*.yaml"):
        for block in tool.OWN_BLOCK.findall(path.read_text()):
            assert set(yaml.safe_load(block)) <= set(tool.OWN_KEYS)


@pytest.mark.parametrize("folder", [SOURCE, *OTHERS], ids=lambda path: path.name)
def test_configs_of_a_bundle_agree_about_the_modality(folder):
    parsed = [yaml.safe_load((folder / "configs" / name).read_text()) for name in CONFIGS]
    stands_in = {"image_size": [256, 256], "latent_channels": 8}  # where a config does not say
    said = [parsed[0], *({**stands_in, **config["untrained"]} for config in parsed[1:])]
    for key in ("class_names", "image_size", "image_channels", "latent_channels"):
        assert len({json.dumps(config[key]) for config in said}) == 1
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    formats = metadata["network_data_format"]
    channels = parsed[0]["image_channels"]
    assert [formats["inputs"]["image"]["num_channels"], formats["outputs"]["pred"]["num_channels"]] == [channels] * 2
    for label, name in enumerate(parsed[0]["class_names"]):
        assert re.search(rf"{label} {name.split('_')[0]}", metadata["label_classes"], re.IGNORECASE)


@pytest.mark.parametrize("folder", [SOURCE, *OTHERS], ids=lambda path: path.name)
def test_required_properties_are_all_there(folder, tmp_path):
    modality = folder.name.removeprefix("medfusion_")
    prepare_phantoms(tmp_path / "data", num_images=20, size=32, modality=modality)
    places = {
        "dataset_dir": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "r"),
        "model_dir": str(tmp_path / "m"),
    }
    parsed = yaml.safe_load((folder / "configs" / "train.yaml").read_text())
    save(tiny(parsed["class_names"], parsed["image_channels"], (32, 32)), tmp_path / "m" / "model.pt")
    for name, kind in zip(CONFIGS, ("train", "infer", "infer"), strict=True):
        config = [str(folder / "configs" / file) for file in (name, *(["demo.yaml"] if kind == "train" else []))]
        workflow = ConfigWorkflow(config_file=config, workflow_type=kind, **places)
        workflow.initialize()
        assert workflow.check_properties() == []
        leave_folders()


@pytest.mark.parametrize("folder", OTHERS, ids=lambda path: path.name)
def test_colour_bundle_trains_samples_and_measures(folder, bundle, tmp_path):
    modality = folder.name.removeprefix("medfusion_")
    prepare_phantoms(tmp_path / "data", num_images=20, size=48, modality=modality)
    common = {"model_dir": str(tmp_path / "models"), "configs": folder / "configs"}
    # The full config's augmentation, which demo.yaml leaves out for its cache of posteriors.
    transforms = yaml.safe_load((folder / "configs" / "train.yaml").read_text())["random_transforms"]
    own = {"random_transforms": transforms, "image_size": [48, 48]}
    data = {"dataset_dir": str(tmp_path / "data")}
    bundle("training", output_dir=str(tmp_path / "runs"), **data, **own, **common)
    bundle("inference", "inference.yaml", output_dir=str(tmp_path / "s"), num_samples=2, **common)
    bundle("evaluating", "evaluate.yaml", output_dir=str(tmp_path / "e"), **data, **common)
    samples = sorted((tmp_path / "s").glob("*.png"))
    assert len(samples) == 4
    with Image.open(samples[0]) as image:
        assert (image.mode, image.size) == ("RGB", (48, 48))
    assert (tmp_path / "e" / "metrics.csv").is_file()


@pytest.mark.parametrize("folder", [SOURCE, *OTHERS], ids=lambda path: path.name)
def test_small_overlay_trains_with_the_perceptual_term(folder, bundle, tmp_path):
    modality = folder.name.removeprefix("medfusion_")
    prepare_phantoms(tmp_path / "data", num_images=20, size=32, modality=modality)
    places = {"output_dir": str(tmp_path / "runs"), "model_dir": str(tmp_path / "models")}
    bundle(
        "training",
        configs=folder / "configs",
        overlays=("small.yaml",),
        dataset_dir=str(tmp_path / "data"),
        ssim_window=5,
        log_interval=1,
        **places,
    )
    logged = EventAccumulator(str(next((tmp_path / "runs" / "tensorboard").rglob("events.*")))).Reload()
    assert {"autoencoder/perceptual", "autoencoder/perceptual_low"} <= set(logged.Tags()["scalars"])
    assert json.loads((tmp_path / "models" / "model.json").read_text())["sampler"]["sampler"] == "unipc"
