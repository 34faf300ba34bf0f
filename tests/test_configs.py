from pathlib import Path

import pytest

from medfusion_monai.configs import read_configs

BUNDLE = Path(__file__).parents[1] / "bundles" / "medfusion_cxr"


def test_later_files_and_overrides_win():
    parser = read_configs(BUNDLE, ["train.yaml", "demo.yaml"], {"guidance_scale": 3.0})
    assert parser.get_parsed_content("image_size") == [64, 64]
    assert parser.get_parsed_content("train#image_inferer").guidance_scale == 3.0


def test_override_of_no_key_is_refused():
    with pytest.raises(ValueError, match=r"image_sise: not a key"):
        read_configs(BUNDLE, ["inference.yaml"], {"image_sise": [8, 8]})


def test_missing_file_is_refused_by_its_path():
    with pytest.raises(ValueError, match=r"configs.none\.yaml: no such file"):
        read_configs(BUNDLE, ["inference.yaml", "none.yaml"])
