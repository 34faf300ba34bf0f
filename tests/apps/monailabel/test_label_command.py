"""What ``medfusion label`` refuses before it starts a server; MONAI Label need not be installed."""

import importlib.util
import socket

import pytest
from local_servers import LOCAL, free_port
from tiny_models import CLASSES, info_of, tiny

from medfusion_monai.apps.monailabel import label_server
from medfusion_monai.baselines.gan import Gan
from medfusion_monai.baselines.gan_networks import GanGenerator
from medfusion_monai.cli import main
from medfusion_monai.networks.described import describe
from medfusion_monai.weights.model_info import write_model_info
from medfusion_monai.weights.state_dict import save_weights


@pytest.fixture
def installed(monkeypatch):
    """Act as if MONAI Label were installed."""
    monkeypatch.setattr(label_server, "_require_monailabel", lambda: None)


def error_of(capsys, *arguments):
    assert main(["label", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_missing_monailabel_is_named_with_the_way_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = error_of(capsys, "--model", tmp_path, "--studies", tmp_path)
    assert "MONAI Label is not installed" in error
    assert "pip install -e '.[label]'" in error  # by name, anybody could have put it into an index


def test_pydicom_that_monailabel_cannot_import_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(label_server, "version", lambda name: "3.0.2")
    assert "does not work with pydicom 3.0.2" in error_of(capsys, "--model", tmp_path, "--studies", tmp_path)


@pytest.mark.usefixtures("installed")
def test_port_in_use_is_named(tmp_path, capsys):
    with socket.socket() as other:
        other.bind((LOCAL, 0))
        other.listen()
        port = other.getsockname()[1]
        error = error_of(capsys, "--model", tmp_path, "--studies", tmp_path, "--port", port)
    assert f"cannot listen on {LOCAL}:{port}" in error
    assert "another --port" in error


@pytest.mark.usefixtures("installed")
def test_missing_model_is_named(tmp_path, capsys):
    error = error_of(capsys, "--model", tmp_path / "none", "--studies", tmp_path, "--port", free_port())
    assert str(tmp_path / "none") in error


@pytest.mark.usefixtures("installed")
def test_missing_studies_are_named_and_not_made(tmp_path, capsys):
    error = error_of(capsys, "--model", tmp_path, "--studies", tmp_path / "none", "--port", free_port())
    assert "none is not a folder" in error
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("part", ["anna:secret@", "anna@"])
def test_password_in_the_address_is_refused_and_not_shown(tmp_path, part, capsys):
    error = error_of(capsys, "--model", tmp_path, "--studies", f"http://{part}{LOCAL}:1/x", "--port", free_port())
    assert "name the --user" in error
    assert "secret" not in error


@pytest.mark.usefixtures("installed")
def test_store_that_is_not_there_is_named(tmp_path, capsys):
    address = f"http://{LOCAL}:{free_port()}/dicom-web"
    error = error_of(capsys, "--model", tmp_path, "--studies", address, "--port", free_port())
    assert f"no answer of a DICOMweb service from {address}" in error


@pytest.mark.usefixtures("installed")
def test_temperature_of_0_is_refused(tmp_path, capsys):
    error = error_of(capsys, "--model", tmp_path, "--studies", tmp_path, "--port", free_port(), "--temperature", "0")
    assert "temperature must be a finite number above 0" in error


@pytest.mark.usefixtures("installed")
def test_gan_is_refused_at_the_start(tmp_path, capsys):
    gan, path = Gan(GanGenerator([16, 24], [8, 8, 8]), CLASSES, [16, 24]), tmp_path / "model.pt"
    save_weights(gan, path)
    write_model_info(path, {**info_of(tiny()), "networks": {"generator": describe(gan.generator)}})
    error = error_of(capsys, "--model", path, "--studies", tmp_path, "--port", free_port())
    assert "are those of a GAN" in error
