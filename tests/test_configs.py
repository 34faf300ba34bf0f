from pathlib import Path

import pytest

from medfusion_monai.configs import build, read_configs

BUNDLE = Path(__file__).parents[1] / "bundles" / "medfusion_cxr"


def test_later_files_and_overrides_win():
    parser = read_configs(BUNDLE, ["inference.yaml", "demo.yaml"], {"guidance_scale": 3.0})
    assert build(parser, "image_size") == [64, 64]
    assert build(parser, "inferer").guidance_scale == 3.0


def test_override_of_no_key_is_refused():
    with pytest.raises(ValueError, match=r"image_sise: no key .*--set KEY=VALUE"):
        read_configs(BUNDLE, ["inference.yaml"], {"image_sise": [8, 8]})


def test_missing_file_is_refused_by_its_path():
    with pytest.raises(ValueError, match=r"configs.none\.yaml: no such file"):
        read_configs(BUNDLE, ["inference.yaml", "none.yaml"])


def test_refusal_of_a_constructor_comes_as_it_is():
    with pytest.raises(ValueError, match="^num_inference_steps must be"):
        build(read_configs(BUNDLE, ["inference.yaml"], {"num_inference_steps": 0}), "inferer")
