"""Measure how far samplers with few steps end from the solution with all timesteps, from the same noise.

The solution is DDIM without fresh noise at every timestep of the schedule. Distances are root mean squares over
latents, which have unit variance. The question is after how many steps a sampler is as near as DDIM with 150.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from medfusion_monai import load
from medfusion_monai.diffusion.ddim import ddim_sample
from medfusion_monai.diffusion.guidance import guided_denoiser
from medfusion_monai.diffusion.multistep import dpm_solver_sample, unipc_sample
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.diffusion.spacing import Spacing
from medfusion_monai.runtime.seeds import derive_seed, generators, randn

SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ddim": partial(ddim_sample, eta=0.0),
    "dpm_solver": dpm_solver_sample,
    "unipc": unipc_sample,
}
YARDSTICK: tuple[str, Spacing, int] = ("ddim", "linspace", 150)


def main() -> None:
    """Print a table of distances, and the fewest steps with which each sampler is as near as the yardstick."""
    arguments = parse()
    model = load(arguments.model_file, "cpu")
    labels = torch.arange(arguments.samples).remainder(len(model.class_names))
    sources = generators(derive_seed("distance", number) for number in range(arguments.samples))
    noise = randn(model.network.latent_shape, sources)
    others: list[tuple[str, Spacing, int]] = [
        (sampler, spacing, steps)
        for sampler in arguments.samplers
        for spacing in arguments.spacings
        for steps in arguments.steps
    ]
    plan: list[tuple[str, Spacing, int]] = [("ddim", "linspace", 20), ("ddim", "linspace", 50), YARDSTICK, *others]
    rows: list[dict[str, Any]] = []
    for guidance_scale in arguments.guidance:
        denoiser = guided_denoiser(model.network.unet, labels, guidance_scale)
        rows += measure(denoiser, noise, model.schedule, plan, guidance_scale)
    if arguments.json:
        facts = {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
        arguments.json.write_text(json.dumps({**facts, "samples": arguments.samples, "rows": rows}, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-file", type=Path, required=True, help="models/model.pt of a training")
    parser.add_argument("--samples", type=int, default=32, help="the classes take turns")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5])
    parser.add_argument("--samplers", nargs="+", default=["dpm_solver", "unipc"], choices=list(SAMPLERS))
    parser.add_argument("--spacings", nargs="+", default=list(get_args(Spacing)), choices=get_args(Spacing))
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 10, 12, 15, 20, 25, 30])
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args()


@torch.no_grad()
def measure(
    denoiser: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    schedule: NoiseSchedule,
    plan: list[tuple[str, Spacing, int]],
    guidance_scale: float,
) -> list[dict[str, Any]]:
    """Sample by each plan (sampler, spacing, steps), print and give its distance, then the fewest steps that do."""
    began = time.monotonic()
    solution = ddim_sample(denoiser, noise, schedule, schedule.num_train_timesteps, eta=0.0)
    print(f"guidance {guidance_scale:g}: solution in {time.monotonic() - began:.0f} s", flush=True)
    rows: list[dict[str, Any]] = []
    for sampler, spacing, steps in plan:
        latents = SAMPLERS[sampler](denoiser, noise, schedule, steps, spacing=spacing)
        distances = (latents - solution).square().flatten(1).mean(1)
        row: dict[str, Any] = {"guidance_scale": guidance_scale, "sampler": sampler, "spacing": spacing, "steps": steps}
        row |= {"distance": distances.mean().sqrt().item(), "median_sample": distances.median().sqrt().item()}
        rows.append(row)
        print(f"{sampler:10} {spacing:9} {steps:4} steps: {row['distance']:.4f}", flush=True)
    bar = next(row["distance"] for row in rows if (row["sampler"], row["spacing"], row["steps"]) == YARDSTICK)
    for sampler, spacing in sorted({(row["sampler"], row["spacing"]) for row in rows}):
        near = [r["steps"] for r in rows if (r["sampler"], r["spacing"]) == (sampler, spacing) and r["distance"] <= bar]
        if near:
            print(f"{sampler} {spacing}: {min(near)} steps are as near as {YARDSTICK[2]} of DDIM ({bar:.4f})")
    return rows


if __name__ == "__main__":
    main()
