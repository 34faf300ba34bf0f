"""The file of a site: its config files and settings, or an error that says what it lacks."""

from pathlib import Path

import pytest
import yaml

from medfusion_monai.sites.federation import FederationError
from medfusion_monai.sites.site_file import FOLDER, read_site, write_site

BUNDLE = Path(__file__).parents[2] / "bundles" / "medfusion_cxr"
WHOLE = {"bundle": str(BUNDLE), "settings": {"dataset_dir": "/data"}}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write the file of site north."""
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return (tmp_path / "north.yaml").write_text


def test_config_files_and_settings_of_a_site_are_read(write):
    write(yaml.safe_dump({**WHOLE, "overlays": ["demo.yaml"]}))
    site = read_site("north")
    assert site.files == [BUNDLE / "configs" / "train.yaml", BUNDLE / "configs" / "demo.yaml"]
    assert site.settings == {"dataset_dir": "/data"}


def test_what_is_written_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path / "sites"))
    write_site(tmp_path / "sites", "west", BUNDLE, ("demo.yaml",), {"seed": 3}, dataset_dir=Path("/data"))
    site = read_site("west")
    assert site.files == [BUNDLE / "configs" / "train.yaml", BUNDLE / "configs" / "demo.yaml"]
    assert site.settings == {"seed": 3, "dataset_dir": "/data"}


def test_site_without_a_file_is_refused(write, monkeypatch):
    with pytest.raises(FederationError, match=r"site south has no file south.yaml in the folder that MEDFUSION_SITES"):
        read_site("south")
    monkeypatch.delenv(FOLDER)
    with pytest.raises(FederationError, match=r"site north has no file north.yaml"):
        read_site("north")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must have the keys bundle and settings, found None"),
        ("a: [", "cannot be read"),
        ("bundle: x", "has no key settings"),
        (yaml.safe_dump({"settings": {}}), "has no key bundle"),
        (yaml.safe_dump({**WHOLE, "settings": None}), "has settings None, which is not keys with values"),
        (yaml.safe_dump({**WHOLE, "overlays": "demo.yaml"}), "has overlays 'demo.yaml', which is not a list of file"),
        (yaml.safe_dump({**WHOLE, "overlay": []}), "has an unknown key overlay"),
        (yaml.safe_dump({**WHOLE, "bundle": "/nowhere"}), "there is no file /nowhere/configs/train.yaml"),
        (yaml.safe_dump({**WHOLE, "overlays": ["x.yaml"]}), "configs/x.yaml. Correct bundle or overlays"),
    ],
)
def test_incomplete_file_is_refused(text, words, write):
    write(text)
    with pytest.raises(FederationError, match=words):
        read_site("north")
