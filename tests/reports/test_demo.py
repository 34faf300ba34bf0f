from pathlib import Path

import pytest

from medfusion_monai.reports.demo import run_demo

BUNDLES = Path(__file__).parents[2] / "bundles"


@pytest.mark.slow
@pytest.mark.parametrize(("bundle", "ms_ssim"), [("cxr", 0.95), ("fundus", 0.95), ("histo", 0.90)])
def test_demo_reaches_its_bars(bundle, ms_ssim, tmp_path):
    summary = run_demo(BUNDLES / f"medfusion_{bundle}", tmp_path)
    assert summary["ms_ssim"] >= ms_ssim
    assert min(summary["class_agreement"].values()) >= 0.9
    assert {"data", "autoencoder", "diffusion", "sampling"} <= summary["seconds"].keys()
    assert (tmp_path / "picture.png").is_file()
