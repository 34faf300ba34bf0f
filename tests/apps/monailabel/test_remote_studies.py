"""Studies in a real DICOMweb store, and MONAI Label's stock app."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from PIL import Image

pytest.importorskip("monailabel", reason="make test-monailabel has MONAI Label")

import SimpleITK
from dicom_files import save_dicom
from label_studies import BUNDLES, SIZE, dicom_of, drawn, environment
from local_servers import LOCAL, ORTHANC_LOGIN, free_port, running, running_orthanc
from monai.bundle import ConfigParser
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException
from tiny_models import ROOT, save, tiny

import medfusion_monai as mf
from medfusion_monai import editing
from medfusion_monai.apps.monailabel.label_maps import change_map, smoothed_difference
from medfusion_monai.model import make_preprocessing

pytestmark = pytest.mark.slow


def test_series_of_a_dicomweb_store_are_studies(tmp_path):
    names, channels = BUNDLES["cxr"]
    model = mf.load(save(tiny(names, channels, SIZE), tmp_path / "model.pt"), device="cpu")
    torch.set_num_threads(1)
    with running_orthanc(tmp_path) as (store, _):
        series = {}
        for kind in ("DX", "CT"):
            dataset = dicom_of(drawn(1, seed=8), kind)
            path = save_dicom(tmp_path / f"{kind}.dcm", dataset)
            instances = store.replace("dicom-web", "instances")
            requests.post(instances, path.read_bytes(), auth=ORTHANC_LOGIN, timeout=60).raise_for_status()
            series[kind] = dataset.SeriesInstanceUID
        port = free_port()
        command = [sys.executable, "-m", "medfusion_monai", "label", "--model", str(tmp_path / "model.pt")]
        command += ["--studies", store, "--user", ORTHANC_LOGIN[0], "--port", str(port)]
        with running(command, f"http://{LOCAL}:{port}/info/", tmp_path / "server.log", 1200, env=environment()):
            client = MONAILabelClient(f"http://{LOCAL}:{port}", str(tmp_path), "tester")
            assert client.next_sample("first", {})["id"] == series["DX"]  # no CT, which the model does not take
            options = {"class": names[1], "own_class": names[0], "threshold": 0.002, "result_extension": ".nrrd"}
            file, _ = client.infer("counterfactual", series["DX"], options)
            image = make_preprocessing(model)({"image": str(tmp_path / "DX.dcm")})["image"][None]
            changed = editing.counterfactual(model, image, names[1], names[0])
            expected = change_map(smoothed_difference((changed - image)[0], 2.0), 0.002)
            result = SimpleITK.ReadImage(file)
            assert np.array_equal(SimpleITK.GetArrayFromImage(result)[0], expected)
            assert result.GetSpacing()[:2] == pytest.approx((0.25, 0.5))
            with pytest.raises(MONAILabelClientException) as caught:
                client.infer("counterfactual", series["DX"], {"save_image": True})
            assert "cannot add studies to a DICOMweb store" in caught.value.msg
            with pytest.raises(MONAILabelClientException) as caught:
                client.infer("counterfactual", series["CT"], {})
            assert "Status: 404" in caught.value.msg
    assert ORTHANC_LOGIN[1] not in (tmp_path / "server.log").read_text()


@pytest.mark.parametrize("name", BUNDLES)
def test_stock_app_starts_and_answers_with_an_upright_reconstruction(name, tmp_path):
    stock = Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle"
    assert stock.is_dir(), "pip installs it with MONAI Label"
    class_names, channels = BUNDLES[name]
    app, studies = tmp_path / "app", tmp_path / "studies"
    shutil.copytree(stock, app)
    bundle = app / "model" / f"medfusion_{name}"
    shutil.copytree(
        ROOT / "bundles" / bundle.name, bundle, ignore=shutil.ignore_patterns("models", "runs", "samples", "data")
    )
    network = tiny(class_names, channels, SIZE)
    save(network, bundle / "models" / "model.pt")
    configs = bundle / "configs"
    merged = ConfigParser.load_config_files([str(configs / "inference.yaml"), str(configs / "monailabel.yaml")])
    ConfigParser.export_config_file(merged, str(configs / "inference.json"))
    studies.mkdir()
    Image.fromarray(drawn(channels)).save(studies / "a.png")
    port = free_port()
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
    command += ["--host", LOCAL, "--port", str(port), "--conf", "models", bundle.name]
    for option in (("zoo_source", "local"), ("sam2", "false"), ("skip_trainers", "true")):
        command += ["--conf", *option]
    with running(command, f"http://{LOCAL}:{port}/info/", tmp_path / "server.log", 1200, env=environment()):
        client = MONAILabelClient(f"http://{LOCAL}:{port}", str(tmp_path), "tester")
        file, _ = client.infer(bundle.name, "a", {"result_extension": ".nrrd", "result_dtype": "uint8"})
    model = mf.load(bundle / "models" / "model.pt", device="cpu")
    image = make_preprocessing(model)({"image": str(studies / "a.png")})["image"][None]
    expected = model.reconstruct(image)[0].mean(0).numpy() * 255
    result = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file)).astype(float)
    assert result.shape == SIZE
    assert np.abs(result - expected).max() < 1.01  # rounded once more for colours
