from pathlib import Path

import pytest

from medfusion_monai.reports.demo import run_demo

BUNDLES = Path(__file__).parents[2] / "bundles"


@pytest.mark.slow
def test_demo_reaches_its_bars(tmp_path):
    summary = run_demo(BUNDLES / "medfusion_cxr", tmp_path)
    assert summary["ms_ssim"] >= 0.95
    assert min(summary["class_agreement"].values()) >= 0.9
    assert {"data", "autoencoder", "diffusion", "sampling"} <= summary["seconds"].keys()
    assert (tmp_path / "picture.png").is_file()
