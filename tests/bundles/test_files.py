"""A bundle reads files as hospitals have them: DICOM by its Modality, the whole image where that is asked for."""

import importlib.resources
import json
import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

from medfusion_monai.runtime.errors import first_cause

CONFIGS = Path(__file__).parents[2] / "bundles" / "medfusion_cxr" / "configs"
SAMPLES = importlib.resources.files("pydicom") / "data" / "test_files"


@pytest.fixture
def data_with_slice(dataset_dir, tmp_path):
    """A copy of the data whose first training image is a CT slice in DICOM."""
    folder = Path(shutil.copytree(dataset_dir, tmp_path / "data"))
    document = json.loads((folder / "datalist.json").read_text())
    (folder / "slice.dcm").write_bytes((SAMPLES / "CT_small.dcm").read_bytes())
    document["training"][0] = {"image": "slice.dcm", "label": document["training"][0]["label"]}
    (folder / "datalist.json").write_text(json.dumps(document))
    return folder


def initialized(folder, tmp_path, **overrides):
    places = {"dataset_dir": str(folder), "model_dir": str(tmp_path / "m"), "output_dir": str(tmp_path / "r")}
    settings = {"image_size": [32, 32], "device": "$torch.device('cpu')"}
    files = [str(CONFIGS / "train.yaml"), str(CONFIGS / "demo.yaml")]
    workflow = ConfigWorkflow(config_file=files, workflow_type="train", **(places | settings | overrides))
    workflow.initialize()
    return workflow.parser.get_parsed_content


def test_slice_among_radiographs_is_refused_unless_its_modality_is_named(data_with_slice, tmp_path):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        initialized(data_with_slice, tmp_path)
    assert "slice.dcm: is a DICOM file of Modality CT" in str(first_cause(caught.value))
    get = initialized(data_with_slice, tmp_path, dicom_modalities=["CT"])
    assert get("train#dataset")[0]["image"].shape == (1, 32, 32)


@pytest.mark.parametrize(("mode", "border"), [("crop", False), ("pad", True)])
def test_resize_mode_reaches_the_images(dataset_dir, tmp_path, mode, border):
    get = initialized(dataset_dir, tmp_path, resize_mode=mode, image_size=[32, 64])
    image = get("train#dataset")[0]["image"]
    assert image.shape == (1, 32, 64)
    assert (torch.count_nonzero(image[:, :, :16]) == 0) == border


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"resize_mode": "stretch"}, "mode is 'stretch': use 'crop' or 'pad'"),
        ({"dicom_modalities": "CR"}, "modalities are 'CR'"),
    ],
)
def test_bad_setting_is_refused_before_the_data_are_read(tmp_path, overrides, said):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        initialized(tmp_path / "nowhere", tmp_path, **overrides)
    assert said in str(first_cause(caught.value))
