import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from medfusion_monai.diffusion.ddim import ddim_sample
from medfusion_monai.diffusion.schedule import NoiseSchedule

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
sampler_distance = import_module("sampler_distance")


def denoise(latents, timesteps):
    return torch.sin(latents + timesteps[:, None, None, None] / 300)


def test_distance_is_the_root_mean_square_from_the_solution_with_all_timesteps(capsys):
    schedule, noise = NoiseSchedule(200), torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    plan = [sampler_distance.YARDSTICK, ("unipc", "logsnr", 5), ("ddim", "linspace", 200)]
    rows = sampler_distance.measure(denoise, noise, schedule, plan, 1.5)
    solution, found = (ddim_sample(denoise, noise, schedule, steps, eta=0.0) for steps in (200, 150))
    assert [(row["sampler"], row["spacing"], row["steps"]) for row in rows] == plan
    assert rows[0]["distance"] == pytest.approx((found - solution).square().mean().sqrt().item(), rel=1e-5)
    assert rows[1]["distance"] > rows[0]["distance"] > rows[2]["distance"] == 0.0
    assert all(row["guidance_scale"] == 1.5 for row in rows)
    printed = capsys.readouterr().out
    assert "ddim linspace: 150 steps are as near as 150 of DDIM" in printed
    assert "unipc logsnr:" not in printed


@pytest.mark.slow
def test_command_needs_the_weights_alone(tmp_path, monkeypatch, save_model):
    weights = save_model(tmp_path / "model.pt", schedule={"num_train_timesteps": 200})
    figures = tmp_path / "figures.json"
    options = ["--samples", "2", "--guidance", "2", "--samplers", "unipc", "--spacings", "logsnr", "--steps", "5"]
    command = ["sampler_distance", "--model-file", str(weights), "--json", str(figures), *options]
    monkeypatch.setattr(sys, "argv", command)
    sampler_distance.main()
    rows = json.loads(figures.read_text())["rows"]
    assert [(row["sampler"], row["steps"]) for row in rows] == [("ddim", 20), ("ddim", 50), ("ddim", 150), ("unipc", 5)]
    assert all(row["distance"] > 0 and row["guidance_scale"] == 2.0 for row in rows)
