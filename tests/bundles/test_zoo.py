"""The commands by which MONAI's model zoo checks and converts a bundle."""

import json
import logging
import os
from pathlib import Path

import pytest
import torch
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out

from medfusion_monai.configs import read_configs

BUNDLES = sorted((Path(__file__).parents[2] / "bundles").glob("medfusion_*"))
SCHEMA = Path(os.environ.get("MONAI_META_SCHEMA", "../shared/reference/meta_schema_20240725.json"))

pytestmark = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)


def configs(bundle, *names):
    return [str(bundle / "configs" / name) for name in names]


@pytest.mark.skipif(not SCHEMA.is_file(), reason=f"no {SCHEMA}; set MONAI_META_SCHEMA")
def test_metadata_is_verified(bundle, caplog):
    caplog.set_level(logging.INFO)
    (file,) = configs(bundle, "metadata.json")
    verify_metadata(meta_file=file, filepath=str(SCHEMA), hash_val="06954cad2cc5d3784e72077ac76f0fc8")
    assert "metadata is verified with no error" in caplog.text


@pytest.mark.parametrize(
    "overlays", [["demo.yaml"], pytest.param([], marks=pytest.mark.slow)], ids=["demo", "full size"]
)
def test_network_takes_and_gives_what_the_metadata_says(overlays, bundle, caplog):
    caplog.set_level(logging.INFO)
    meta_file, *config_file = configs(bundle, "metadata.json", "inference.yaml", *overlays)
    sides = 8 if overlays else 32
    verify_net_in_out("network_def", meta_file=meta_file, config_file=config_file, device="cpu", n=sides)
    assert "data shape of network is verified with no error" in caplog.text


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of checks of shapes, which the test varies
def test_traced_network_reconstructs_as_pytorch_does(bundle, tmp_path):
    parser = read_configs(bundle, ["inference.yaml", "demo.yaml"])
    network, source = parser.get_parsed_content("network_def").eval(), torch.Generator().manual_seed(0)
    for weight in network.autoencoder.parameters():  # none stays zero, as the last convolution is at the start
        weight.data += 0.02 * torch.randn(weight.shape, generator=source)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    meta_file, *config_file = configs(bundle, "metadata.json", "inference.yaml", "demo.yaml")
    channels = parser.get_parsed_content("image_channels")
    ckpt_export(
        "network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(tmp_path / "model.pt"),
        meta_file=meta_file,
        config_file=config_file,
        use_trace=True,
        input_shape=[1, channels, 64, 64],
    )
    extra = {"inference.json": ""}
    traced = torch.jit.load(tmp_path / "model.ts", _extra_files=extra)
    image = torch.rand(3, channels, 48, 72, generator=source) * 2 - 1  # another batch and size than was traced
    with torch.no_grad():
        expected = network(image)
    assert expected.std() > 0.01
    assert (traced(image) - expected).abs().max() < 1e-4
    assert json.loads(extra["inference.json"])["class_names"] == parser.get_parsed_content("class_names")
